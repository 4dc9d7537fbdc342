"""Which template serves: booted once for all who wait, refused when what made it has changed, replaced when used up, sealed."""

import asyncio
import mmap
import os
from pathlib import Path

import msgspec
import pytest
from doubles.loop import in_loop, settle, until

from workers.drivers.microvm import fingerprint, templates
from workers.drivers.microvm.carried import Carried
from workers.drivers.microvm.confinement import Confinement
from workers.drivers.microvm.fingerprint import Fingerprint
from workers.drivers.microvm.functions import make_function_template
from workers.drivers.microvm.image import GuestImage
from workers.drivers.microvm.machine import Place
from workers.drivers.microvm.qemu import Shape
from workers.drivers.microvm.template import Template, blank, boot, copied, sealed
from workers.drivers.microvm.templates import Templates
from workers.ports import DriverError, Specialisation
from workers.versions import Kind

NOW = Fingerprint("q", "l", "c", 2_600_000, "i")
SHAPE = Shape("/usr/bin/qemu", "tcg", 128, 2_600_000)


class Host:
    """Boots templates without a machine in them."""

    def __init__(self) -> None:
        self.now = NOW
        self.booted: list[Template] = []
        self.turn = asyncio.Event()
        self.turn.set()
        self.error: Exception | None = None
        self.tries = 0
        self.waited_for: list[bool] = []

    async def boot(self, memory_mb: int, somebody_waits: bool) -> Template:
        self.tries += 1
        self.waited_for.append(somebody_waits)
        await self.turn.wait()
        if self.error is not None:
            raise self.error
        shape = msgspec.structs.replace(SHAPE, memory_mb=memory_mb)
        self.booted.append(sealed(shape, self.now, blank("memory", 1 << 20), blank("state", 0)))
        return self.booted[-1]

    def fingerprint(self, memory_mb: int) -> Fingerprint:
        return self.now


@in_loop
async def test_whoever_waits_shares_one_boot_and_shapes_do_not() -> None:
    host = Host()
    held = Templates(host.boot, host.fingerprint)
    host.turn.clear()
    waiting = [asyncio.ensure_future(held.get(shape)) for shape in (128, 128, 512)]
    await settle()
    waiting[0].cancel()  # who gives up ends nobody's boot
    host.turn.set()
    one, other = await waiting[1], await waiting[2]
    assert (one.shape.memory_mb, other.shape.memory_mb, host.tries) == (128, 512, 2)
    assert await held.get(128) is one
    await held.stop()
    assert all(template.closed for template in host.booted)


@pytest.mark.parametrize("part", ["qemu", "line", "cpu", "tsc_khz", "image"])
def test_one_made_with_another_host_is_refused_and_booted_anew(part: str) -> None:
    @in_loop
    async def check() -> None:
        host = Host()
        held = Templates(host.boot, host.fingerprint)
        first = await held.get(128)
        host.now = msgspec.structs.replace(NOW, **{part: 1 if part == "tsc_khz" else "other"})
        second = await held.get(128)
        assert first.closed
        assert second is not first
        assert held.refused == 1
        assert await held.get(128) is second
        await held.stop()

    check()


@in_loop
async def test_one_that_is_used_up_serves_on_until_a_fresh_one_has_booted() -> None:
    host = Host()
    held = Templates(host.boot, host.fingerprint, clones=2)
    first = await held.get(128)
    first.made = 2
    host.turn.clear()
    assert await held.get(128) is first
    assert await held.get(128) is first
    await settle()
    assert host.tries == 2
    host.turn.set()
    await until(lambda: first.closed)
    second = await held.get(128)
    assert second is host.booted[1]
    assert host.waited_for == [True, False]
    assert not second.closed
    await held.stop()


@in_loop
async def test_an_old_one_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    held = Templates(host.boot, host.fingerprint, max_age_s=60)
    first = await held.get(128)
    assert await held.get(128) is first
    first.born -= 61
    await held.get(128)
    await until(lambda: first.closed)
    await held.stop()


@in_loop
async def test_a_replacement_that_fails_is_tried_again_later_and_costs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    held = Templates(host.boot, host.fingerprint, clones=1)
    first = await held.get(128)
    first.made = 1
    host.error = DriverError("no memory")
    assert await held.get(128) is first
    await settle()
    assert await held.get(128) is first
    await settle()
    assert host.tries == 2, "it was tried again at once"
    monkeypatch.setattr(templates, "RETRY_S", 0.0)
    held._not_before.clear()
    host.error = None
    await held.get(128)
    await until(lambda: first.closed)
    await held.stop()


@in_loop
async def test_a_boot_that_fails_is_told_to_all_who_wait_and_tried_again_by_the_next() -> None:
    host = Host()
    held = Templates(host.boot, host.fingerprint)
    host.error = TimeoutError()
    results = await asyncio.gather(held.get(128), held.get(128), return_exceptions=True)
    assert [type(one) for one in results] == [DriverError, DriverError]
    host.error = None
    assert (await held.get(128)).made == 0
    await held.stop()


def test_a_sealed_template_can_be_read_and_never_written() -> None:
    memory = blank("memory", 1 << 20)
    os.pwrite(memory, b"as it was", 4096)
    template = sealed(SHAPE, NOW, memory, blank("state", 0))
    with pytest.raises(PermissionError):
        os.pwrite(memory, b"other", 4096)
    with pytest.raises(PermissionError):
        os.ftruncate(memory, 0)
    with pytest.raises(PermissionError):
        mmap.mmap(memory, 0)
    again = os.open(f"/proc/self/fd/{memory}", os.O_RDWR | os.O_CLOEXEC)  # as QEMU opens it
    with pytest.raises(PermissionError):
        os.pwrite(again, b"other", 4096)
    private = mmap.mmap(again, 0, mmap.MAP_PRIVATE)
    private[4096:4098] = b"be"
    assert os.pread(memory, 9, 4096) == b"as it was"
    private.close()
    os.close(again)
    template.close()
    template.close()


def test_a_copy_has_the_same_content_the_same_holes_and_can_be_written() -> None:
    size = 8 << 20
    memory = blank("memory", size)
    for at in (0, 5 << 20, size - 1):
        os.pwrite(memory, b"x", at)
    made = copied(memory)
    assert os.pread(made, size, 0) == os.pread(memory, size, 0)
    assert os.fstat(made).st_blocks == os.fstat(memory).st_blocks
    os.pwrite(made, b"y", 0)
    assert os.pread(memory, 1, 0) == b"x"
    for descriptor in (memory, made):
        os.close(descriptor)


def test_a_copy_of_nothing_is_empty() -> None:
    memory = blank("memory", 1 << 20)
    made = copied(memory)
    assert os.fstat(made).st_size == 1 << 20
    assert os.fstat(made).st_blocks == 0
    os.close(memory)
    os.close(made)


def test_a_fingerprint_is_of_the_files_content_and_of_the_line_without_descriptors(tmp_path: Path) -> None:
    for name in ("qemu", "kernel", "initramfs"):
        (tmp_path / name).write_bytes(name.encode())
    image = GuestImage(tmp_path / "kernel", tmp_path / "initramfs", "d", "3.11")

    def now(*line: str) -> Fingerprint:
        return fingerprint.take(str(tmp_path / "qemu"), line, 1, image)

    before = now("-chardev", "socket,fd=7", "mem-path=/proc/self/fd/12")
    assert before.refuses(now("-chardev", "socket,fd=31", "mem-path=/proc/self/fd/4")) == ""
    assert before.refuses(now("-chardev", "socket,fd=7", "mem-path=/proc/self/fd/12", "-snapshot")) == "the command line"
    (tmp_path / "initramfs").write_bytes(b"another")
    (tmp_path / "qemu").write_bytes(b"another")
    assert before.refuses(now("-chardev", "socket,fd=7", "mem-path=/proc/self/fd/12")) == "QEMU's binary, the image"
    (tmp_path / "kernel").unlink()
    after = now("-chardev", "socket,fd=7", "mem-path=/proc/self/fd/12")
    assert before.refuses(after) == "QEMU's binary, the image"  # no more than before: who runs needs no kernel
    (tmp_path / "qemu").unlink()
    with pytest.raises(DriverError, match="qemu cannot be read"):
        now()


@in_loop
async def test_nothing_boots_from_an_image_that_has_gone(tmp_path: Path) -> None:
    image = GuestImage(tmp_path / "kernel", tmp_path / "initramfs", "d", "3.11")
    with pytest.raises(DriverError, match="restart the node"):
        await boot(SHAPE, image, lambda: NOW, Place(Confinement()))


@in_loop
async def test_an_original_that_is_gone_before_it_has_its_code_leaves_no_descriptor() -> None:
    class Gone:
        code: object = None

        def speculative(self, on: bool) -> None: ...

        async def specialise(self, work: object, timeout_s: float) -> None:
            raise DriverError("the sandbox has gone")

        async def kill(self, reason: str) -> None: ...

    class Source:
        async def carry(self, layers: object) -> Carried:
            return Carried(descriptors=[os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)])

    async def make(source: Template, memory: int) -> Gone:
        return Gone()

    source = sealed(SHAPE, NOW, blank("memory", 1 << 20), blank("state", 0))
    work = Specialisation("a/b:1", "b:handler", Kind.EVENT, 1, 128, (), {})
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DriverError, match="has gone"):
        await make_function_template(source, make, make, lambda: NOW, Source(), work, 1)  # type: ignore[arg-type]
    assert len(os.listdir("/proc/self/fd")) == before
    source.close()
