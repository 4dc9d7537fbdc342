"""The seccomp filter, run by a small BPF interpreter of the test's own."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.drivers.process import seccomp

ALLOW, KILL = "allow", "kill"
X86_64, I386 = 0xC000003E, 0x40000003


def run(number: int, arch: int = X86_64, first: int = 0) -> str | int:
    """What the filter says: `allow`, `kill`, or the errno."""
    data = struct.pack("=IIQ6Q", number, arch, 0, first, 0, 0, 0, 0, 0)
    program = list(struct.iter_unpack("=HBBI", seccomp.assemble()))
    at, value = 0, 0
    for _ in range(len(program)):
        code, yes, no, k = program[at]
        at += 1
        if code == 0x20:
            value = struct.unpack_from("=I", data, k)[0]
        elif code == 0x15:
            at += yes if value == k else no
        elif code == 0x35:
            at += yes if value >= k else no
        elif code == 0x45:
            at += yes if value & k else no
        elif code == 0x05:
            at += k
        elif code == 0x06:
            return ALLOW if k == 0x7FFF0000 else KILL if k == 0x80000000 else k & 0xFFFF
        else:
            raise AssertionError(f"unknown instruction {code:#x}")
    raise AssertionError("the program does not end")


@pytest.mark.parametrize("name", seccomp.REFUSED)
def test_each_refused_call_is_refused(name: str) -> None:
    assert run(seccomp.REFUSED[name]) == errno.EPERM


@given(st.integers(0, 600))
def test_every_other_call_is_allowed(number: int) -> None:
    special = {*seccomp.REFUSED.values(), seccomp.SOCKET, seccomp.SOCKETPAIR, seccomp.CLONE, seccomp.CLONE3}
    if number not in special:
        assert run(number) == ALLOW


@given(st.integers(0, 0xFFFFFFFF))
def test_sockets_of_four_families_only(family: int) -> None:
    for call in (seccomp.SOCKET, seccomp.SOCKETPAIR):
        assert run(call, first=family) == (ALLOW if family in (1, 2, 10, 16) else errno.EAFNOSUPPORT)


@pytest.mark.parametrize("family", range(48))
def test_small_families_one_by_one(family: int) -> None:
    assert run(seccomp.SOCKET, first=family) == (ALLOW if family in seccomp.SOCKET_FAMILIES else errno.EAFNOSUPPORT)


@given(st.integers(0, 0xFFFFFFFF))
def test_clone_without_namespaces_only(flags: int) -> None:
    namespaces = 0x10000000 | 0x20000000 | 0x40000000 | 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x80
    assert run(seccomp.CLONE, first=flags) == (errno.EPERM if flags & namespaces else ALLOW)


def test_a_fork_and_a_thread_are_allowed_and_clone3_is_not_there() -> None:
    assert run(seccomp.CLONE, first=0x01200011) == ALLOW  # glibc's fork
    assert run(seccomp.CLONE, first=0x003D0F00) == ALLOW  # glibc's thread
    assert run(seccomp.CLONE3) == errno.ENOSYS


@given(st.integers(0, 0xFFFFFFFF))
def test_other_architectures_end_the_process(number: int) -> None:
    assert run(number, arch=I386) == KILL


@given(st.integers(0x40000000, 0xFFFFFFFF))
def test_the_x32_table_is_not_there(number: int) -> None:
    assert run(number) == errno.ENOSYS


def test_it_is_short_enough_for_the_kernel_and_for_speed() -> None:
    assert len(seccomp.assemble()) // 8 < 256
