"""Why a decision was made, as a sentence."""

from graph.decay import CAUTIOUS_RUNS
from graph.ids import FunctionId, name_of
from graph.plans import EdgeSource, ExpectedCall
from graph.timing import quantile


def reason(call: ExpectedCall, ordinal: int, entry: FunctionId) -> str:
    """What is known of the `ordinal`-th instance of the call's function being needed by a run of `entry`."""
    caller, callee = name_of(entry), name_of(call.function)
    once = f" once {name_of(call.given)} has started" if call.given else ""
    if call.source == EdgeSource.REQUESTED:
        text = f"{callee} was asked for by name"
    elif call.source == EdgeSource.PREDICTED:
        text = f"{callee} is called again in {percent(call.reach)} of the times it paused this long"
        if call.offsets_s:
            text += f", about {duration(quantile(call.offsets_s, 0.5))} from now"
    elif call.source == EdgeSource.DECLARED:
        traces = ", no trace tells yet" if not call.samples else ""
        text = f"{caller} declares calls that lead to {callee}{traces}"
        if call.reach < 0.995:
            text += f" ({percent(call.reach)}{once})"
    else:
        counted = "1 trace" if call.samples == 1 else f"{call.samples} traces"
        cautious = "at least " if call.samples < CAUTIOUS_RUNS and call.source == EdgeSource.LEARNED else ""
        text = f"{caller} reaches {callee}{once} in {cautious}{percent(call.reach)} of "
        text += counted if call.source == EdgeSource.LEARNED else f"its runs, by {counted} and its declared calls"
        if call.offsets_s:
            text += f", about {duration(quantile(call.offsets_s, 0.5))} after it starts"
    if ordinal > 1 and call.source != EdgeSource.REQUESTED:
        text += f"; {ordinal} at once in {percent(call.concurrent[ordinal - 1])}"
    return text


def percent(share: float) -> str:
    return f"{share * 100:.1f} %" if share < 0.0995 else f"{share * 100:.0f} %"


def duration(seconds: float) -> str:
    if seconds < 1.0:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60.0 else f"{seconds / 60:.1f} min"
