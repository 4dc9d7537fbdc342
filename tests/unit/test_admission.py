"""Who may use the cores and the memory: never more than allowed inside, the more urgent first, nothing lost on the way out."""

import asyncio

from doubles.loop import in_loop, settle
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.admission import BACKGROUND, ON_DEMAND, CoreGate, MemoryLedger, machine_memory_mb


class Crowd:
    """Steps that enter a gate, stay until told, and leave."""

    def __init__(self, gate: CoreGate) -> None:
        self.gate = gate
        self.entered: list[str] = []
        self.inside: set[str] = set()
        self.most = 0
        self.demanded: set[str] = set()  # of those inside, those that requests wait for
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.leave: dict[str, asyncio.Event] = {}

    async def come(self, name: str, priority: float, key: object = None) -> None:
        self.leave[name] = asyncio.Event()
        self.tasks[name] = asyncio.ensure_future(self._step(name, priority, key))
        await settle()

    async def _step(self, name: str, priority: float, key: object) -> None:
        place = await self.gate.enter(priority, key)
        try:
            self.entered.append(name)
            self.inside.add(name)
            if place == ON_DEMAND:
                self.demanded.add(name)
            self.most = max(self.most, len(self.inside))
            await self.leave[name].wait()
        finally:
            self.inside.discard(name)
            self.demanded.discard(name)
            self.gate.leave(place)

    async def go(self, name: str) -> None:
        self.leave[name].set()
        await settle()

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        await settle()

    async def disperse(self) -> None:
        for event in self.leave.values():
            event.set()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


@in_loop
async def test_no_more_than_the_cores_are_inside() -> None:
    crowd = Crowd(CoreGate(2))
    for name in "abcd":
        await crowd.come(name, 1.0)
    assert crowd.inside == {"a", "b"}
    assert crowd.gate.waiting == 2
    await crowd.go("a")
    assert crowd.inside == {"b", "c"}
    await crowd.disperse()
    assert crowd.most == 2


@in_loop
async def test_on_demand_first_then_by_time_needed_then_refills_and_in_order_of_arrival() -> None:
    crowd = Crowd(CoreGate(1))
    await crowd.come("inside", ON_DEMAND)
    for name, priority in [("refill", BACKGROUND), ("later", 20.0), ("sooner", 10.0), ("now", ON_DEMAND), ("now too", ON_DEMAND)]:
        await crowd.come(name, priority)
    for name in ["inside", "now", "now too", "sooner", "later", "refill"]:
        assert crowd.entered[-1] == name
        await crowd.go(name)
    await crowd.disperse()


@in_loop
async def test_speculative_steps_inside_make_no_request_wait_and_let_no_other_of_their_kind_in() -> None:
    crowd = Crowd(CoreGate(2))
    for name, priority in [("guess", 5.0), ("guess too", 5.0), ("queued guess", 4.0)]:
        await crowd.come(name, priority)
    for name in ("request", "second", "third"):
        await crowd.come(name, ON_DEMAND)
    assert crowd.inside == {"guess", "guess too", "request", "second"}, "as many as there are cores, whatever was begun before"
    for name in ("guess", "guess too"):
        await crowd.go(name)
    assert crowd.inside == {"request", "second"}
    await crowd.go("request")
    assert crowd.inside == {"second", "third"}
    await crowd.go("second")
    assert crowd.inside == {"third"}, "while a request's step runs no guess begins"
    await crowd.go("third")
    assert crowd.inside == {"queued guess"}
    await crowd.disperse()


@in_loop
async def test_steps_that_mostly_wait_begin_beside_those_of_requests() -> None:
    crowd = Crowd(CoreGate(3, yielding=False))
    await crowd.come("request", ON_DEMAND)
    for name in ("guess", "guess too", "queued guess"):
        await crowd.come(name, 5.0)
    assert crowd.inside == {"request", "guess", "guess too"}
    await crowd.disperse()


@in_loop
async def test_a_step_that_a_request_adopted_moves_ahead() -> None:
    crowd, adopted = Crowd(CoreGate(1)), object()
    await crowd.come("inside", ON_DEMAND)
    await crowd.come("first", 5.0)
    await crowd.come("planned", 50.0, key=adopted)
    await crowd.come("its code", 50.0, key=adopted)
    crowd.gate.hurry(adopted)
    for name in ["inside", "planned", "its code", "first"]:
        await crowd.go(name)
    assert crowd.entered == ["inside", "planned", "its code", "first"]
    crowd.gate.hurry(adopted)  # nobody waits any more
    await crowd.disperse()


@in_loop
async def test_cancelled_while_waiting_it_takes_no_turn_and_loses_nobody_elses() -> None:
    crowd = Crowd(CoreGate(1))
    for name in ["inside", "gives up", "next"]:
        await crowd.come(name, 1.0)
    await crowd.cancel("gives up")
    assert crowd.gate.waiting == 1
    await crowd.go("inside")
    assert crowd.inside == {"next"}
    await crowd.disperse()


@in_loop
async def test_cancelled_in_the_moment_it_is_let_in_it_passes_its_turn_on() -> None:
    gate, crowd = CoreGate(1), Crowd(CoreGate(1))
    await gate.enter(1.0)
    crowd.gate = gate
    await crowd.come("gives up", 1.0)
    await crowd.come("next", 1.0)
    gate.leave(1.0)
    crowd.tasks["gives up"].cancel()  # its turn has come, but it does not know yet
    await settle()
    assert crowd.entered == ["next"]
    await crowd.disperse()


Step = tuple[str, int, float]
steps = st.lists(
    st.tuples(
        st.sampled_from(["come", "come", "go", "cancel", "hurry", "turn"]), st.integers(0, 7), st.sampled_from([0.0, 1.0, 2.0])
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(cores=st.integers(1, 3), story=steps)
def test_whatever_happens_no_turn_is_lost_and_none_is_given_twice(cores: int, story: list[Step]) -> None:
    @in_loop
    async def body() -> None:
        crowd = Crowd(CoreGate(cores))
        for what, number, priority in story:
            name = f"{number}"
            if what == "come":
                name = f"{number}-{len(crowd.tasks)}"
                crowd.leave[name] = asyncio.Event()
                crowd.tasks[name] = asyncio.ensure_future(crowd._step(name, priority, number))
            elif what == "hurry":
                crowd.gate.hurry(number)
            elif what == "turn":
                await asyncio.sleep(0)
            elif crowd.tasks:
                chosen = list(crowd.tasks)[number % len(crowd.tasks)]
                if what == "go":
                    crowd.leave[chosen].set()
                else:
                    crowd.tasks[chosen].cancel()
            assert len(crowd.demanded) <= cores
            assert len(crowd.inside - crowd.demanded) <= cores
        await crowd.disperse()
        assert crowd.most <= 2 * cores
        assert crowd.gate.waiting == 0
        late = Crowd(crowd.gate)  # every turn came back
        for number in range(cores):
            await late.come(f"{number}", 1.0)
        assert len(late.inside) == cores
        await late.disperse()

    body()


# -- memory


@given(st.integers(0, 1000), st.lists(st.integers(1, 500), max_size=20))
def test_memory_is_never_promised_twice(total: int, wanted: list[int]) -> None:
    ledger, held = MemoryLedger(total), []
    for size in wanted:
        fits = sum(held) + size <= total
        assert ledger.reserve(size) is fits
        if fits:
            held.append(size)
        assert ledger.used_mb == sum(held) <= total
        assert ledger.free_mb == total - sum(held)
    for size in held:
        ledger.give_back(size)
    assert ledger.free_mb == total


def test_the_machine_has_memory() -> None:
    assert 0 < machine_memory_mb() < 1 << 30
