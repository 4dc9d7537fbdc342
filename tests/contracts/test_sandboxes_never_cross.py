"""A hostile function in a real sandbox, of either driver, at everything it must not reach, by either backend.

Also while it is being attached, in addresses that others had before, and while the proxies change over. What it does is
tests/doubles/hostile_function.py; with FULL=1 10,000 attempts of each sandbox, else of all together.
"""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.besieging import address_of, bait, listening, neighbourhood, targets, tempted
from doubles.microvms import Shared, guest_image, living, microvms
from doubles.private_networks import ECHO_PORT, INTERNET, SERVER, Host, greeting
from doubles.process_bench import Running, bench
from doubles.profiles import FULL
from doubles.tunnel_planes import BACKENDS, Backend, Network, private_network
from doubles.tunnel_planes import PATIENCE_S as ATTACHED_S

from workers.network.kernel import cables
from workers.ports import NetworkUnavailable

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

SOURCE = (Path(__file__).parents[1] / "doubles" / "hostile_function.py").read_text()
ATTEMPTS = 10_000 if FULL else 1_000
LIVES = 40 if FULL else 2
FAILOVERS = 5 if FULL else 1
PATIENCE_S = 120.0
PLACES = 2  # times 400, drawn anew for each siege


@pytest.fixture(scope="module", params=["process", "microvm"])
def sandboxes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp(request.param)
    image = guest_image() if request.param == "microvm" else None
    with living(lambda: bench(folder) if image is None else microvms(folder, image)) as made:
        yield made


@pytest.fixture(scope="module", params=BACKENDS, ids=lambda backend: backend.name)
def running(request: pytest.FixtureRequest, sandboxes: Shared) -> Iterator[Network]:
    """One for a driver's tests, which leave it as they found it. It ends first: a driver looks for processes that it left."""
    backend: Backend = request.param
    with private_network(backend) as made:
        bait(made)
        yield made


class Function:
    """An instance of the hostile function, attached or not."""

    def __init__(self, running: Network, sandboxes: Shared, tenant: str) -> None:
        self._running, self._sandboxes, self.tenant = running, sandboxes, tenant
        self.instance: Running = sandboxes.run(sandboxes.bench.run(SOURCE, tenant=tenant))
        self._detach: Callable[[], None] = lambda: None

    def ask(self, what: str, **how: Any) -> Any:
        return self._sandboxes.run(self.instance.value({"do": what, "with": how}, PATIENCE_S), 2 * PATIENCE_S)

    def attach(self) -> None:
        network = self.instance.clone.network
        self._detach = self._running.planes[0].join(f"{self.tenant}/main", network, patience_s=ATTACHED_S)

    def detach(self) -> None:
        detach, self._detach = self._detach, lambda: None
        detach()

    def at_home(self, timeout_s: float = 30.0) -> str:
        """Whose server answers it; empty: nobody's."""
        return str(self.ask("greet", host=SERVER, port=ECHO_PORT, timeout_s=timeout_s))

    def end(self) -> None:
        self.detach()
        self._sandboxes.run(self.instance.clone.kill("the test is over"))


@pytest.fixture
def function(running: Network, sandboxes: Shared) -> Iterator[Callable[[str], Function]]:
    """Makes instances, which end with the test."""
    made: list[Function] = []

    def make(tenant: str) -> Function:
        made.append(Function(running, sandboxes, tenant))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture
def strangers(running: Network) -> Iterator[list[Host]]:
    """One of umbra and another of acme, on the same node: they would answer whoever reaches them."""
    plane = running.planes[0]
    with plane.attached("umbra/main") as stranger, plane.attached("acme/main") as twin:
        yield tempted([stranger, twin])
        assert stranger.run(greeting)[0] == "umbra"


def siege(running: Network, strangers: list[Host], seed: int) -> dict[str, Any]:
    """Where to, and as whom."""
    chance, others = random.Random(seed), [address_of(stranger) for stranger in strangers]
    places = [list(place) for _ in range(PLACES) for place in targets(running, chance, others)]
    node = running.bed.nodes[0].address
    sources = [SERVER, *others, "100.96.0.10", "100.112.0.10", "100.80.0.1", "10.0.0.10", "127.0.0.1", INTERNET, node]
    return {"places": places, "sources": [*sources, "169.254.1.1"], "seed": seed}


def test_thousands_of_attempts(running: Network, strangers: list[Host], function: Callable[[str], Function]) -> None:
    hostile = function("acme")
    hostile.attach()
    assert hostile.at_home() == "acme"
    allowed = {"places": [[SERVER, ECHO_PORT]], "sources": [SERVER]}
    eventually(lambda: hostile.ask("besiege", **allowed, count=200, seed=1)["answered"], "an answer is seen where there is one")
    with listening([*neighbourhood(running), *strangers], b"forged") as heard:
        found = hostile.ask("besiege", **siege(running, strangers, 2), count=ATTEMPTS)
    assert found == {"made": ATTEMPTS, "answered": []}
    assert not heard
    assert hostile.at_home() == "acme"


def test_what_it_tries_at_its_own_network_is_refused(
    running: Network, strangers: list[Host], function: Callable[[str], Function]
) -> None:
    hostile = function("acme")
    hostile.attach()
    wanted = siege(running, strangers, 3)
    found = hostile.ask("tamper", places=wanted["places"][:100], sources=wanted["sources"], address=address_of(strangers[0]))
    assert len(found) > 20
    assert {trick: answered for trick, (_, answered) in found.items() if answered} == {}
    assert {trick for trick, (refused, _) in found.items() if not refused} == set(), found
    assert hostile.at_home() == "acme"


def test_while_it_is_attached_and_others_come_and_go(
    running: Network, strangers: list[Host], function: Callable[[str], Function]
) -> None:
    """Its attempts began before it was attached, go on until after it was detached, beside others of both tenants."""
    hostile = function("acme")
    hostile.ask("begin", **siege(running, strangers, 4))
    others = [function(tenant) for tenant in ("umbra", "acme")]
    for one in (hostile, *others):
        one.attach()
        assert one.at_home() == one.tenant
    for one in (*others, hostile):
        one.detach()
        assert one.at_home(timeout_s=0.3) == ""
    found = hostile.ask("end", least=400)
    assert found["answered"] == []


def test_what_an_address_was_before_helps_nobody(
    running: Network, strangers: list[Host], function: Callable[[str], Function], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instances of both tenants by turns, in few addresses; each ends in the midst of what it asks for."""
    monkeypatch.setattr(cables, "LAST_INDEX", cables.FIRST_INDEX + 3)
    allowed = {"places": [[SERVER, ECHO_PORT]], "sources": [SERVER]}
    for life in range(LIVES):
        before, hostile = function("umbra"), function("acme")
        for one in (before, hostile):
            eventually(lambda one=one: attached(one), "an address is free")
            assert one.at_home() == one.tenant
            one.ask("begin", **allowed, seed=life)
            if one is before:
                one.end()
        hostile.ask("end", least=1)
        answered = eventually(lambda: hostile.ask("besiege", **allowed, count=200, seed=life)["answered"], "it is answered")  # noqa: B023
        assert set(answered[0]) >= {SERVER, ECHO_PORT}
        found = hostile.ask("besiege", **siege(running, strangers, 10 + life), count=200)
        assert found["answered"] == []
        hostile.end()


def attached(one: Function) -> bool:
    try:
        one.attach()
    except NetworkUnavailable:  # all addresses are taken, until the last owners are gone and forgotten
        return False
    return True


def test_while_the_proxies_change_over(running: Network, strangers: list[Host], function: Callable[[str], Function]) -> None:
    hostile, specs = function("acme"), running.specs
    hostile.attach()
    for turn in range(FAILOVERS):
        carrier = eventually(lambda: carriers(running), "a proxy carries")[0]
        hostile.ask("begin", **siege(running, strangers, 20 + turn))
        running.proxies["acme"][carrier].kill()
        eventually(lambda: hostile.at_home() == "acme", "the other proxy serves")
        found = hostile.ask("end", least=200)
        assert found["answered"] == []
        running.proxies["acme"][carrier] = running.backend.proxy(running.bed, "acme", carrier, [specs["acme"]])


def carriers(running: Network) -> list[int]:
    """Places of acme's proxies that the node's tunnel goes by."""
    reason = running.planes[0].states()["acme/main"].reason
    return [place for place, host in enumerate(running.bed.proxies["acme"]) if host.name in reason]


def eventually(true: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + PATIENCE_S
    while not (found := true()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return found
