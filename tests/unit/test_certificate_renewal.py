"""Certificates are renewed in time, by whoever holds one that counts; nobody is locked out meanwhile, and who comes too late is
told the way out."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.joining import AT, Control
from doubles.loop import in_loop, until
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import renewal as renewing
from orchestrator.authority import Authority, make_request
from orchestrator.catalog.routes import NodeRoute
from orchestrator.doctor import installation
from orchestrator.doctor.findings import Level
from orchestrator.joining import JoinFailed, confirm, join, rejoin, renew
from orchestrator.members import admit
from orchestrator.membership import Member, NotJoined, Self, load_member
from orchestrator.renewal import Renewal, keep_certified
from orchestrator.settings import Settings
from orchestrator.validity import Validity, validity
from workers.rpc.connection import Connection, Listening, RpcError, dial, listen
from workers.rpc.messages import Hello
from workers.rpc.transport import Peer

TIMES = st.floats(min_value=0, max_value=4e9)
LIVES = st.floats(min_value=5.0, max_value=4e8)
MARKS = st.floats(min_value=0, max_value=1, exclude_max=True)


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    made = Control(tmp_path)
    yield made
    made.store.close()


@given(TIMES, LIVES, MARKS, st.floats(min_value=0, max_value=1.2))
def test_a_third_or_a_quarter_of_its_life_is_left_for_tries_that_get_denser(
    begins: float, life: float, mark: float, at: float
) -> None:
    held = Validity(begins, begins + life, mark)
    assert 0.24 * life <= held.ends - held.renew_at() <= 0.34 * life
    now = begins + at * life
    assert 1.0 <= held.retry_in(now) <= 3600.0
    assert held.retry_in(now) >= held.retry_in(now + 1.0)
    assert held.ended(now) <= held.ends_soon(now), "who warns of an end has warned before it"
    if now <= held.renew_at():
        assert not held.ends_soon(now), "no alarm before the first try"


def test_what_is_signed_says_from_when_to_when(tmp_path: Path) -> None:
    authority, request = Authority(tmp_path / "a"), make_request(tmp_path / "k")
    year, _ = authority.sign(request, "node", "n1", 1.8e9)
    minute, _ = authority.sign(request, "node", "n1", 1.8e9, 60 / 86400)
    assert (validity(year).begins, validity(year).ends) == (1.8e9 - 3600, 1.8e9 + 365 * 86400)
    assert (validity(minute).begins, validity(minute).ends) == (1.8e9 - 3, 1.8e9 + 60)
    assert 0 <= validity(year).mark < 1
    assert validity(year).mark != validity(minute).mark
    assert validity(year).end() == "2028-01-15 08:00:00 UTC"


def fingerprints(control: Control) -> tuple[str, str]:
    (node,) = control.store.nodes.published()
    assert node.route is not None
    return node.route.fingerprint, node.route.fingerprint_before


@in_loop
async def test_both_certificates_count_until_the_member_has_shown_the_new_one(control: Control) -> None:
    async with control.listening():
        state = await control.join(control.token())
        member = load_member(state)
        assert member is not None
        (first, _), generation = fingerprints(control), control.store.nodes.published()[0].generation
        lost = await asyncio.to_thread(renew, state, member)  # an answer that never came
        again = await asyncio.to_thread(renew, state, member)
        assert lost != again
        second, before = fingerprints(control)
        assert before == first
        assert second != first
        assert control.store.nodes.published()[0].generation == generation + 2
        epoch = (await asyncio.to_thread(rejoin, state, member)).epoch
        assert fingerprints(control) == (second, first), "it came with the old one: that still counts"
        old = (state / "member.pem").read_text()
        (state / "member.pem").write_text(again)
        await asyncio.to_thread(confirm, state, member)
        assert fingerprints(control) == (second, "")
        assert control.store.nodes.list()[0].epoch == epoch, "what it holds stays good"
        await asyncio.to_thread(rejoin, state, member)
        (state / "member.pem").write_text(old)
        for asked in (renew, rejoin, confirm):
            with pytest.raises(JoinFailed, match="no member of this cluster any more"):
                await asyncio.to_thread(asked, state, member)


@in_loop
async def test_who_was_removed_or_has_no_certificate_is_given_none(control: Control) -> None:
    async with control.listening():
        state = await control.join(control.token())
        member = load_member(state)
        assert member is not None
        control.store.nodes.remove("n1", time.time())
        with pytest.raises(JoinFailed, match="no member"):
            await asyncio.to_thread(renew, state, member)


@in_loop
async def test_who_comes_after_its_end_is_told_the_way_out_and_may_join_again_there(control: Control) -> None:
    async with control.listening(days=10 / 86400):
        state = await control.join(control.token())
        member = load_member(state)
        assert member is not None
        way_out = "ended on .*: `foreglow nodes remove n1` and `foreglow node-token --role node`.*then `foreglow join"
        held = validity((state / "member.pem").read_text())
        assert [one.level for one in installation.certificates(Settings(state=state), False)] == [Level.OK]
        with pytest.raises(JoinFailed, match="has joined already"):
            await asyncio.to_thread(join, state, control.at, control.token(), "node", "n1", AT, "")
        await until(lambda: held.ended(time.time()), "its end")
        (found,) = [one for one in installation.certificates(Settings(state=state), False) if one.level is not Level.OK]
        assert (found.level, "node-token" in found.advice) == (Level.FAIL, True)
        with pytest.raises(NotJoined, match=way_out):
            Self(Settings(state=state), "node", "unused")
        for asked in (renew, rejoin):
            with pytest.raises(JoinFailed, match=way_out) as failed:
                await asyncio.to_thread(asked, state, member)
            assert failed.value.refused
        control.store.nodes.remove("n1", time.time())
        await asyncio.to_thread(join, state, control.at, control.token(), "node", "n1", AT, "")
        assert Self(Settings(state=state), "node", "unused").name == "n1"


@in_loop
async def test_a_running_member_renews_shows_it_and_says_so(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process of the cluster that listens, one that dials it by the routes; both certificates change under them."""
    monkeypatch.setattr(renewing, "SETTLE_S", 0.2)
    days = 30 / 86400  # a third of it is time to renew in, whoever else runs
    async with control.listening(days=days):
        node = await control.join(control.token(), "n1")
        gateway = await control.join(control.token("gateway"), "g1", "gateway", "10.0.0.3:8703")
        own = {name: Self(Settings(state=at), role, "") for name, role, at in (("n1", "node", node), ("g1", "gateway", gateway))}
        ends = max(one.validity().ends for one in own.values())
        done = [keep_certified(one) for one in own.values()]
        told = Listening("n1", "node", int, admit(["gateway"], Routes(control)))
        server = await listen(control.free_port(), Ear(), "s", told, None, own["n1"].identity)
        first = await dialled(control, own["g1"], server)
        answered = 0
        while time.time() < ends + 1:
            again = await dialled(control, own["g1"], server)  # fails the test when either is not let in at some moment
            again.close()
            answered += 1
            await asyncio.sleep(0.05)
        assert answered > 10
        assert not first.closed, "the connection that stood was left alone"
        assert all(one.validity().ends > ends for one in own.values())
        await until(lambda: all(not one.route.fingerprint_before for one in control.store.nodes.published() if one.route))
        control.store.nodes.remove("n1", time.time())
        with pytest.raises((RpcError, KeyError)):
            await dialled(control, own["g1"], server)
        for end in done:
            end()
        first.close()
        server.close()


class Ear:
    def on_open(self, connection: Connection) -> None: ...
    def on_lost(self, connection: Connection, why: str) -> None: ...
    def on_message(self, connection: Connection, kind: int, ident: int, message: object, body: bytes) -> None: ...


class Routes(dict[str, NodeRoute]):
    """As the database says now: what a gateway hears within a second."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def get(self, name: str, default: object = None) -> NodeRoute | None:  # type: ignore[override]
        found = self._control.store.nodes.published_one(name)
        return found.route if found is not None else None


async def dialled(control: Control, own: Self, server: object) -> Connection:
    from doubles.cluster import port_of

    there = Routes(control).get("n1")
    if there is None:
        raise KeyError("n1")
    return await dial(port_of(server), Ear(), Hello("gateway", "g1", "s"), identity=own.identity, expected=there.peer)


@in_loop
async def test_a_try_that_fails_is_made_again_and_a_confirmation_too(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Validity, "renew_at", lambda self: self.begins if self.mark == first else self.ends - 1)
    async with control.listening():
        state = await control.join(control.token())
        own = Self(Settings(state=state), "node", "")
        first = own.validity().mark
        shown: list[bool] = []
        renewal = Renewal(own, lambda: shown.append(True))
    at, control.at = control.at, "127.0.0.1:1"
    own.member = away = Member("node", "n1", AT, "", control.at, "", 1)
    assert await asyncio.to_thread(renewal.step) == 3600.0, "control is away"
    async with control.listening():
        own.member = Member("node", "n1", AT, "", control.at, "", 1)
        assert 0 < await asyncio.to_thread(renewal.step) <= renewing.SETTLE_S
        assert shown == []
        own.member = away
        assert await asyncio.to_thread(renewal.step) == 0.0
        assert shown == [True]
        assert own.validity().mark != first
        assert await asyncio.to_thread(renewal.step) == 3600.0, "shown, and not confirmed yet"
        assert fingerprints(control)[1]
        own.member = Member("node", "n1", AT, "", control.at, "", 1)
        assert await asyncio.to_thread(renewal.step) == 3600.0
        assert fingerprints(control)[1] == ""
    assert at


def test_what_runs_beside_control_signs_its_own_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(state=tmp_path, certificate_days=1.0)
    own = Self(settings, "gateway", "gateway@a")
    first = own.identity.certificate
    assert Self(settings, "gateway", "gateway@a").identity.certificate == first
    assert Self(settings, "gateway", "gateway@b").identity.certificate != first, "the host has another name"
    own = Self(settings, "gateway", "gateway@a")
    first = own.identity.certificate
    shown: list[bool] = []
    renewal = Renewal(own, lambda: shown.append(True))
    assert 0 < renewal.step() <= renewing.LOOK_S
    assert shown == []
    monkeypatch.setattr(Validity, "renew_at", lambda self: self.begins)
    assert renewal.step() == 0.0
    own.identity.reload()
    assert shown == [True]
    assert own.identity.certificate != first


def test_callers_are_let_in_under_both_certificates() -> None:
    admits = admit(["gateway"], {"g1": NodeRoute("g1", 1, "gateway", AT, "", "new", True, 1, "old")})
    assert admits(Peer("gateway", "g1", "new")) == admits(Peer("gateway", "g1", "old")) == ""
    assert "no member" in admits(Peer("gateway", "g1", "older"))
