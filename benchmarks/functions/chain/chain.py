"""One stage of a path: its init waits or computes for INIT_S, its work sleeps, then it calls NEXT; of a release it says which."""

import os
import time

INIT_S = float(os.environ["INIT_S"])

if os.environ["INIT"] == "cpu":
    _began = time.thread_time()
    while time.thread_time() - _began < INIT_S:
        sum(range(1000))
else:
    time.sleep(INIT_S)

WORK_S = float(os.environ["WORK_S"])
NEXT = os.environ.get("NEXT", "")
RELEASE = os.environ.get("RELEASE")


def handler(event, context):
    time.sleep(WORK_S)
    stages = event["stages"] + 1
    answer = context.invoke(NEXT, {"stages": stages}) if NEXT else {"stages": stages}
    return answer if RELEASE is None else {**answer, "release": int(RELEASE)}
