"""A stage that does what its event says, step by step; its init waits for INIT_S.

Steps: ["work", seconds], ["call", function, steps], ["all", [[function, steps], ...]] side by side.
"""

import os
import time

time.sleep(float(os.environ["INIT_S"]))


def handler(event, context):
    for what, *rest in event["steps"]:
        if what == "work":
            time.sleep(rest[0])
        elif what == "call":
            context.invoke(rest[0], {"steps": rest[1]})
        else:
            context.invoke_all([(name, {"steps": steps}) for name, steps in rest[0]])
    return {}
