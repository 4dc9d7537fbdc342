"""Routes in memory: lookups agree with what was put, a late change never wins, listeners hear of every change once."""

import pytest
from doubles.gateways import KEYS, OTHER_TOKEN, TOKEN, digest, route
from doubles.loop import in_loop
from doubles.nodes import spec
from hypothesis import given
from hypothesis import strategies as st

from graph.ids import FunctionId
from orchestrator.catalog.routes import KeyRoute, Route, decode_key, decode_route, encode
from orchestrator.catalog.watch import RouteTable
from orchestrator.gateway.resolve import NotFound, Unauthorized, authenticate, resolve


def made(name: str, generation: int, numbers: list[int]) -> Route:
    return route(*(spec(name, number) for number in numbers), generation=generation)


changes = st.lists(
    st.tuples(
        st.sampled_from(["f", "g"]),
        st.integers(1, 4),
        st.lists(st.integers(1, 5), min_size=1, max_size=3, unique=True).map(sorted) | st.none(),
        st.booleans(),
    ),
    max_size=20,
)


@given(changes)
def test_whatever_changes_lookups_and_listeners_agree(story: list[tuple[str, int, list[int] | None, bool]]) -> None:
    heard: dict[str, Route | None] = {}
    gone: list[str] = []

    @in_loop
    async def body() -> None:
        table = RouteTable(heard.__setitem__, gone.append)
        for name, generation, numbers, whole in story:
            function = FunctionId(f"acme/{name}")
            before, versions = table.routes.get(function), set(table.versions)
            new = made(name, generation, numbers) if numbers is not None else None
            heard.clear()
            gone.clear()
            if whole:
                table.replace({function: new} if new is not None else {}, {})
                assert set(table.routes) == ({function} if new is not None else set())
            else:
                table.put(function, new)
            late = new is not None and before is not None and before.generation > generation
            if late:
                assert table.routes[function] is before
            elif new is None:
                assert function not in table.routes
            else:
                assert table.routes[function] == new
            if not whole and not late and (new is not None or before is not None):
                assert heard == {function: new}
            assert set(table.versions) == {one.version for kept in table.routes.values() for one in kept.versions}
            assert sorted(gone) == sorted(versions - set(table.versions))
            for kept in table.routes.values():
                assert resolve(table, "acme", kept.function.partition("/")[2])[1].version == f"{kept.function}:{kept.latest}"

    body()


@in_loop
async def test_only_the_first_load_makes_it_loaded_and_reloading_the_same_tells_nobody() -> None:
    heard: list[str] = []
    table = RouteTable(lambda function, _: heard.append(function))
    assert not table.loaded.is_set()
    routes = {"acme/f": made("f", 3, [1, 2])}
    table.replace(routes, dict(KEYS))
    assert table.loaded.is_set()
    table.replace(dict(routes), dict(KEYS))
    assert heard == ["acme/f"]


@in_loop
async def test_keys_belong_to_tenants_and_are_found_by_their_digest_only() -> None:
    table = RouteTable()
    table.replace({}, dict(KEYS))
    assert authenticate(table, f"bearer  {TOKEN} ".encode()).tenant == "acme"
    assert authenticate(table, f"Bearer {OTHER_TOKEN}".encode()).tenant == "other"
    for wrong in (b"", b"Bearer", b"Bearer ", digest(TOKEN).encode(), f"Bearer {digest(TOKEN)}".encode(), TOKEN.encode()):
        with pytest.raises(Unauthorized) as refused:
            authenticate(table, wrong)
        assert TOKEN not in str(refused.value)


@in_loop
async def test_a_name_never_reaches_into_another_tenant() -> None:
    table = RouteTable()
    table.replace({"other/f": route(spec("f", tenant="other"))}, {})
    for target in ("f", "../other/f", "other/f", "/f", "f:1", "f:$LATEST", ""):
        with pytest.raises(NotFound):
            resolve(table, "acme", target)


def test_routes_and_keys_survive_the_wire_and_take_fields_to_come() -> None:
    whole = route(spec("f", 1), spec("f", 2, concurrency=3, environment=b"sealed"), generation=7, calls=["g", "h"])
    assert decode_route(encode(whole)) == whole
    key = KeyRoute("k1", "acme", 3)
    assert decode_key(encode(key)) == key
    assert decode_key(b"\x94" + encode("k1") + encode("acme") + encode(3) + encode("new")) == key
