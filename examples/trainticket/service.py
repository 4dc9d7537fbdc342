"""One function of the generated system: waits as long as a recorded invocation worked, and calls what that one called.

Picking whole recorded invocations keeps the recorded probabilities, and which calls go together.
"""

import json
import random
import time
from pathlib import Path

BEHAVIOUR = json.loads((Path(__file__).parent / "behaviour.json").read_text())


def handle(event, context):
    event = event or {}
    seed, scale = event.get("seed"), event.get("scale", 1.0)
    chosen = random.Random(f"{seed}/{context.function_name}") if seed is not None else random
    work_ms, groups = chosen.choice(BEHAVIOUR[context.function_name])
    pause = work_ms * scale / 1000 / (len(groups) + 1)
    calls = 0
    time.sleep(pause)
    for group in groups:
        answers = context.invoke_all([(name, event) for name in group])
        calls += len(group) + sum(answer["calls"] for answer in answers)
        time.sleep(pause)
    return {"calls": calls}
