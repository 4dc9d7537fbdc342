"""Which versions get a function template, and what a node does with them."""

import asyncio
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from doubles.loop import in_loop, settle, until
from doubles.nodes import Caller, Rig, running_node, spec
from hypothesis import given
from hypothesis import strategies as st

from workers.function_templates import (
    CLONES,
    INIT_AT_LEAST_S,
    INIT_AT_MOST_S,
    MAX_AGE_S,
    SUPERSEDED_S,
    TRIES,
    UNUSED_S,
    Candidate,
    Rules,
    Standing,
    choose,
    failed,
    init_limit_s,
    outlived,
    wanted,
)
from workers.ports import DriverError, InitFailed, TemplateRefused
from workers.rpc.messages import Drain, Retire, Rpc
from workers.sealing import Sealer
from workers.templating import AT_ONCE
from workers.versions import VersionSpec

RULES = Rules(50.0, 1000)
SLOW_MS = 400.0


def candidate(name: str = "a", uses: int = 1, now: float = 0.0, number: int = 1, **more: object) -> Candidate:
    one = Candidate(f"acme/{name}:{number}", 128, SLOW_MS)
    for _ in range(uses):
        one.used(now)
    for key, value in more.items():
        setattr(one, key, value)
    return one


def held(name: str, memory_mb: int = 100, **more: object) -> Candidate:
    return candidate(name, standing=Standing.HELD, memory_mb=memory_mb, **more)  # type: ignore[arg-type]


# -- the policy


def test_one_is_made_where_init_is_over_the_threshold() -> None:
    assert wanted(candidate(), RULES, 0.0)
    assert not wanted(candidate(init_ms=49.9), RULES, 0.0)
    assert not wanted(candidate(), Rules(0, 1000), 0.0)
    assert not wanted(candidate(), Rules(50, 0), 0.0)
    assert not wanted(candidate(standing=Standing.REFUSED), RULES, 0.0)
    assert not wanted(held("a"), RULES, 0.0)
    assert wanted(held("a", made=CLONES), RULES, 0.0)
    assert not wanted(held("a", born=1.0), RULES, MAX_AGE_S + 1.0)
    assert wanted(held("a", born=1.0), RULES, MAX_AGE_S + 1.1)


def test_the_most_worth_is_made_first_and_takes_the_place_of_less() -> None:
    rare, often = candidate("rare"), candidate("often", uses=10)
    chosen = choose([rare, often], RULES, 0.0)
    assert chosen == (often, [])
    least, more = held("least", 500), held("more", 450, uses=100)
    assert choose([often, least, more], RULES, 0.0) == (often, [least])
    assert choose([candidate("like", uses=9), held("x", 500, uses=45), more], RULES, 0.0) is None


def test_worth_fades() -> None:
    """Used much, but long ago, is worth less than used a little just now."""
    old, young = held("old", 950, uses=20), candidate("young", uses=3, now=20_000.0)
    assert choose([old, young], RULES, 20_000.0) == (young, [old])


candidates = st.lists(
    st.builds(
        lambda number, shape, init, standing, memory, uses: candidate(
            f"f{number}",
            uses,
            shape_mb=shape,
            init_ms=init,
            standing=standing,
            memory_mb=memory if standing is Standing.HELD else 0,
        ),
        st.integers(0, 99),
        st.sampled_from([128, 256, 512]),
        st.floats(0, 2000),
        st.sampled_from(list(Standing)),
        st.integers(1, 512),
        st.integers(1, 50),
    ),
    max_size=12,
)


@given(candidates, st.integers(0, 3000), st.floats(0, 500), st.floats(0, 1e5))
def test_what_is_chosen_fits_and_gives_up_no_more_than_it_must(
    known: list[Candidate], cap_mb: int, threshold: float, now: float
) -> None:
    rules = Rules(threshold, cap_mb)
    chosen = choose(known, rules, now)
    if chosen is None:
        return
    one, gone = chosen
    assert wanted(one, rules, now)
    assert one not in gone
    assert all(other.standing is Standing.HELD for other in gone)
    left_mb = sum(other.memory_mb for other in known if other not in gone)
    assert left_mb + one.shape_mb <= cap_mb
    if gone:
        assert left_mb + gone[-1].memory_mb + one.shape_mb > cap_mb


def test_an_older_version_goes_once_it_is_not_used_any_more() -> None:
    old, new = held("a", number=1), candidate("a", number=2)
    known = {one.version: one for one in (old, new)}
    assert outlived(known, SUPERSEDED_S) == []
    assert [one for one, _ in outlived(known, SUPERSEDED_S + 1)] == [old]
    assert outlived({old.version: old}, UNUSED_S) == []
    assert [one for one, _ in outlived({old.version: old}, UNUSED_S + 1)] == [old]


def test_failures_are_tried_again_later_a_few_times() -> None:
    one, now, pauses = candidate(), 0.0, []
    for _ in range(TRIES):
        assert one.standing is Standing.NONE
        failed(one, "no", False, now)
        pauses.append(one.not_before - now)
        now = one.not_before
    assert one.standing is Standing.REFUSED
    assert pauses == sorted(pauses)
    assert f"{TRIES} times" in one.reason


# -- the node


SLOW = spec("slow")


async def started(rig: Rig, version: VersionSpec = SLOW) -> Caller:
    """One instance of it has started, its init was slow, and it has ended."""
    caller = await rig.caller()
    rig.driver.init_ms = SLOW_MS
    assert (await caller.invoke(version))[0].status == "ok"
    rig.node.idling.cool({version.version.rpartition(":")[0]})
    await rig.quiet()
    return caller


def standing(rig: Rig) -> list[tuple[str, str]]:
    return [(one.standing.value, one.reason) for one in rig.node.templates.of("acme")]


async def is_held(rig: Rig) -> None:
    await until(lambda: [state for state, _ in standing(rig)] == ["held"], f"a template is held: {standing(rig)}")


@in_loop
async def test_a_slow_init_earns_a_template_and_the_next_start_uses_it(tmp_path: Path) -> None:
    async with running_node(tmp_path, templates=RULES) as rig:
        caller = await started(rig)
        await is_held(rig)
        assert rig.node.instances.memory.used_mb == rig.driver.template_mb
        rig.code.everything_held = False  # not even asked: a template has the code
        result, _ = await caller.invoke(SLOW)
        assert (result.status, result.start) == ("ok", "cold")
        assert result.timings.init < SLOW_MS
        assert len(rig.driver.templates[0].clones) == 1
        assert rig.node.templates.cloned == 1


@in_loop
async def test_a_quick_init_earns_none_and_says_so(tmp_path: Path) -> None:
    async with running_node(tmp_path, templates=RULES) as rig:
        caller = await rig.caller()
        await caller.invoke(SLOW)
        await settle(20)
        assert standing(rig) == [("none", "its init takes 3 ms, under 50 ms")]
        assert rig.driver.templates == []


@in_loop
async def test_values_stay_out_of_a_template_and_reach_its_clones(tmp_path: Path) -> None:
    key = Fernet.generate_key()
    version = spec("slow", environment=Sealer(key).seal({"TOKEN": "secret"}))
    async with running_node(tmp_path, templates=RULES, key=key) as rig:
        caller = await started(rig, version)
        await is_held(rig)
        work = rig.driver.templates[0].work
        assert (work.environment, work.withheld) == ({}, ("TOKEN",))
        await caller.invoke(version)
        became = rig.driver.templates[0].clones[0].work
        assert became is not None
        assert (became.environment, became.withheld) == ({"TOKEN": "secret"}, None)


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (TemplateRefused("thread", "after the import threads run"), "thread", "threads run"),
        (InitFailed({"type": "KeyError", "message": "'DB'"}), "init", "its import failed there: KeyError: 'DB'"),
        (TimeoutError(), "init", "took over 10 s"),
    ],
)
def test_a_refusal_is_for_good_and_starts_are_as_before(tmp_path: Path, error: Exception, kind: str, reason: str) -> None:
    @in_loop
    async def check() -> None:
        async with running_node(tmp_path, templates=RULES) as rig:
            rig.driver.template_error = error
            caller = await started(rig)
            await until(lambda: rig.node.templates.refused[kind] == 1, "it was refused")
            await until(lambda: standing(rig)[0][0] == "refused", "it says so")
            assert reason in standing(rig)[0][1]
            assert (await caller.invoke(SLOW))[0].status == "ok"
            await settle(20)
            assert rig.node.templates.refused.total() == 1
            assert rig.node.instances.memory.used_mb == SLOW.memory_mb  # of the instance

    check()


@in_loop
async def test_a_template_that_cannot_be_cloned_costs_no_request_and_is_made_again(tmp_path: Path) -> None:
    async with running_node(tmp_path, templates=RULES) as rig:
        caller = await started(rig)
        await is_held(rig)
        rig.driver.template_clone_error = DriverError("the original has gone")
        assert (await caller.invoke(SLOW))[0].status == "ok"
        assert "the original has gone" in standing(rig)[0][1]
        rig.driver.template_clone_error = None
        rig.node.templates._candidates[SLOW.version].not_before = 0.0
        rig.node.templates._nudge.set()
        await is_held(rig)
        assert len(rig.driver.templates) == 2


@in_loop
async def test_one_that_is_killed_is_told_and_made_again(tmp_path: Path) -> None:
    async with running_node(tmp_path, templates=RULES) as rig:
        await started(rig)
        await is_held(rig)
        rig.driver.templates[0].die("signal 9")
        assert standing(rig) == [("none", "it ended: signal 9")]
        assert rig.node.instances.memory.used_mb == 0


@in_loop
async def test_a_hook_that_raises_fails_its_instance_and_not_the_template(tmp_path: Path) -> None:
    async with running_node(tmp_path, templates=RULES) as rig:
        caller = await started(rig)
        await is_held(rig)
        rig.driver.init_error = InitFailed({"type": "ConnectionError", "message": "no database"})
        result, _ = await caller.invoke(SLOW)
        assert result.status == "init-failed"
        assert result.error is not None
        assert result.error.message == "no database"
        assert [state for state, _ in standing(rig)] == ["held"]


@in_loop
async def test_requests_come_before_templates_where_memory_is_short(tmp_path: Path) -> None:
    async with running_node(tmp_path, memory_mb=256, templates=RULES) as rig:
        rig.driver.template_mb = 120
        caller = await started(rig)
        await is_held(rig)
        await until(lambda: not rig.node.templates._rests, "none is made until something new is known")
        rig.driver.init_ms = 3.0  # which the other is not
        other = spec("other")
        assert (await caller.invoke(other))[0].status == "ok"
        assert rig.driver.templates[0].ended == "gave way to a request"
        assert ("none", "gave way to a request") in standing(rig)


@in_loop
async def test_none_is_made_without_memory(tmp_path: Path) -> None:
    async with running_node(tmp_path, memory_mb=256, templates=RULES) as rig:
        caller = await rig.caller()
        rig.driver.init_ms = SLOW_MS
        await caller.invoke(SLOW)
        await until(lambda: standing(rig) == [("none", "no memory left on the node")], f"it says so: {standing(rig)}")


@in_loop
async def test_draining_and_retiring_end_it(tmp_path: Path) -> None:
    async with running_node(tmp_path, templates=RULES) as rig:
        caller = await started(rig)
        await is_held(rig)
        caller.connection.send(Rpc.DRAIN, 0, Drain(SLOW.version))
        await until(lambda: rig.driver.templates[0].ended == "draining", "it has ended")
        await until(lambda: rig.code.pins[SLOW.version] == 0, "its code is let go of")
        other = spec("late", tenant="beta")
        await started(rig, other)
        await until(lambda: len(rig.driver.templates) == 2 and rig.node.templates.held_mb > 0, "another is held")
        caller.connection.send(Rpc.RETIRE, 0, Retire("beta"))
        await until(lambda: bool(rig.driver.templates[1].ended), "it has ended")
        assert rig.node.templates.of("beta") == []


@in_loop
async def test_a_version_that_goes_while_its_template_is_made_gets_none(tmp_path: Path) -> None:
    async with running_node(tmp_path, templates=RULES) as rig:
        rig.driver.template_turn.close()
        caller = await started(rig)
        await until(lambda: rig.driver.template_turn.waiting == 1, "it is being made")
        caller.connection.send(Rpc.DRAIN, 0, Drain(SLOW.version))
        await caller.caught_up()
        rig.driver.template_turn.open()
        await until(lambda: bool(rig.driver.templates and rig.driver.templates[0].ended), "it was ended at once")
        assert standing(rig) == []


@in_loop
async def test_an_init_that_hangs_holds_up_its_own_tenant_alone(tmp_path: Path) -> None:
    async with running_node(tmp_path, templates=RULES) as rig:
        rig.driver.template_turns["acme"].close()
        await started(rig)
        await started(rig, spec("slow_too"))
        await until(lambda: len(rig.driver.template_asked) == 1, "one of the tenant's two is being made")
        await started(rig, spec("other", tenant="beta"))
        await until(lambda: [one.standing.value for one in rig.node.templates.of("beta")] == ["held"], "another tenant's is held")
        assert sorted(state for state, _ in standing(rig)) == ["making", "none"]
        rig.driver.template_turns["acme"].open()
        await until(lambda: [state for state, _ in standing(rig)] == ["held", "held"], "then come those that waited")


@in_loop
async def test_a_tenant_whose_init_took_long_rests_while_others_have_their_turn(tmp_path: Path) -> None:
    async with running_node(tmp_path, templates=RULES) as rig:
        for tenant in ("acme", "beta"):
            rig.driver.template_turns[tenant].close()
            for name in ("one", "two"):
                await started(rig, spec(name, tenant=tenant))
        await until(lambda: len(rig.driver.template_asked) == AT_ONCE, "both places are taken")
        await started(rig, spec("late", tenant="gamma"))
        await asyncio.sleep(0.3)
        assert len(rig.driver.template_asked) == AT_ONCE
        for tenant in ("acme", "beta"):
            rig.driver.template_turns[tenant].open()
        await until(lambda: len(rig.driver.template_asked) == 5, "all come")
        assert rig.driver.template_asked[AT_ONCE][0].startswith("gamma/")


@in_loop
async def test_a_templates_init_may_take_some_times_what_an_instances_took(tmp_path: Path) -> None:
    async with running_node(tmp_path, templates=RULES) as rig:
        await started(rig)
        await is_held(rig)
    assert rig.driver.template_asked == [(SLOW.version, INIT_AT_LEAST_S)]
    assert [init_limit_s(candidate(init_ms=ms)) for ms in (0, 4000, 50_000)] == [INIT_AT_LEAST_S, 20, INIT_AT_MOST_S]


@pytest.mark.parametrize("worn", ["clones", "hours"])
@in_loop
async def test_a_used_up_one_serves_until_a_fresh_one_is_there(tmp_path: Path, worn: str) -> None:
    async with running_node(tmp_path, templates=RULES) as rig:
        caller = await started(rig)
        await is_held(rig)
        if worn == "clones":
            rig.node.templates._candidates[SLOW.version].made = CLONES
        else:
            rig.node.templates._candidates[SLOW.version].born -= MAX_AGE_S
        rig.driver.template_turn.close()
        await caller.invoke(SLOW)
        await until(lambda: rig.driver.template_turn.waiting == 1, "a fresh one is being made")
        assert not rig.driver.templates[0].ended
        rig.driver.template_turn.open()
        await until(lambda: bool(rig.driver.templates[0].ended), "the old one has gone")
        assert rig.node.templates.held_mb == rig.driver.template_mb
