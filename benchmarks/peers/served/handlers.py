"""The functions for awslambdaric; FUNCTION names what this process is: echo, imports400, or a stage of a path."""

import http.client
import json
import os
import time

NEXT = os.environ.get("NEXT", "")
INIT_S = float(os.environ.get("INIT_S", "0"))

if os.environ.get("IMPORTS") == "400":
    import pandas  # noqa: F401
    import requests  # noqa: F401
if os.environ.get("INIT") == "cpu":
    _began = time.thread_time()
    while time.thread_time() - _began < INIT_S:
        sum(range(1000))
else:
    time.sleep(INIT_S)


def echo(event, context):
    return event


def stage(event, context):
    time.sleep(float(os.environ["WORK_S"]))
    stages = event["stages"] + 1
    if not NEXT:
        return {"stages": stages}
    address, _, path = NEXT.partition("/")
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("POST", "/" + path, json.dumps({"stages": stages}), {"Content-Type": "application/json"})
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()
