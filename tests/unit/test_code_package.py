"""Zips become layers, or are refused with the rule they break."""

import contextlib
import io
import random
import stat
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workers.code.archive import unpack_archive, verify_old_layer
from workers.code.layers import Limits
from workers.code.manifest import check_path
from workers.code.package import Package, PackageError, build_package

TINY = Limits(size=100_000, files=50)


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> io.BytesIO:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out


def with_entry(name: str, content: bytes = b"x", mode: int = stat.S_IFREG | 0o644, **more: object) -> io.BytesIO:
    out = zipped({"handler.py": b"def f(e, c): return e\n"})
    with zipfile.ZipFile(out, "a") as archive:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        for key, value in more.items():
            setattr(entry, key, value)
        archive.writestr(entry, content)
    return out


def build(archive: io.BytesIO, limits: Limits = TINY) -> tuple[Package, io.BytesIO]:
    out = io.BytesIO()
    package = build_package(archive, out, limits)
    out.seek(0)
    return package, out


def refusal(archive: io.BytesIO, limits: Limits = TINY) -> PackageError:
    with pytest.raises(PackageError) as caught:
        build(archive, limits)
    return caught.value


def test_same_files_same_digest_whatever_order_dates_and_compression() -> None:
    files = {"b.py": b"2", "a/x.py": b"1", "data.bin": b"\0" * 5000}
    backwards = dict(reversed(files.items()))
    first, bytes_of_first = build(zipped(files))
    second, bytes_of_second = build(zipped(backwards, zipfile.ZIP_STORED))
    assert first.digest == second.digest
    assert bytes_of_first.getvalue() == bytes_of_second.getvalue()


@pytest.mark.parametrize("change", [{"a.py": b"1 "}, {"a.py": b"1", "b.py": b""}, {"A.py": b"1"}])
def test_another_content_or_name_is_another_digest(change: dict[str, bytes]) -> None:
    assert build(zipped({"a.py": b"1"}))[0].digest != build(zipped(change))[0].digest


def test_the_executable_bit_counts_and_other_bits_do_not() -> None:
    plain, odd, executable = (build(with_entry("run.sh", mode=stat.S_IFREG | mode))[0].digest for mode in (0o644, 0o4606, 0o755))
    assert plain == odd
    assert plain != executable


def test_what_is_unpacked_is_what_was_packed(tmp_path: Path) -> None:
    package, archive = build(zipped({"pkg/__init__.py": b"", "pkg/ü.txt": "ä".encode(), "handler.py": b"x" * 3000}))
    listing = unpack_archive(archive, tmp_path, TINY)
    assert listing == package.listing
    assert (tmp_path / "pkg" / "ü.txt").read_bytes() == "ä".encode()
    assert verify_old_layer(tmp_path, package.digest, TINY)
    (tmp_path / "handler.py").write_bytes(b"y")
    assert not verify_old_layer(tmp_path, package.digest, TINY)


@pytest.mark.parametrize(
    "name",
    [
        "../escape.py", "/etc/passwd", "a/../../b", "a//b", "./a", "a/./b", "C:\\x", "C:x", "a\\..\\b", "\\\\host\\share",
        "new\nline", "tab\t", "del\x7f", "x" * 256, "/".join(["y" * 200] * 6), "..", ".", "a/..",
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere_or_hide_are_refused(name: str) -> None:
    assert repr(name[:60])[:20] in str(refusal(with_entry(name)))


def test_a_name_cut_at_a_zero_character_is_refused() -> None:
    raw = with_entry("evil.pyXetc").getvalue().replace(b"evil.pyXetc", b"evil.py\0etc")
    assert "control characters" in str(refusal(io.BytesIO(raw)))


def test_a_name_that_is_not_marked_utf8_is_refused() -> None:
    raw = with_entry("caf_.py").getvalue().replace(b"caf_.py", b"caf\xe9.py")
    assert "UTF-8" in str(refusal(io.BytesIO(raw)))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_path_twice_is_refused() -> None:
    assert "twice" in str(refusal(with_entry("handler.py")))


@pytest.mark.parametrize(("first", "second"), [("A.py", "a.py"), ("Pkg/x.py", "pkg/y.py"), ("caf\u00e9", "cafe\u0301")])
def test_names_that_are_one_on_some_disks_are_refused(first: str, second: str) -> None:
    assert "case or composition" in str(refusal(zipped({first: b"1", second: b"2"})))


def test_a_file_that_is_also_a_folder_is_refused() -> None:
    assert "file and a folder" in str(refusal(zipped({"a": b"1", "a/b": b"2"})))
    assert "file and a folder" in str(refusal(zipped({"a/b": b"2", "a": b"1"})))


def test_folders_named_explicitly_are_fine() -> None:
    package, _ = build(zipped({"pkg/": b"", "pkg/sub/": b"", "pkg/sub/m.py": b"1"}))
    assert [file.path for file in package.listing.files] == ["pkg/sub/m.py"]


def test_a_link_to_a_file_of_the_zip_becomes_a_copy(tmp_path: Path) -> None:
    _, archive = build(with_entry("pkg/link.py", b"../handler.py", stat.S_IFLNK | 0o777))
    unpack_archive(archive, tmp_path, TINY)
    assert not (tmp_path / "pkg" / "link.py").is_symlink()
    assert (tmp_path / "pkg" / "link.py").read_bytes() == (tmp_path / "handler.py").read_bytes()


@pytest.mark.parametrize("target", [b"/etc/passwd", b"../../etc/passwd", b"nowhere.py", b".", b"", b"\xff\xfe", b"x" * 5000])
def test_links_that_lead_anywhere_else_are_refused(target: bytes) -> None:
    refusal(with_entry("link", target, stat.S_IFLNK | 0o777))


def test_a_link_to_a_link_is_refused() -> None:
    out = with_entry("one", b"handler.py", stat.S_IFLNK | 0o777)
    with zipfile.ZipFile(out, "a") as archive:
        entry = zipfile.ZipInfo("two")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, b"one")
    assert "a link may only name" in str(refusal(out))


def test_copies_of_linked_files_count_against_the_size() -> None:
    out = zipped({"big": b"x" * 60_000})
    with zipfile.ZipFile(out, "a") as archive:
        entry = zipfile.ZipInfo("again")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, b"big")
    assert "copies of linked files" in str(refusal(out))


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_devices_pipes_and_sockets_are_refused(kind: int) -> None:
    assert "only files, folders and links" in str(refusal(with_entry("odd", mode=kind | 0o644)))


def test_a_bomb_is_refused_by_what_it_declares() -> None:
    assert "declares over" in str(refusal(zipped({"bomb": b"\0" * 200_000})))


def test_a_bomb_that_lies_about_its_size_is_refused_by_what_it_is() -> None:
    """The central directory is made to say 10 bytes; the content stays 90,000."""
    honest = zipped({"bomb": b"\0" * 90_000})
    raw = bytearray(honest.getvalue())
    at = raw.rfind(b"PK\x01\x02")
    raw[at + 24 : at + 28] = (10).to_bytes(4, "little")
    refusal(io.BytesIO(bytes(raw)))
    raw[at + 24 : at + 28] = (95_000).to_bytes(4, "little")
    refusal(io.BytesIO(bytes(raw)))


def test_too_many_files_are_refused() -> None:
    assert "50" in str(refusal(zipped({f"f{number}": b"" for number in range(51)})))


def test_an_end_record_that_claims_a_huge_directory_is_refused_before_it_is_read() -> None:
    raw = bytearray(zipped({"a": b"1"}).getvalue())
    at = raw.rfind(b"PK\x05\x06")
    raw[at + 12 : at + 16] = (64 << 20).to_bytes(4, "little")
    assert "too many entries" in str(refusal(io.BytesIO(bytes(raw))))


def test_encrypted_entries_are_refused() -> None:
    raw = bytearray(zipped({"a": b"1"}).getvalue())
    at = raw.rfind(b"PK\x01\x02")
    raw[at + 8] |= 1
    assert "encrypted" in str(refusal(io.BytesIO(bytes(raw))))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(method: int) -> None:
    assert "stored and deflated" in str(refusal(zipped({"a": b"1"}, method)))


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip at all", b"PK\x05\x06" + b"\0" * 18, b"\0" * 100])
def test_what_is_no_zip_is_refused(content: bytes) -> None:
    refusal(io.BytesIO(content))


def test_requirements_come_out_accepted_or_name_their_file() -> None:
    package, _ = build(zipped({"h.py": b"", "requirements.txt": b"# deps\nsix==1.16.0\n"}))
    assert package.requirements == ("six==1.16.0",)
    assert refusal(zipped({"h.py": b"", "requirements.txt": b"-r /etc/passwd\n"})).field == "package.requirements.txt"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30),
        st.binary(max_size=200),
        max_size=8,
    )
)
def test_any_zip_is_refused_or_becomes_a_layer_of_safe_paths(files: dict[str, bytes]) -> None:
    try:
        package, _ = build(zipped(files))
    except PackageError:
        return
    for file in package.listing.files:
        assert check_path(file.path) == file.path
        assert file.mode in (0o644, 0o755)
    assert {file.path for file in package.listing.files} <= {name.removesuffix("/") for name in files}


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_damaged_zips_raise_nothing_but_package_errors(seed: int, damages: int) -> None:
    chance = random.Random(seed)
    raw = bytearray(zipped({"pkg/a.py": b"a = 1\n" * 50, "b.txt": bytes(range(256)), "requirements.txt": b"six\n"}).getvalue())
    for _ in range(damages):
        raw[chance.randrange(len(raw))] = chance.randrange(256)
    if chance.random() < 0.3:
        del raw[chance.randrange(len(raw)) :]
    with contextlib.suppress(PackageError):
        build(io.BytesIO(bytes(raw)))
