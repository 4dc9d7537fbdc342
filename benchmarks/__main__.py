"""python -m benchmarks TOPIC | all: JSON lines, then a table. FULL=1: more runs. Not 0 when something could not be measured."""

import argparse
import importlib
import os
import signal
import sys
from types import FrameType

from benchmarks.metrics import TOPICS, of_topic
from benchmarks.report import Report
from benchmarks.wrk import WrkMissing


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("topic", choices=(*TOPICS, "all"))
    parser.add_argument("--metrics", action="store_true", help="print what the topic measures, and measure nothing")
    options = parser.parse_args()
    topics = TOPICS if options.topic == "all" else (options.topic,)
    if options.metrics:
        for metric in [metric for topic in topics for metric in of_topic(topic)]:
            budget = "" if metric.budget is None else f" [{'<=' if metric.better == 'lower' else '>='} {metric.budget:g}]"
            print(f"{metric.name} ({metric.unit}){budget}: {metric.meaning}")
        return 0
    signal.signal(signal.SIGTERM, _stopped)
    for topic in topics:
        report = Report(topic)
        try:
            importlib.import_module(f"benchmarks.topics.{topic}").run(report, os.environ.get("FULL") == "1")
        except WrkMissing as missing:
            print(missing, file=sys.stderr)
            return 2
        report.close()
    return 0


def _stopped(number: int, frame: FrameType | None) -> None:
    """Like Ctrl-C: what was started is ended on the way out."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
