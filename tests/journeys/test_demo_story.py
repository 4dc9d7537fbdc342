"""The demo keeps its promises: it ends by itself, says so, and leaves nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

EXAMPLES = Path(__file__).parents[2] / "examples"
LIMIT_S = 300  # the first time it downloads and builds the example's packages


def test_the_demo_tells_its_whole_story_and_leaves_nothing() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py")], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "NO   " not in done.stdout
    for said in (
        "Isolation tier:",
        "every stage started on demand",
        "every stage below the entry was prepared ahead",
        "every stage was warm",
        "the first request it ever had was prewarmed all the way down",
        "Each decision of the last run, and how it ended",
        "stages found an instance prepared from somebody else's traces",
        "Stopped; nothing is left running.",
    ):
        assert said in done.stdout
