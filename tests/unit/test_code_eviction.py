"""GDSF: what goes first, and what never does."""

from hypothesis import given
from hypothesis import strategies as st

from workers.code.eviction import SIZE_FLOOR, Gdsf, refetch_cost
from workers.code.room import Bounds, NoRoom, Room

KEYS = [("acme", "a"), ("acme", "b"), ("rival", "c"), ("rival", "d"), ("third", "e")]
KEY = st.integers(0, 12)
SIZES = st.integers(0, 40_000_000)


def test_the_small_the_used_and_the_recent_stay() -> None:
    books: Gdsf[str] = Gdsf()
    books.add("large", 20_000_000, refetch_cost(20_000_000))
    books.add("small", 20_000, refetch_cost(20_000))
    assert books.victims(1) == [("large", 20_000_000)]
    books.add("one", 10_000, 2.0)
    books.add("two", 10_000, 2.0)
    books.use("one")
    assert [key for key, _ in books.victims(20_001)] == ["small", "two"]


def test_of_equals_the_one_used_longest_ago_goes() -> None:
    books: Gdsf[str] = Gdsf()
    for name in "abc":
        books.add(name, 10_000, 1.0)
    books.remove("a")
    books.add("a", 10_000, 1.0)
    assert [key for key, _ in books.victims(30_000)] == ["b", "c", "a"]


def test_what_was_used_often_long_ago_ages() -> None:
    books: Gdsf[int] = Gdsf()
    books.add(-1, 10_000, 1.0, uses=20)
    for number in range(1000):
        books.add(number, 10_000, 1.0)
        if len(books) > 4 and -1 in [key for key, _ in books.victims(10_000)]:
            break
    else:
        raise AssertionError("a popular one of old days stays for ever")
    assert number >= 20


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "use", "remove", "room"]), st.integers(0, 12), SIZES, st.frozensets(st.integers(0, 12))
        ),
        max_size=120,
    )
)
def test_pinned_ones_stay_enough_goes_and_the_clock_never_goes_back(steps: list[tuple[str, int, int, frozenset[int]]]) -> None:
    books: Gdsf[int] = Gdsf()
    sizes: dict[int, int] = {}
    clock = 0.0
    for what, key, size, pinned in steps:
        if what == "add":
            books.add(key, size, refetch_cost(size))
            sizes[key] = size
        elif what == "use" and key in sizes:
            books.use(key)
        elif what == "remove" and key in sizes:
            assert books.remove(key) == sizes.pop(key)
        elif what == "room":
            priorities = {one: books.priority(one) for one in books}
            gone = books.victims(size, lambda one, pinned=pinned: one not in pinned)  # type: ignore[misc]
            names = [one for one, _ in gone]
            assert not set(names) & pinned
            assert sum(freed for _, freed in gone) >= min(size, sum(sizes[one] for one in sizes if one not in pinned))
            assert size == 0 or not gone or sum(freed for _, freed in gone[:-1]) < size, "one more than was needed"
            for one, freed in gone:
                assert freed == sizes.pop(one)
            kept = [priorities[one] for one in sizes if one not in pinned]
            assert not gone or not kept or max(priorities[one] for one in names) <= min(kept)
        assert books.clock >= clock
        clock = books.clock
        assert books.size == sum(sizes.values())
        assert set(books) == set(sizes)
        assert all(books.priority(one) >= 0 for one in books)


@given(st.lists(st.tuples(st.integers(0, 8), SIZES), min_size=1, max_size=60), SIZES, SIZES)
def test_all_or_none_takes_nothing_in_vain(added: list[tuple[int, int]], excess: int, size: int) -> None:
    books: Gdsf[int] = Gdsf()
    for key, one in added:
        books.add(key, one, refetch_cost(one))
    before, below = books.size, books.fresh(size, refetch_cost(size))
    priorities = {key: books.priority(key) for key in books}
    gone = books.victims(excess, below=below, all_or_none=True)
    assert all(priorities[key] < below for key, _ in gone)
    freed = sum(one for _, one in gone)
    assert books.size == before - freed
    assert freed == 0 or freed >= excess
    cheaper = sum(books.size_of(key) for key in books if priorities[key] < below)
    assert gone or excess == 0 or cheaper < excess


def test_an_empty_layer_is_not_kept_for_ever() -> None:
    books: Gdsf[str] = Gdsf()
    books.add("empty", 0, refetch_cost(0))
    assert books.priority("empty") == refetch_cost(0) / SIZE_FLOOR


# -- the room of a node


@given(
    st.lists(
        st.tuples(st.sampled_from(["urgent", "ahead", "pin", "unpin", "use", "disk"]), st.sampled_from(KEYS), st.integers(1, 60)),
        max_size=80,
    )
)
def test_bounds_and_quotas_hold_while_what_is_not_pinned_can_go(steps: list[tuple[str, tuple[str, str], int]]) -> None:
    gone: list[tuple[str, str]] = []
    room = Room(Bounds(100, 60), lambda key, size, why: gone.append(key))
    held: dict[tuple[str, str], int] = {}
    pins: dict[tuple[str, str], int] = {}
    for what, key, size in steps:
        gone.clear()
        if what in ("urgent", "ahead") and key not in held:
            try:
                with room.reserved(key, size, what == "urgent"):
                    pass
            except NoRoom:
                own = sum(held[one] for one in held if one[0] == key[0] and pins.get(one))
                assert what == "ahead" or own + size > 60, "a request is refused only for its own tenant's quota"
            else:
                room.keep(key, size)
                held[key] = size
        elif what == "pin":
            room.pin([key])
            pins[key] = pins.get(key, 0) + 1
        elif what == "unpin" and pins.get(key):
            room.unpin([key])
            pins[key] -= 1
        elif what == "use" and key in held:
            room.use(key)
        elif what == "disk":
            freed = room.free(size)
            assert freed == sum(held[one] for one in gone)
        assert not any(pins.get(one) for one in gone)
        for one in gone:
            del held[one]
        assert room.bytes_held == sum(held.values())
        for tenant in ("acme", "rival", "third"):
            own = [one for one in held if one[0] == tenant]
            assert room.bytes_of(tenant) == sum(held[one] for one in own) <= 60
        if what == "urgent" and room.bytes_held > 100:
            assert all(pins.get(one) for one in held if one != key), "over the bound while something could go"
        if what == "ahead":
            assert room.bytes_held <= 100 or not held.get(key)
