"""How much is tried, in one place: `ci` quickly and the same each time, `full` (FULL=1) at length, from another seed.

`FOREGLOW_SEED` sets the seed, `FOREGLOW_CASES` how many requests the API gets.
"""

import os
import time

from hypothesis import Phase, settings

FULL = os.environ.get("FULL", "") not in ("", "0")
PROFILE = "full" if FULL else "ci"
SEED = int(os.environ.get("FOREGLOW_SEED") or (int(time.time()) if FULL else 1))
API_CASES = int(os.environ.get("FOREGLOW_CASES") or (100_000 if FULL else 5_000))
TIMES = 20 if FULL else 1
"""How many times the examples of `ci` a property gets."""

EXAMPLES = 100


QUICK = (Phase.explicit, Phase.generate)


def load() -> None:
    """Called once, before tests are collected. Timing is no property: a loaded machine is not a failure."""
    settings.register_profile("ci", max_examples=EXAMPLES, derandomize=True, database=None, deadline=None)
    settings.register_profile("full", max_examples=EXAMPLES * TIMES, database=None, deadline=None, print_blob=True)
    settings.load_profile(PROFILE)


def examples(count: int) -> settings:
    """For a property that is dearer or cheaper than others; `count` is its number in `ci`."""
    return settings(max_examples=count * TIMES)


def dear(count: int) -> settings:
    """For a property with processes or waits behind it: what fails is shown as it came, not made smaller for minutes."""
    return settings(max_examples=count * TIMES, phases=QUICK)
