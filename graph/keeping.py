"""How long an instance is worth keeping after its use: for the next call, which may come soon, late or never. Pure.

With G the time until then (the idle times of graph.arrivals; endless with what probability is left), keeping it for k seconds
costs w E[min(G, k)], and c S P(G > k) for the start that a later call waits for: ski rental with a known distribution. The cost
falls only where a sample ends, so the best k is 0 or one of them.
"""

import numpy as np

from graph.arrivals import Arrivals, Kind, samples_of
from graph.plans import Prices


def worth_keeping_s(state: Arrivals, prices: Prices, memory_mb: int, start_s: float, longest_s: float) -> float | None:
    """Seconds, at most `longest_s`; None where too little is known to tell. 0: it is not worth keeping at all.

    `state` counts the idle times of one instance: of a function's last one, or of its n-th (graph.levels). `start_s`: what a call
    waits for, when there is none.
    """
    known = samples_of(state)
    if known is None or known.kind is Kind.RARE:
        return None if known is None else 0.0
    gaps = np.array(known.after_s)
    count = len(gaps)
    idle = prices.idle_gb_s * memory_mb / 1024
    inside = gaps <= longest_s
    kept = np.concatenate(([0.0], gaps[inside]))
    number = np.arange(len(kept))
    idled = np.concatenate(([0.0], np.cumsum(gaps)[inside])) + (count - number) * kept  # what ends by then, and what does not
    share = known.probability
    cost = idle * (share * idled / count + (1.0 - share) * kept)
    cost += prices.late_s * start_s * share * (1.0 - number / count)
    return float(kept[int(np.argmin(cost))])
