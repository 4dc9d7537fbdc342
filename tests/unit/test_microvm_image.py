"""The parts the guest image is made of: archive, kernel, packages. Whole images: tests/system/test_microvm_image.py."""

import gzip
import io
import lzma
import os
import struct
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from workers.drivers.microvm import cpio
from workers.drivers.microvm.image import ImageError, build, find, record_of
from workers.drivers.microvm.kernel import KernelError, in_order, vmlinux

names = st.lists(st.text("abcdé", min_size=1, max_size=6), min_size=1, max_size=3).map("/".join)


def read_archive(content: bytes) -> dict[str, tuple[int, bytes]]:
    """Path -> (mode, content), as the kernel's init/initramfs.c takes it."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert content[at : at + 6] == b"070701"
        fields = [int(content[at + 6 + 8 * number : at + 14 + 8 * number], 16) for number in range(13)]
        name = content[at + 110 : at + 110 + fields[11] - 1].decode()
        body_at = (at + 110 + fields[11] + 3) & ~3
        if name == "TRAILER!!!":
            assert body_at >= len(content)
            return found
        assert name not in found
        found[name] = (fields[1], content[body_at : body_at + fields[6]])
        at = (body_at + fields[6] + 3) & ~3


@given(st.dictionaries(names, st.binary(max_size=20), max_size=8), st.randoms())
def test_an_archive_holds_what_was_given_whatever_the_order(files: dict[str, bytes], order: object) -> None:
    files = {path: content for path, content in files.items() if not any(other.startswith(path + "/") for other in files)}
    shuffled = list(files)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    written = []
    for paths in (list(files), shuffled):
        out = io.BytesIO()
        cpio.write({path: cpio.file(files[path]) for path in paths}, out)
        written.append(out.getvalue())
    assert written[0] == written[1]
    found = read_archive(written[0])
    assert {path: content for path, (mode, content) in found.items() if mode & 0o170000 == 0o100000} == files
    for path in files:
        for parent in [str(parent) for parent in Path(path).parents if str(parent) != "."]:
            assert found[parent][0] == 0o40755
            assert list(found).index(parent) < list(found).index(path)


def test_links_devices_and_modes_are_kept() -> None:
    out = io.BytesIO()
    cpio.write({"bin/sh": cpio.link("busybox"), "dev/console": cpio.device(0o600, 5, 1), "tmp": cpio.folder(0o1777)}, out)
    found = read_archive(out.getvalue())
    assert found["bin/sh"] == (0o120777, b"busybox")
    assert found["dev/console"] == (0o020600, b"")
    assert found["tmp"] == (0o041777, b"")


def image_with(payload: bytes, protocol: int = 0x20F) -> bytes:
    head = bytearray(0x400)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    head[0x206:0x208] = protocol.to_bytes(2, "little")
    head[0x248:0x250] = struct.pack("<II", 0x10, len(payload))
    return bytes(head) + bytes(0x10) + payload + b"rest"


ELF = b"\x7fELF" + os.urandom(3000) + b"Xen\0" + bytes(1000)


@pytest.mark.parametrize(
    "payload",
    [
        gzip.compress(ELF) + bytes(4),
        lzma.compress(ELF),
        zstandard.ZstdCompressor().compress(ELF) + bytes(4),
        # an LZ4 block of literals only, and the size that the kernel's build adds
        struct.pack("<II", 0x184C2102, len(ELF) + 2 + (len(ELF) - 15) // 255)
        + b"\xf0" + b"\xff" * ((len(ELF) - 15) // 255) + bytes([(len(ELF) - 15) % 255]) + ELF + bytes(4),
    ],
    ids=["gzip", "xz", "zstd", "lz4"],
)  # fmt: skip
def test_the_elf_file_comes_out_however_it_was_packed(payload: bytes) -> None:
    assert vmlinux(image_with(payload)) == ELF


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (b"", "no bzImage"),
        (bytes(4096), "no bzImage"),
        (image_with(gzip.compress(ELF), 0x207), "protocol"),
        (image_with(gzip.compress(ELF))[:0x600], "cut short"),
        (image_with(b"\x01\x02\x03\x04" * 8), "begins with 01020304"),
        (image_with(gzip.compress(ELF)[:200]), "cannot be decompressed"),
        (image_with(struct.pack("<II", 0x184C2102, 100) + bytes(104)), "cannot be decompressed"),
        (image_with(gzip.compress(b"text") + bytes(4)), "no ELF file"),
        (image_with(gzip.compress(b"\x7fELF" + bytes(100)) + bytes(4)), "no PVH entry"),
    ],
)
def test_a_kernel_that_is_none_is_refused_in_words(image: bytes, why: str) -> None:
    with pytest.raises(KernelError, match=why):
        vmlinux(image)


@given(st.permutations(range(6)), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_modules_come_after_what_they_need(wanted: list[int], pairs: list[tuple[int, int]]) -> None:
    needs = {number: sorted({low for low, high in pairs if high == number and low < high}) for number in range(6)}
    modules = {
        f"m_{number}": b"\0license=GPL\0depends=" + ",".join(f"m-{one}" for one in ones).encode() + b"\0"
        for number, ones in needs.items()
    }
    order = in_order(modules, tuple(f"m-{number}" for number in wanted))
    assert sorted(order) == sorted(modules)
    for number, ones in needs.items():
        for one in ones:
            assert order.index(f"m_{one}") < order.index(f"m_{number}")


def test_a_module_that_is_built_in_is_left_out_and_one_that_lacks_another_is_refused() -> None:
    assert in_order({"a": b"\0depends=\0"}, ("a", "built_in")) == ["a"]
    with pytest.raises(KernelError, match="a needs b"):
        in_order({"a": b"\0depends=b\0"}, ("a",))


def test_without_apt_the_way_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match=r"no apt-get or dpkg-deb here: build it on Debian 12"):
        build(tmp_path / "image", lambda _step: None)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo 'E: Unable to locate package linux-image-cloud-amd64' >&2; exit 100", "Unable to locate package"),
        ("echo 'W: a warning' >&2; echo 'E: Could not resolve host: deb.example' >&2; exit 100", "Could not resolve host"),
        ("exit 1", "failed without a word"),
        ("echo Package: linux-image-cloud-amd64", "names no kernel"),
        ("echo 'Depends: linux-image-6.1.0-1-cloud-amd64 (= 6.1)'", "apt knows no SHA-256 of busybox"),
    ],
)
def test_an_apt_that_fails_is_quoted_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("apt-get", "apt-cache", "dpkg-deb"):
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    steps: list[str] = []
    with pytest.raises(ImageError, match=why):
        build(tmp_path / "image", steps.append)
    assert any("package lists" in step for step in steps)
    assert find(tmp_path / "image") is None
    assert record_of(tmp_path / "image") is None
    assert not list((tmp_path / "image" / "images").iterdir())


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"key":"../..","digest":1}'])
def test_a_damaged_record_is_no_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "current.json").write_bytes(content)
    assert find(tmp_path) is None


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match=r"file/image.*Not a directory"):
        build(tmp_path / "file" / "image", lambda _step: None)
