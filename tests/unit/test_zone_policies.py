"""What decides around tier 2, without a cache: who holds what, when to leave a replica alone, who may ask, what a range means."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.catalog.routes import NodeRoute
from orchestrator.planner.caches import CacheNews
from orchestrator.zone_cache.admission import judge
from orchestrator.zone_cache.app import Unsatisfiable, byte_range
from orchestrator.zones import caches_by_zone
from workers.code.breaker import FIRST_S, LONGEST_S, Breaker
from workers.code.rendezvous import ranked
from workers.rpc.transport import Peer

replicas = st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=8, unique=True)
KEYS = [f"{number:064x}" for number in range(4000)]


# -- rendezvous


@given(st.text(), replicas, st.randoms())
def test_everybody_ranks_alike_whatever_order_he_knows_them_in(key: str, known: list[str], random: object) -> None:
    order = ranked(key, known)
    assert sorted(order) == sorted(known)
    shuffled = list(known)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert ranked(key, shuffled) == order


@given(st.text(), replicas, st.text(min_size=1, max_size=20))
def test_one_that_comes_or_goes_moves_only_what_is_its_own(key: str, known: list[str], other: str) -> None:
    without = [one for one in known if one != other]
    with_it = ranked(key, [*without, other])
    assert [one for one in with_it if one != other] == ranked(key, without)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_replicas_hold_about_the_same(count: int) -> None:
    held = Counter(ranked(key, [f"10.0.0.{number}:8705" for number in range(count)])[0] for key in KEYS)
    fair = len(KEYS) / count
    assert all(abs(found - fair) < 0.12 * fair for found in held.values()), held


# -- breaker


def test_a_replica_that_failed_is_left_alone_then_tried_by_one() -> None:
    breaker = Breaker()
    assert breaker.admits(0)
    breaker.failed(10)
    assert not breaker.admits(10 + FIRST_S / 2)
    assert breaker.admits(10 + FIRST_S)
    assert not breaker.admits(10 + FIRST_S), "one tries, the others wait for it"
    breaker.worked()
    assert breaker.closed
    assert breaker.admits(11)


def test_the_pause_doubles_with_each_try_that_fails_up_to_its_longest() -> None:
    breaker, now, pauses = Breaker(), 0.0, []
    breaker.failed(now)
    for _ in range(8):
        began = now
        while not breaker.admits(now):
            now += 0.25
        pauses.append(now - began)
        breaker.failed(now)
    assert pauses == [1, 2, 4, 8, 16, LONGEST_S, LONGEST_S, LONGEST_S]


def test_failures_of_what_was_asked_before_count_once() -> None:
    breaker = Breaker()
    for late in range(20):
        breaker.failed(late / 100)
    assert breaker.admits(FIRST_S + 0.2)


@given(st.lists(st.tuples(st.sampled_from(["failed", "worked", "ask"]), st.floats(0, 100)), max_size=60))
def test_a_replica_is_never_left_alone_for_longer_than_the_longest_pause(steps: list[tuple[str, float]]) -> None:
    breaker, now = Breaker(), 0.0
    for what, elapsed in steps:
        now += elapsed
        if what == "ask":
            breaker.admits(now)
        elif what == "failed":
            breaker.failed(now)
        else:
            breaker.worked()
    assert breaker.admits(now + LONGEST_S)


# -- who may


def member(name: str, role: str = "node", *tenants: str, zone: str = "", address: str = "10.0.0.2:8703") -> NodeRoute:
    return NodeRoute(name, 1, role, address, zone, f"print of {name}", True, 1, tenants=tenants)


def shown(name: str, role: str = "node") -> Peer:
    return Peer(role, name, f"print of {name}")


TABLE = {one.name: one for one in (member("n1"), member("n2", "node", "acme"), member("f1", "flow"), member("g1", "gateway"))}


@pytest.mark.parametrize(
    ("peer", "tenant", "filling", "why"),
    [
        (None, "acme", False, ""),
        (None, "acme", True, ""),
        (shown("n1"), "acme", False, ""),
        (shown("n1"), "acme", True, "a node has nothing to ask"),
        (shown("n2"), "acme", False, ""),
        (shown("n2"), "globex", False, "may not hold code of tenant globex"),
        (shown("f1", "flow"), "globex", True, ""),
        (shown("f1", "flow"), "globex", False, ""),
        (Peer("flow", "flow@host", "made beside control"), "globex", True, ""),
        (Peer("node", "node@host", "made beside control"), "globex", False, ""),
        (shown("g1", "gateway"), "acme", False, "a gateway has nothing to ask"),
        (shown("n9"), "acme", False, "no member"),
        (Peer("node", "n1", "an older certificate"), "acme", False, "no member"),
        (Peer("flow", "n1", "print of n1"), "acme", True, "no member"),
    ],
)
def test_who_may_read_and_fill_what(peer: Peer | None, tenant: str, filling: bool, why: str) -> None:
    said = judge(TABLE)(peer, tenant, filling)
    assert why in said
    assert bool(why) == bool(said)


# -- zones


def test_caches_are_found_by_zone_and_those_of_settings_belong_to_ours() -> None:
    members = [
        member("z1", "zone-cache", address="10.0.0.5:8705"),
        member("z2", "zone-cache", zone="west", address="10.0.0.6:8705"),
        member("z3", "zone-cache", zone="west", address="10.0.0.4:8705"),
        member("n1"),
    ]
    assert caches_by_zone(members) == {"default": ["10.0.0.5:8705"], "west": ["10.0.0.4:8705", "10.0.0.6:8705"]}
    assert caches_by_zone(members, "east", ["/run/z.sock"])["east"] == ["/run/z.sock"]
    assert caches_by_zone([member("n1")], "east") == {}


class Heard:
    def __init__(self, member: str) -> None:
        self.member = member
        self.told: list[tuple[str, list[str]]] = []

    def tell_caches(self, zone: str, addresses: list[str]) -> None:
        self.told.append((zone, addresses))


def test_nodes_hear_of_the_caches_of_their_own_zone_when_those_change() -> None:
    table = {"n1": member("n1"), "n2": member("n2", zone="west")}
    news = CacheNews(table, "east")
    nodes = [Heard("n1"), Heard("n2"), Heard("")]
    west = member("z1", "zone-cache", zone="west", address="10.0.0.5:8705")
    news.on_member("n1", table["n1"], nodes)
    assert [one.told for one in nodes] == [[], [], []], "no cache changed"
    news.on_member("z1", west, nodes)
    assert [one.told.pop() for one in nodes] == [("default", []), ("west", ["10.0.0.5:8705"]), ("east", [])]
    news.on_member("z1", west, nodes)
    assert [one.told for one in nodes] == [[], [], []], "the same again"
    late = Heard("n2")
    news.tell(late)
    assert late.told == [("west", ["10.0.0.5:8705"])]
    news.on_member("z1", None, nodes)
    assert nodes[1].told == [("west", [])]


# -- ranges


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("", None),
        ("bytes=0-0", (0, 0)),
        ("bytes=2-", (2, 9)),
        ("bytes=2-4", (2, 4)),
        ("bytes=2-99", (2, 9)),
        ("bytes=-3", (7, 9)),
        ("bytes=-99", (0, 9)),
        ("bytes=4-2", None),
        ("bytes=0-1,3-4", None),
        ("bytes=-", None),
        ("lines=0-1", None),
        ("bytes=a-b", None),
    ],
)
def test_ranges_of_ten_bytes(header: str, part: tuple[int, int] | None) -> None:
    assert byte_range(header, 10) == part


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-11", "bytes=-0"])
def test_ranges_behind_the_end(header: str) -> None:
    with pytest.raises(Unsatisfiable):
        byte_range(header, 10)


@given(st.text(max_size=30), st.integers(0, 1000))
def test_any_header_gives_a_part_the_whole_or_a_refusal(header: str, size: int) -> None:
    try:
        part = byte_range(header, size)
    except Unsatisfiable:
        return
    assert part is None or 0 <= part[0] <= part[1] < size
