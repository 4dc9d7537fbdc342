"""Lazily started layers, mounted for real: what is read is what was stored, and nothing that breaks makes anybody hang."""

import asyncio
import contextlib
import errno
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from doubles.lazy_layers import Layer, mounted_below
from doubles.loop import in_loop, until
from doubles.process_bench import INIT_S, HandlerError, Running, bench, descendants

from workers.code.lazy import fill, link
from workers.code.lazy import layer as layers
from workers.code.lazy.link import LazyError
from workers.code.lazy.mounts import LazyMounts
from workers.code.lazy.starting import LazyStarts
from workers.code.manifest import CHUNK_BYTES, LayerFile, Manifest
from workers.code.origin import Origin, OriginError
from workers.ports import InitFailed, Specialisation
from workers.versions import Kind

pytestmark = [pytest.mark.system, pytest.mark.needs_root]

READS_A_TABLE = """
import mmap
from pkg import used

def handler(event, context):
    if event == "broken":
        from pkg import broken
    with open("/var/task/table.bin", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as table:
        return [used.VALUE, table[:5].decode()]
"""
DEAD = (errno.EIO, errno.ENOTCONN, errno.ECONNABORTED)


@contextlib.asynccontextmanager
async def mounting(folder: Path, **more: object) -> AsyncIterator[LazyMounts]:
    """Nothing of them may be left: no mount, process, descriptor or file."""
    processes, descriptors = descendants(), len(os.listdir("/proc/self/fd"))
    lazy = LazyMounts(folder, **more)  # type: ignore[arg-type]
    try:
        assert await lazy.probe() == ""
        yield lazy
    finally:
        await lazy.close()
    assert not mounted_below(folder)
    assert descendants(processes) == set()
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1  # the event loop of the executor's threads
    assert [path for path in folder.rglob("*") if path.name not in ("acme", "other")] == []


def package(seed: int = 1, files: int = 40, size: int = 60_000) -> Layer:
    """Small modules that share chunks, and files that have chunks of their own."""
    draw = random.Random(seed)
    made = {f"pkg/sub{number % 3}/m{number}.py": draw.randbytes(size) for number in range(files)}
    made |= {"exact.bin": draw.randbytes(CHUNK_BYTES), "big.bin": draw.randbytes(3 * CHUNK_BYTES + 7)}
    made |= {"empty.py": b"", "run.sh": b"x"}
    return Layer(made)


async def read(path: Path) -> bytes:
    return await asyncio.wait_for(asyncio.to_thread(path.read_bytes), 15)


@in_loop
async def test_the_tree_is_what_was_stored_and_cannot_be_changed(tmp_path: Path) -> None:
    wanted = package()
    async with mounting(tmp_path) as lazy:
        made = await lazy.mount("acme", wanted.manifest.digest, wanted.manifest, wanted.read)

        def look() -> None:
            seen = {str(Path(parent, name).relative_to(made.path)) for parent, _, names in os.walk(made.path) for name in names}
            assert seen == set(wanted.files)
            for path, content in wanted.files.items():
                assert (made.path / path).read_bytes() == content
                assert (made.path / path).stat().st_size == len(content)
            assert stat.S_IMODE((made.path / "run.sh").stat().st_mode) == 0o755
            assert stat.S_IMODE((made.path / "empty.py").stat().st_mode) == 0o644
            assert not (made.path / "nothing").exists()
            for change in (
                lambda: (made.path / "new").write_bytes(b""),
                (made.path / "run.sh").unlink,
                (made.path / "new").mkdir,
                lambda: (made.path / "run.sh").chmod(0o777),
                lambda: (made.path / "run.sh").rename(made.path / "other"),
                lambda: (made.path / "link").symlink_to("run.sh"),
            ):
                with pytest.raises(OSError) as refused:
                    change()
                assert refused.value.errno in (errno.EROFS, errno.EPERM)

        await asyncio.to_thread(look)
        await asyncio.wait_for(asyncio.shield(made.whole), 15)
        assert set(wanted.asked.values()) == {1}
        assert made.bytes_held == wanted.manifest.size
        assert b"".join(map(made.chunk, made.manifest.chunks)) == b"".join(wanted.files[path] for path in sorted(wanted.files))


@in_loop
async def test_a_folder_of_many_names_is_listed_whole(tmp_path: Path) -> None:
    wanted = Layer({f"many/{'n' * 100}{number}": b"" for number in range(3000)} | {"one": b"1"})
    async with mounting(tmp_path) as lazy:
        made = await lazy.mount("acme", wanted.manifest.digest, wanted.manifest, wanted.read)
        assert len(await asyncio.to_thread(os.listdir, made.path / "many")) == 3000


@in_loop
async def test_only_what_is_touched_is_waited_for(tmp_path: Path) -> None:
    wanted = package()
    wanted.open.clear()
    path = "pkg/sub0/m3.py"
    wanted.passed.update(wanted.chunks_of(path))
    async with mounting(tmp_path) as lazy:
        made = await lazy.mount("acme", wanted.manifest.digest, wanted.manifest, wanted.read)
        assert await read(made.path / path) == wanted.files[path]
        assert made.bytes_held < wanted.manifest.size / 4
        assert not made.whole.done()
        wanted.open.set()
        await asyncio.wait_for(asyncio.shield(made.whole), 15)
        assert set(wanted.asked.values()) == {1}


@in_loop
async def test_a_chunk_that_cannot_be_had_fails_who_reads_it_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = package()
    (lost, *_) = wanted.chunks_of("exact.bin")
    wanted.broken[lost] = OSError("damaged wherever it was asked for")
    async with mounting(tmp_path) as lazy:
        made = await lazy.mount("acme", wanted.manifest.digest, wanted.manifest, wanted.read)
        with pytest.raises(OSError) as failed:
            await read(made.path / "exact.bin")
        assert failed.value.errno == errno.EIO
        assert await read(made.path / "big.bin") == wanted.files["big.bin"]
        del wanted.broken[lost]
        await asyncio.sleep(1.1)  # not asked for again sooner
        assert await read(made.path / "exact.bin") == wanted.files["exact.bin"]


@in_loop
async def test_a_chunk_of_another_size_is_never_served(tmp_path: Path) -> None:
    wanted = package()
    (short, *_) = wanted.chunks_of("exact.bin")
    wanted.plain[short] = wanted.plain[short][:-1]
    async with mounting(tmp_path) as lazy:
        made = await lazy.mount("acme", wanted.manifest.digest, wanted.manifest, wanted.read)
        await read(made.path / "run.sh")  # behind it: the content is long enough to read a hole
        with pytest.raises(OSError, match="Input/output"):
            await read(made.path / "exact.bin")


@in_loop
async def test_an_origin_that_is_silent_ends_in_an_error_not_a_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = package()
    async with mounting(tmp_path) as lazy:
        monkeypatch.setattr(layers, "READ_TIMEOUT_S", 0.5)  # not for the probe before, which may take longer
        wanted.open.clear()
        made = await lazy.mount("acme", wanted.manifest.digest, wanted.manifest, wanted.read)
        with pytest.raises(OSError, match="Input/output"):
            await read(made.path / "big.bin")


@in_loop
async def test_who_is_killed_while_it_waits_for_a_chunk_is_gone_at_once(tmp_path: Path) -> None:
    wanted = package()
    async with mounting(tmp_path) as lazy:
        wanted.open.clear()
        made = await lazy.mount("acme", wanted.manifest.digest, wanted.manifest, wanted.read)
        reader = await asyncio.create_subprocess_exec("cat", str(made.path / "big.bin"), stdout=subprocess.DEVNULL)
        await until(lambda: made.touched, "it waits")
        reader.kill()
        assert await asyncio.wait_for(reader.wait(), 30) == -signal.SIGKILL


@in_loop
async def test_a_killed_server_fails_its_users_and_is_started_again_with_what_was_there(tmp_path: Path) -> None:
    wanted = package()
    async with mounting(tmp_path) as lazy:
        made = await lazy.mount("acme", wanted.manifest.digest, wanted.manifest, wanted.read)
        await asyncio.wait_for(asyncio.shield(made.whole), 15)
        user = os.open(made.path / "big.bin", os.O_RDONLY)
        os.kill(made.server, signal.SIGKILL)
        await until(lambda: not made.up, "its end is known")
        assert not mounted_below(tmp_path)
        assert lazy.get("acme", wanted.manifest.digest) is None
        with pytest.raises(OSError) as failed:
            await asyncio.to_thread(os.read, user, 1 << 16)
        assert failed.value.errno in DEAD
        with contextlib.suppress(OSError):  # closing says it as well
            os.close(user)
        again = await lazy.mount("acme", wanted.manifest.digest, wanted.manifest, wanted.read)
        assert again is made
        assert lazy.get("acme", wanted.manifest.digest) is made
        assert await read(made.path / "big.bin") == wanted.files["big.bin"]
        assert set(wanted.asked.values()) == {1}


@in_loop
async def test_a_server_that_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    wanted = package()
    wanted.open.clear()
    async with mounting(tmp_path) as lazy:
        made = await lazy.mount("acme", wanted.manifest.digest, wanted.manifest, wanted.read)
        with pytest.raises(LazyError, match="given up"):  # noqa: PT012
            for _ in range(10):
                os.kill(made.server, signal.SIGKILL)
                await until(lambda: not made.up, "its end is known")
                await lazy.mount("acme", wanted.manifest.digest, wanted.manifest, wanted.read)
        with pytest.raises(LazyError, match="before it was whole"):
            await made.whole


@in_loop
async def test_what_is_closed_while_its_server_starts_leaves_no_server(tmp_path: Path) -> None:
    wanted = package()
    async with mounting(tmp_path) as lazy:
        before = descendants()
        starting = asyncio.create_task(lazy.mount("acme", wanted.manifest.digest, wanted.manifest, wanted.read))
        await until(lambda: descendants(before), "its server is on its way")
        await lazy.close()
        with pytest.raises(LazyError):
            await starting


@in_loop
async def test_a_server_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "LISTEN_EVERY_S", 1.0)
    wanted = package()
    async with mounting(tmp_path) as lazy:
        made = await lazy.mount("acme", wanted.manifest.digest, wanted.manifest, wanted.read)
        await asyncio.sleep(3)
        assert made.up
        os.kill(made.server, signal.SIGSTOP)
        with pytest.raises(OSError) as failed:
            await read(made.path / "pkg/sub0/m0.py")
        assert failed.value.errno in DEAD
        await until(lambda: not made.up, "its end is known")


@in_loop
async def test_a_mount_in_use_stays_until_its_last_user_has_gone(tmp_path: Path) -> None:
    wanted = package()
    async with mounting(tmp_path) as lazy:
        made = await lazy.mount("acme", wanted.manifest.digest, wanted.manifest, wanted.read)
        await asyncio.wait_for(asyncio.shield(made.whole), 15)
        server = made.server
        with (made.path / "big.bin").open("rb") as user:
            lazy.unmount("acme", wanted.manifest.digest, after_s=0.1)
            assert lazy.get("acme", wanted.manifest.digest) is None
            await until(lambda: not mounted_below(tmp_path), "nobody new gets it")
            assert await asyncio.to_thread(user.read) == wanted.files["big.bin"]
            assert lazy.mounted == 1
        await until(lambda: lazy.mounted == 0, "the server ends after its last user")
        with pytest.raises(ProcessLookupError):
            os.kill(server, 0)


@in_loop
async def test_a_forgotten_tenants_mounts_end_whoever_uses_them(tmp_path: Path) -> None:
    wanted, other = package(1), package(2)
    async with mounting(tmp_path) as lazy:
        made = await lazy.mount("acme", wanted.manifest.digest, wanted.manifest, wanted.read)
        kept = await lazy.mount("rival", other.manifest.digest, other.manifest, other.read)
        wanted.open.clear()
        reading = asyncio.create_task(read(made.path / "big.bin"))
        await until(lambda: made.touched, "it waits")
        await lazy.forget("acme")
        with contextlib.suppress(OSError):
            await reading
        assert await read(kept.path / "big.bin") == other.files["big.bin"]
        assert len(mounted_below(tmp_path)) == 1
        await lazy.drop("rival", other.manifest.digest)
        (tmp_path / "rival").rmdir()


@in_loop
async def test_no_more_are_mounted_than_there_may_be(tmp_path: Path) -> None:
    first, second = package(1), package(2)
    async with mounting(tmp_path, at_most=1) as lazy:
        await lazy.mount("acme", first.manifest.digest, first.manifest, first.read)
        assert not lazy.usable
        with pytest.raises(LazyError):
            await lazy.mount("acme", second.manifest.digest, second.manifest, second.read)


@in_loop
async def test_one_tenant_leaves_some_to_the_others(tmp_path: Path) -> None:
    first, second = package(1), package(2)
    async with mounting(tmp_path, of_a_tenant=1) as lazy:
        await lazy.mount("acme", first.manifest.digest, first.manifest, first.read)
        with pytest.raises(LazyError):
            await lazy.mount("acme", second.manifest.digest, second.manifest, second.read)
        await lazy.mount("other", second.manifest.digest, second.manifest, second.read)


@in_loop
async def test_a_manifest_that_is_no_tree_mounts_nothing(tmp_path: Path) -> None:
    wanted = package(files=1)
    broken = Manifest((LayerFile("a", 0o644, 0, 0), LayerFile("a/b", 0o644, 0, 0)), ())
    async with mounting(tmp_path) as lazy:
        with pytest.raises(LazyError, match="server ended"):
            await lazy.mount("acme", broken.digest, broken, wanted.read)


@in_loop
async def test_what_one_start_touched_comes_first_on_another_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "LEARNED_AFTER_S", 3.0)
    wanted, origin = package(), Origin((tmp_path / "origin").as_uri())
    key = ("acme", wanted.manifest.digest)
    origin.put_manifest("acme", wanted.manifest)
    path = "pkg/sub2/m11.py"
    async with mounting(tmp_path / "one") as lazy:
        starts = LazyStarts(lazy, origin, from_bytes=1)
        assert starts.wants(wanted.manifest)
        made = await starts.start(*key, wanted.manifest, wanted.read)
        assert await read(made.path / path) == wanted.files[path]
        await until(lambda: origin.order(*key), "what it touched is kept")
        await starts.close()
    touched = [wanted.manifest.chunks[index].name for index in origin.order(*key)]
    assert set(wanted.chunks_of(path)) <= set(touched)
    wanted.asked.clear()
    wanted.open.clear()
    for wait in ("QUIET_S", "PATIENCE_S"):  # the rest does not begin, however long mounting takes
        monkeypatch.setattr(fill, wait, 60.0)
    async with mounting(tmp_path / "two") as lazy:
        starts = LazyStarts(lazy, origin, from_bytes=1)
        await starts.start(*key, wanted.manifest, wanted.read)
        await until(lambda: set(wanted.asked) == set(touched), "it is asked for before anybody reads")
        wanted.open.set()
        await starts.close()
    (kept,) = (tmp_path / "origin").rglob("*.order")
    for damaged in (b"{", b'["x"]', b"\xff"):
        kept.write_bytes(damaged)
        with pytest.raises(OriginError):
            origin.order(*key)
    kept.unlink()
    assert origin.order(*key) == ()


@in_loop
async def test_a_function_runs_from_a_layer_that_is_not_whole(tmp_path: Path) -> None:
    """In a real sandbox: its own user, its own namespaces, Landlock and seccomp."""
    table = b"table" + random.Random(3).randbytes(CHUNK_BYTES)
    rest = {f"pkg/big{number}.bin": random.Random(number).randbytes(CHUNK_BYTES) for number in range(8)}
    wanted = Layer(
        {"handler.py": READS_A_TABLE.encode(), "pkg/__init__.py": b"", "table.bin": table, "pkg/used.py": b"VALUE = 7\n"}
        | {"zz/broken.py": b"", "pkg/broken.py": b"#" * CHUNK_BYTES}
        | rest
    )
    wanted.passed.update(*(wanted.chunks_of(path) for path in ("handler.py", "pkg/used.py", "table.bin", "pkg/broken.py")))
    wanted.open.clear()
    wanted.broken[wanted.chunks_of("pkg/broken.py")[0]] = OSError("damaged")
    async with bench(tmp_path / "driver") as made, mounting(tmp_path / "code") as lazy:
        layer = await lazy.mount("acme", wanted.manifest.digest, wanted.manifest, wanted.read)
        clone = await made.driver.clone("acme", 128)
        work = Specialisation("acme/f:1", "handler:handler", Kind.EVENT, 1, 128, (layer.path,), {})
        report = await clone.specialise(work, INIT_S)
        running = Running(clone, report)
        assert await running.value("go") == [7, "table"]
        with pytest.raises(HandlerError, match="Input/output error"):
            await running.value("broken")
        assert await running.value("go") == [7, "table"]
        assert not layer.whole.done()
        await clone.kill("over")


@in_loop
async def test_a_function_whose_code_cannot_be_had_fails_at_its_start_with_the_reason(tmp_path: Path) -> None:
    wanted = Layer({"handler.py": b"#" * CHUNK_BYTES})
    wanted.broken[wanted.chunks_of("handler.py")[0]] = OSError("damaged")
    async with bench(tmp_path / "driver") as made, mounting(tmp_path / "code") as lazy:
        layer = await lazy.mount("acme", wanted.manifest.digest, wanted.manifest, wanted.read)
        clone = await made.driver.clone("acme", 128)
        with pytest.raises(InitFailed, match="Input/output error"):
            await clone.specialise(Specialisation("acme/f:1", "handler:handler", Kind.EVENT, 1, 128, (layer.path,), {}), INIT_S)
        await clone.kill("over")


@in_loop
async def test_a_hammered_mount_holds_up_no_other(tmp_path: Path) -> None:
    """Names that are not there, as fast as four processes can: each is a question to that mount's server only."""
    hammer = "import os, sys, itertools\nfor n in itertools.count():\n    os.path.exists(f'{sys.argv[1]}/{os.getpid()}-{n}')"
    first, second = package(1), package(2)
    async with mounting(tmp_path) as lazy:
        one = await lazy.mount("acme", first.manifest.digest, first.manifest, first.read)
        two = await lazy.mount("acme", second.manifest.digest, second.manifest, second.read)
        command = [sys.executable, "-I", "-S", "-c", hammer, str(one.path)]
        hammers = [await asyncio.create_subprocess_exec(*command) for _ in range(4)]
        try:
            await asyncio.sleep(0.5)
            assert await read(two.path / "big.bin") == second.files["big.bin"]
            assert await read(one.path / "big.bin") == first.files["big.bin"]
        finally:
            for process in hammers:
                process.kill()
                await process.wait()


NODE = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from workers.mounts import enter_private_mounts
assert enter_private_mounts()
from doubles.lazy_layers import Layer
from workers.code.lazy.mounts import LazyMounts
async def main():
    lazy = LazyMounts(Path(sys.argv[1]))
    assert await lazy.probe() == ""
    layer = Layer({"a.bin": bytes(1 << 20)})
    made = await lazy.mount("acme", layer.manifest.digest, layer.manifest, layer.read)
    await asyncio.wait_for(asyncio.shield(made.whole), 15)
    print(made.server, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_a_killed_node_leaves_no_mount_server_or_content(tmp_path: Path) -> None:
    command = [sys.executable, "-c", NODE, str(tmp_path), str(Path(__file__).parent.parent)]
    node = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert node.stdout is not None
    with node.stdout as told:
        server = int(told.readline())
        node.kill()
        node.wait(10)
    end = time.monotonic() + 10
    while Path(f"/proc/{server}").exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not Path(f"/proc/{server}").exists()
    assert not mounted_below(tmp_path)
    assert [path for path in (tmp_path / "acme").rglob("*") if not path.is_dir()] == []
