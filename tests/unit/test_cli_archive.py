"""Packing a folder: deterministic, without what does not belong, and never a file from outside."""

import io
import os
import zipfile
from pathlib import Path

import pytest

from orchestrator.cli.archive import ArchiveError, pack


def fill(folder: Path) -> Path:
    for name in ("main.py", "lib/deep.py", ".git/HEAD", "__pycache__/main.pyc", "lib/.venv/x.py", "foreglow.toml", "old.pyc"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (folder / "tool").write_text("#!/bin/sh\n")
    (folder / "tool").chmod(0o755)
    return folder


def test_the_same_files_make_the_same_bytes(tmp_path: Path) -> None:
    one, two = fill(tmp_path / "one"), fill(tmp_path / "two")
    os.utime(two / "main.py", (1, 1))
    (two / "main.py").chmod(0o600)
    assert pack(one) == pack(two)
    (two / "foreglow.toml").write_text("changed")
    assert pack(one) == pack(two)
    (two / "main.py").write_text("changed")
    assert pack(one) != pack(two)


def test_what_does_not_belong_is_left_out_and_modes_are_kept(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(pack(fill(tmp_path)))) as archive:
        assert archive.namelist() == ["lib/deep.py", "main.py", "tool"]
        assert [entry.external_attr >> 16 & 0o777 for entry in archive.infolist()] == [0o644, 0o644, 0o755]


def test_requirements_from_elsewhere_take_the_place_of_the_folders_own(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "requirements.txt").write_text("a\n")
    (tmp_path / "shared.txt").write_text("b\n")
    with zipfile.ZipFile(io.BytesIO(pack(tmp_path / "code", tmp_path / "shared.txt"))) as archive:
        assert archive.read("requirements.txt") == b"b\n"


def test_links_inside_are_copied_and_links_out_refused(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "real.py").write_text("x = 1\n")
    (folder / "alias.py").symlink_to("real.py")
    with zipfile.ZipFile(io.BytesIO(pack(folder))) as archive:
        assert archive.read("alias.py") == b"x = 1\n"
    (folder / "out.py").symlink_to("/etc/passwd")
    with pytest.raises(ArchiveError, match=r"out\.py is a link out of"):
        pack(folder)
    (folder / "out.py").unlink()
    (folder / "up").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ArchiveError, match="is a link to a folder"):
        pack(folder)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="holds no files"):
        pack(tmp_path)
