"""What is in a guest's first and only root: busybox, a trimmed CPython with the libraries it needs, modules, our two files."""

import os
import re
import stat
import subprocess
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from workers.drivers.microvm import cpio, kernel
from workers.drivers.microvm.packages import PackageError, contents, unpack
from workers.networks import RESOLVER

KERNEL = "linux-image-cloud-amd64"
PYTHON = "3.11"
PACKAGES = (
    "busybox", "ca-certificates", "libbz2-1.0", "libc6", "libcrypt1", "libexpat1", "libffi8", "libgcc-s1", "liblzma5",
    "libpython3.11-minimal", "libpython3.11-stdlib", "libsqlite3-0", "libssl3", "libstdc++6", "libuuid1", "python3.11-minimal",
    "zlib1g",
)  # fmt: skip
OURS_AT = "usr/lib/foreglow"
OURS = ("runtime.py", "warmup.py", "rehearsal.py", "importing.py", "held.py", "machine.py", "microvm.py")
GUEST = Path(__file__).parents[2] / "guest"
COMPILING = Path(__file__).with_name("compiling.py")
COMPILE_TIMEOUT_S = 600.0
STDLIB = f"usr/lib/python{PYTHON}"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
_LEFT_OUT = re.compile(
    rf"^(usr/share/|usr/bin/(?!(python{PYTHON}|busybox)$)|usr/sbin/|sbin/|etc/(?!ssl)|var/|usr/lib/(tmpfiles|sysusers|binfmt|systemd|ssl|valgrind)"
    rf"|{STDLIB}/(test|idlelib|tkinter|turtledemo|lib2to3|ensurepip|pydoc_data|unittest/test|config-.*|turtle\.py|__phello__)(/|$)"
    rf"|{STDLIB}/lib-dynload/(_curses|_curses_panel|readline|_dbm|_gdbm|nis|_tkinter|_test\w*|xxlimited\w*|_ctypes_test|ossaudiodev)\."
    r"|usr/lib/x86_64-linux-gnu/(gconv/|audit/|perl|libmemusage|libpcprofile|libnss_hesiod|libnss_compat|libthread_db|libmvec"
    r"|libnsl\.|libBrokenLocale|libc_malloc_debug))"
)
_INIT = f"""#!/usr/bin/python{PYTHON} -ISBXutf8
import sys
sys.path.insert(0, "/{OURS_AT}")
from workers.guest import microvm
microvm.main()
"""
_ETC = {
    "passwd": "root:x:0:0::/:/bin/false\nfunction:x:1000:1000::/tmp:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    "group": "root:x:0:\nfunction:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "resolv.conf": f"nameserver {RESOLVER}\noptions timeout:2 attempts:2\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
_NO_APPLETS = ("init", "linuxrc")  # what a kernel starts where it cannot start ours
_DEVICES = (("console", 0o600, (5, 1)), ("null", 0o666, (1, 3)), ("urandom", 0o666, (1, 9)))  # until devtmpfs is there
_FOLDERS = ("dev", "etc", "opt/deps", "proc", "root", "run", "sys", "tmp", "var/task", "var/empty")
BUNDLE = "etc/ssl/certs/ca-certificates.crt"


def assemble(archives: Mapping[str, Path], aside: Path, out: BinaryIO, progress: Callable[[str], None]) -> bytes:
    """Writes the initramfs made of the packages' `archives` (by name) to `out`; the kernel, as an ELF file, is returned.

    `aside`: an empty folder to work in. Raises PackageError, KernelError, OSError.
    """
    progress("unpacking")
    tree = aside / "tree"
    tree.mkdir()
    for name in PACKAGES:
        unpack(archives[name], tree)
    _merge_usr(tree)
    entries: dict[str, cpio.Entry] = {}
    image, modules = _kernel(next(path for name, path in archives.items() if name.startswith("linux-image-")))
    order = kernel.in_order(modules)
    for name in order:
        entries[f"lib/modules/{name}.ko"] = cpio.file(modules[name])
    entries["lib/modules/list"] = cpio.file("".join(f"{name}\n" for name in order).encode())
    progress("compiling the standard library")
    ours = tree / OURS_AT / "workers" / "guest"
    ours.mkdir(parents=True)
    for name in OURS:
        (ours / name).write_bytes((GUEST / name).read_bytes())
    for package in (ours, ours.parent):
        (package / "__init__.py").write_bytes(b"")
    _prune(tree)
    compile_with(tree, tree / STDLIB, f"/{STDLIB}", "legacy")
    compile_with(tree, tree / OURS_AT, f"/{OURS_AT}", "cached")
    progress("writing the initramfs")
    entries |= _files(tree)
    entries |= {path: cpio.folder(0o1777 if path == "tmp" else 0o755) for path in _FOLDERS}
    entries |= {f"etc/{name}": cpio.file(text.encode()) for name, text in _ETC.items()}
    entries[BUNDLE] = cpio.file(_certificates(tree))
    entries |= {f"dev/{name}": cpio.device(mode, *numbers) for name, mode, numbers in _DEVICES}
    entries["init"] = cpio.file(_INIT.encode(), 0o755)
    for name in ("bin", "sbin", "lib64"):
        entries[name] = cpio.link(f"usr/{name}")
    for applet in _run(tree, "usr/bin/busybox", ["--list"]).split():
        if applet not in _NO_APPLETS:
            entries.setdefault(f"usr/bin/{applet}", cpio.link("busybox"))
    entries["usr/bin/python3"] = entries["usr/bin/python"] = cpio.link(f"python{PYTHON}")
    cpio.write(_real_lib(entries), out)
    return image


def compile_with(tree: Path, folder: Path, prefix: str, where: str) -> None:
    """Runs compiling.py with the interpreter unpacked in `tree`. Raises PackageError."""
    _run(tree, f"usr/bin/python{PYTHON}", ["-s", "-S", "-B", "-P", str(COMPILING), str(folder), prefix, where])


def _run(tree: Path, program: str, arguments: Sequence[str]) -> str:
    """Runs a program of the tree with the tree's own loader and libraries: it may be older or newer than the host's."""
    loader = tree / "usr/lib64/ld-linux-x86-64.so.2"
    command = [str(loader), "--library-path", str(tree / LIBRARIES), str(tree / program), *arguments]
    environment = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env=environment,
            timeout=COMPILE_TIMEOUT_S,
            cwd="/",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PackageError(f"{program} of the guest does not run here: {error}") from error
    if done.returncode:
        raise PackageError(f"{program} of the guest failed here: {done.stderr[-600:]}")
    return done.stdout


def _merge_usr(tree: Path) -> None:
    """Packages of Debian 12 still have files in /lib and /bin, which are links to /usr."""
    for name in ("bin", "sbin", "lib", "lib64"):
        for parent, folders, names in os.walk(tree / name):
            target = tree / "usr" / Path(parent).relative_to(tree)
            target.mkdir(parents=True, exist_ok=True)
            for entry in [*names, *(folder for folder in folders if (Path(parent) / folder).is_symlink())]:
                os.replace(Path(parent) / entry, target / entry)
    loader = tree / "usr/lib64/ld-linux-x86-64.so.2"
    if loader.is_symlink():
        points_to = os.readlink(loader)
        loader.unlink()
        loader.symlink_to("../lib/x86_64-linux-gnu/" + os.path.basename(points_to))


def _prune(tree: Path) -> None:
    """Sources that would be compiled only to be left out."""
    for parent, _, names in os.walk(tree / STDLIB):
        for name in names:
            path = Path(parent) / name
            if _LEFT_OUT.match(str(path.relative_to(tree))):
                path.unlink()


def _files(tree: Path) -> dict[str, cpio.Entry]:
    """What of the tree goes in: no documentation, no tests, of the standard library bytecode only."""
    entries: dict[str, cpio.Entry] = {}
    for parent, folders, names in os.walk(tree):
        folders.sort()
        for name in sorted([*names, *(folder for folder in folders if (Path(parent) / folder).is_symlink())]):
            whole = Path(parent) / name
            path = str(whole.relative_to(tree))
            if not path.startswith("usr/") or _LEFT_OUT.match(path):
                continue
            mode = whole.lstat().st_mode
            if stat.S_ISLNK(mode):
                entries[path] = cpio.link(os.readlink(whole))
            elif stat.S_ISREG(mode) and not (path.startswith(STDLIB) and path.endswith(".py")):
                entries[path] = cpio.file(whole.read_bytes(), 0o755 if mode & 0o111 else 0o644)
    return entries


def _certificates(tree: Path) -> bytes:
    """What `update-ca-certificates` makes on a host: all of them, one after another."""
    found = sorted((tree / "usr/share/ca-certificates").rglob("*.crt"))
    return b"".join(path.read_bytes().rstrip(b"\n") + b"\n" for path in found)


def _real_lib(entries: dict[str, cpio.Entry]) -> dict[str, cpio.Entry]:
    """/lib is a link to usr/lib: what was put below it moves."""
    moved = {("usr/" + path if path.startswith("lib/") else path): entry for path, entry in entries.items()}
    return moved | {"lib": cpio.link("usr/lib")}


def _kernel(archive: Path) -> tuple[bytes, dict[str, bytes]]:
    """The kernel as an ELF file, and every module of the package by its name."""
    image, modules = b"", dict[str, bytes]()
    with contents(archive) as process, tarfile.open(fileobj=cast(BinaryIO, process.stdout), mode="r|") as tar:
        for member in tar:
            name = member.name.rpartition("/")[2]
            if member.isreg() and (name.startswith("vmlinuz-") or name.endswith(".ko")):
                file = tar.extractfile(member)
                assert file is not None
                if name.endswith(".ko"):
                    modules[name.removesuffix(".ko").replace("-", "_")] = file.read()
                else:
                    image = file.read()
    if not image:
        raise PackageError(f"{archive.name}: there is no kernel in the package")
    return kernel.vmlinux(image), modules
