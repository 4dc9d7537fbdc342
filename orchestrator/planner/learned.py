"""What a planner learns beside the call graph, as it is written down."""

import msgspec

from graph.arrivals import Arrivals
from graph.ids import FunctionId
from graph.spending import Spending
from orchestrator.planner.reckoning import Books


class Learned(msgspec.Struct):
    """`books`: how predictions held and what it cost. `spending`: by tenant. `arrivals`: when entries are called.
    `idle_times`: how long functions stood idle, `further_idle_times` their second instance, their third, ..."""

    books: Books = msgspec.field(default_factory=Books)
    spending: dict[str, Spending] = {}
    arrivals: dict[FunctionId, Arrivals] = {}
    idle_times: dict[FunctionId, Arrivals] = {}
    further_idle_times: dict[FunctionId, list[Arrivals]] = {}
