"""Joining a cluster: one token lets one process in, once; strangers are told nothing and cost little."""

import asyncio
import contextlib
import json
import ssl
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from doubles.cluster import identity
from doubles.joining import AT, TOLD, Control
from doubles.loop import in_loop

from orchestrator import joining
from orchestrator.authority import Authority, BadRequest, make_request
from orchestrator.catalog.errors import NotFound, Refused
from orchestrator.catalog.nodes import MAX_TTL_S
from orchestrator.control import attempts
from orchestrator.control import joining as listening
from orchestrator.joining import JoinFailed, join, read_token, rejoin, write_token
from orchestrator.membership import NotJoined, Self, load_member, with_member
from orchestrator.settings import Settings
from workers.rpc.transport import HostPort


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    made = Control(tmp_path)
    yield made
    made.store.close()


@in_loop
async def test_a_process_with_a_token_becomes_a_member_and_keeps_its_identity_to_itself(control: Control) -> None:
    async with control.listening():
        state = await control.join(control.token())
    member = load_member(state)
    assert member is not None
    assert (member.role, member.name, member.listen, member.zone) == ("node", "n1", AT, "zone-a")
    for kept in ("member.key", "member.pem", "ca.pem", "cluster.key", "member.json"):
        assert stat.S_IMODE((state / kept).stat().st_mode) == 0o600
    assert (state / "cluster.key").read_text() == TOLD["key"]
    settings = with_member(Settings(state=state))
    assert (settings.redis_url, settings.origin_url) == ("redis://cache", "s3://code")
    own = Self(settings, "node", "unused")
    assert own.name == "n1"
    assert own.listens(Path("/run/s")) == [Path("/run/s"), HostPort("10.0.0.2", 8703)]
    with pytest.raises(NotJoined, match="joined as a node, not as a gateway"):
        Self(settings, "gateway", "unused")
    (node,) = control.store.nodes.published()
    assert node.route is not None
    assert (node.route.name, node.route.address, node.route.epoch, node.route.up) == ("n1", AT, member.epoch, True)
    assert control.changes == 1


@in_loop
async def test_a_token_works_once_for_its_role_and_in_its_time(control: Control) -> None:
    token = control.token()
    async with control.listening():
        with pytest.raises(JoinFailed, match="is for a node, not for a gateway"):
            await control.join(token, role="gateway")
        await control.join(token)
        with pytest.raises(JoinFailed, match="was used already, by n1"):
            await control.join(token, "n2")
        with pytest.raises(JoinFailed, match="has joined already, as node n1"):
            await control.join(control.token())
        late = control.token(ttl_s=0.001)
        await asyncio.sleep(0.01)
        with pytest.raises(JoinFailed, match="has expired"):
            await control.join(late, "n3")
        with pytest.raises(JoinFailed, match="is not known here"):
            await control.join(write_token("guess", control.authority.digest), "n3")
    assert [one.name for one in control.store.nodes.list()] == ["n1"]


@in_loop
async def test_two_that_show_one_token_at_the_same_time_are_one(control: Control) -> None:
    token = control.token()
    async with control.listening():
        answers = await asyncio.gather(*(control.join(token, f"n{number}") for number in range(6)), return_exceptions=True)
    assert sum(1 for one in answers if isinstance(one, Path)) == 1
    assert len(control.store.nodes.list()) == 1
    assert all("was used already" in str(one) for one in answers if not isinstance(one, Path))


@in_loop
async def test_a_token_is_shown_to_nobody_but_the_control_of_its_cluster(control: Control, tmp_path: Path) -> None:
    token = control.token()
    foreign = Control(tmp_path / "foreign")
    async with foreign.listening() as control.at:
        with pytest.raises(JoinFailed, match="not of the cluster that made this token"):
            await control.join(token)
    member = identity(control.authority, tmp_path, "node", "n9")  # a member that plays control
    async with control.listening(member):
        with pytest.raises(JoinFailed, match="not its control"):
            await control.join(token)
        (secret, _) = read_token(token)
    foreign.store.close()
    async with control.listening():
        assert await control.join(token), f"nobody used {secret[:4]}... up"


def test_what_stands_behind_the_pinned_certificate_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the first certificate of a text stops at its padding: the rest would be trusted unseen."""
    real = next(one for number in range(60) if "=" in (one := Authority(tmp_path / f"a{number}")).certificate_file.read_text())
    pem = real.certificate_file.read_text()
    evil = Authority(tmp_path / "evil").certificate_file.read_text()
    monkeypatch.setattr(joining, "_ask", lambda *_, **__: {"authority": pem + evil})
    kept = joining._fetch_authority(HostPort("10.0.0.1", 1), real.digest)
    assert kept.count("BEGIN CERTIFICATE") == 1
    assert ssl.PEM_cert_to_DER_cert(kept) == ssl.PEM_cert_to_DER_cert(pem)


@pytest.mark.parametrize(
    ("name", "address", "error"),
    [
        ("Node", AT, "lower-case"),
        ("a" * 64, AT, "lower-case"),
        ("n@1", AT, "lower-case"),
        ("n1", "", "no address"),
        ("n1", "/run/s", "host:port"),
        ("n1", "0.0.0.0:8703", "others can reach"),
        ("n1", "10.0.0.2:0", "host:port"),
    ],
)
@in_loop
async def test_a_refused_join_uses_nothing_up(control: Control, name: str, address: str, error: str) -> None:
    token = control.token()
    async with control.listening():
        with pytest.raises(JoinFailed, match=error):
            await control.join(token, name, address=address)
        assert await control.join(token, "n2")


@in_loop
async def test_a_member_joins_again_over_its_certificate_until_it_is_removed(control: Control) -> None:
    async with control.listening():
        state = await control.join(control.token())
        member = load_member(state)
        assert member is not None
        assert control.store.nodes.declare_silent("n1", member.epoch, time.time())
        assert not control.store.nodes.declare_silent("n1", member.epoch, time.time()), "once"
        silent = control.store.nodes.list()[0].epoch
        again = await asyncio.to_thread(rejoin, state, member)
        assert load_member(state) == again
        assert member.epoch < silent < again.epoch
        control.store.nodes.remove("n1", time.time())
        with pytest.raises(JoinFailed, match="no member of this cluster any more") as refused:
            await asyncio.to_thread(rejoin, state, member)
        assert refused.value.refused
        fresh = control.folder / "fresh"
        fresh.mkdir()
        joined = await asyncio.to_thread(join, fresh, control.at, control.token(), "node", "n1", AT, "")
        assert joined.epoch > again.epoch + 1, "the name may come again, its epochs go on"
        with pytest.raises(JoinFailed, match="no member"):  # with the certificate from before
            await asyncio.to_thread(rejoin, state, member)
    with pytest.raises(NotFound):
        control.store.nodes.remove("nobody", time.time())


@in_loop
async def test_who_has_no_certificate_cannot_join_again(control: Control) -> None:
    async with control.listening():
        assert "error" in await _ask(control.at, b'{"what": "rejoin"}\n')
        foreign = identity(Authority(control.folder / "other"), control.folder, "node", "n1")
        foreign.client.verify_mode = ssl.CERT_NONE
        with pytest.raises((OSError, ValueError, asyncio.IncompleteReadError)):
            await _ask(control.at, b'{"what": "rejoin"}\n', foreign.client)


async def _ask(at: str, line: bytes, context: ssl.SSLContext | None = None, source: str = "127.0.0.1") -> dict[str, object]:
    if context is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, _, port = at.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context, local_addr=(source, 0))
    try:
        writer.write(line)
        return dict(json.loads(await asyncio.wait_for(reader.readuntil(b"\n"), 30)))
    finally:
        writer.close()


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"[]\n",
        b"not json\n",
        b'{"what": 7}\n',
        b'{"what": "join", "token": 7}\n',
        b'{"what": "join"}\n',
        b"[" * 9000 + b"\n",
    ],
    ids=["empty", "list", "words", "number", "token-number", "nothing", "deep"],
)
@in_loop
async def test_what_is_no_request_is_answered_in_words(control: Control, line: bytes) -> None:
    async with control.listening():
        answer = await _ask(control.at, line)
    assert isinstance(answer["error"], str)
    assert answer["error"]


@in_loop
async def test_strangers_are_bounded(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "TIMEOUT_S", 0.2)
    async with control.listening():
        host, _, port = control.at.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))  # says nothing
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()


@in_loop
async def test_strangers_keep_neither_members_nor_strangers_from_elsewhere_waiting(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "WINDOW_S", 3600.0)
    monkeypatch.setattr(listening, "STRANGERS", attempts.Limits(per_second=6, at_once=6, each_per_second=3, each_at_once=3))
    monkeypatch.setattr(listening, "MEMBERS", attempts.Limits(per_second=9, at_once=9, each_per_second=5, each_at_once=3))
    async with control.listening():
        state = await control.join(control.token())  # two connections: the authority, and joining
        member = load_member(state)
        assert member is not None
        assert "authority" in await _ask(control.at, b'{"what": "authority"}\n')
        for _ in range(3):
            refused = await _ask(control.at, b'{"what": "authority"}\n')
            assert refused == {"error": "too many are joining at once; try again in a second", "again": True}
        for host in ("127.0.0.2", "127.0.0.3"):
            assert "authority" in await _ask(control.at, b'{"what": "authority"}\n', source=host)
        await asyncio.to_thread(rejoin, state, member)
        assert "authority" in await _ask(control.at, b'{"what": "authority"}\n', source="127.0.0.4")
        assert "again" in await _ask(control.at, b'{"what": "authority"}\n', source="127.0.0.5"), "all strangers together"
        await asyncio.to_thread(rejoin, state, member)
        for _ in range(3):
            await asyncio.to_thread(rejoin, state, member)
        with pytest.raises(JoinFailed, match="too many") as failed:  # a member gone mad costs itself
            await asyncio.to_thread(rejoin, state, member)
        assert not failed.value.refused, "it may try again"


def test_requests_for_other_keys_are_not_signed(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    for request in ("", "x" * 9000, "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"):
        with pytest.raises(BadRequest):
            authority.sign(request, "node", "n1", time.time())


def test_an_authority_is_made_once_whoever_starts_at_the_same_time(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        made = list(pool.map(lambda _: Authority(tmp_path / "authority").pem, range(4)))
    assert len(set(made)) == 1
    assert stat.S_IMODE((tmp_path / "authority").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "authority" / "ca.key").stat().st_mode) == 0o600
    assert "REQUEST" in make_request(tmp_path / "k")


@pytest.mark.parametrize("token", ["", "fgj_", "fgj_abc", "fgj_abc.def", "abc.def", "fgj_abc." + "A" * 44, "fgj_." + "A" * 43])
def test_half_a_token_is_no_token(token: str) -> None:
    with pytest.raises(JoinFailed, match="not a join token"):
        read_token(token)


def test_tokens_have_an_end_and_a_role(control: Control) -> None:
    for role, ttl_s in (("operator", 60.0), ("node", 0.0), ("node", MAX_TTL_S + 1)):
        with pytest.raises(Refused):
            control.store.nodes.make_token(role, ttl_s, time.time())
