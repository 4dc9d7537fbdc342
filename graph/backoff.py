"""A function whose init keeps failing is prepared less and less often, ahead of need. On demand it is always tried. Pure.

From the second failure in a row on, preparing waits 1 s, then twice as long after each further one, up to 10 minutes. When
the time is over one instance at a time may try; the first that gets ready ends it.
"""

import msgspec

FIRST_S = 1.0
LONGEST_S = 600.0
IN_A_ROW = 2


class Backoff(msgspec.Struct, frozen=True):
    """One version's; a new one when an instance got ready. `failures` in a row, preparing or on demand. Before `until`, in the
    caller's clock, it is not prepared."""

    failures: int = 0
    until: float = 0.0


def failed(state: Backoff, now: float) -> Backoff:
    """An init failed, or ran into its timeout."""
    failures = state.failures + 1
    return Backoff(failures, now + _delay_s(failures))


def tried(state: Backoff, now: float) -> Backoff:
    """It was ordered, though it failed before: the next try waits for what comes of this one, or for as long again."""
    return Backoff(state.failures, max(state.until, now + _delay_s(state.failures))) if backed_off(state) else state


def backed_off(state: Backoff) -> bool:
    """True while every preparation must ask allowed() and tell tried()."""
    return state.failures >= IN_A_ROW


def allowed(state: Backoff, now: float) -> bool:
    """True when it may be prepared now."""
    return not backed_off(state) or now >= state.until


def why(state: Backoff, now: float) -> str:
    """For Skipped.why."""
    return f"its init failed {state.failures} times in a row; the next try is in {max(0.0, state.until - now):.0f} s"


def _delay_s(failures: int) -> float:
    if failures < IN_A_ROW:
        return 0.0
    return min(LONGEST_S, FIRST_S * 2.0 ** min(failures - IN_A_ROW, 30))
