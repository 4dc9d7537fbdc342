"""The seccomp filter of a sandbox: a small BPF assembler and the list of what is refused. Standard library only.

Everything that is not named is allowed: user code brings its own libraries. Refused is what reaches beyond a sandbox
(mounts, namespaces, other processes' memory, kernel modules, keys, io_uring) and every socket family but UNIX, INET,
INET6 and NETLINK; AF_VSOCK above all, because no namespace holds it.
"""

import errno
import struct

AUDIT_ARCH_X86_64 = 0xC000003E
X32_BIT = 0x4000_0000
NAMESPACE_FLAGS = 0x7E02_0080  # CLONE_NEW*: user, pid, net, ipc, uts, cgroup, mnt, time

_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF_0000, 0x0005_0000, 0x8000_0000
_NUMBER_AT, _ARCH_AT, _FIRST_ARGUMENT_AT = 0, 4, 16

SOCKET_FAMILIES = (1, 2, 10, 16)  # UNIX, INET, INET6, NETLINK

REFUSED: dict[str, int] = {
    "uselib": 134, "personality": 135, "ustat": 136, "sysfs": 139, "vhangup": 153, "modify_ldt": 154, "pivot_root": 155,
    "_sysctl": 156, "adjtimex": 159, "chroot": 161, "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166,
    "swapon": 167, "swapoff": 168, "reboot": 169, "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173,
    "create_module": 174, "init_module": 175, "delete_module": 176, "get_kernel_syms": 177, "query_module": 178,
    "quotactl": 179, "nfsservctl": 180, "lookup_dcookie": 212, "clock_settime": 227, "kexec_load": 246, "add_key": 248,
    "request_key": 249, "keyctl": 250, "mknod": 133, "mknodat": 259, "migrate_pages": 256, "unshare": 272,
    "move_pages": 279, "perf_event_open": 298, "fanotify_init": 300, "fanotify_mark": 301, "name_to_handle_at": 303,
    "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311,
    "kcmp": 312, "finit_module": 313, "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323, "ptrace": 101,
    "syslog": 103, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_getfd": 438,
    "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443, "landlock_create_ruleset": 444,
    "memfd_secret": 447, "process_mrelease": 448, "statmount": 457, "listmount": 458, "open_tree_attr": 467,
}  # fmt: skip
ORIGINAL_ALLOWED = ("setns", "landlock_create_ruleset")
"""What the original of a function template may do beyond an instance: let its clones enter what the keeper made for them, and
lock themselves there."""
SOCKET, SOCKETPAIR, CLONE, CLONE3 = 41, 53, 56, 435

_Code = list[tuple[int, int, int, int]]


def _refuse(code: int) -> tuple[int, int, int, int]:
    return (_RETURN, 0, 0, _ERRNO | code)


_ALLOWED = (_RETURN, 0, 0, _ALLOW)


def _leaves(allowed: tuple[str, ...]) -> dict[int, _Code]:
    """System call number -> what to do about it."""
    leaves: dict[int, _Code] = {number: [_refuse(errno.EPERM)] for name, number in REFUSED.items() if name not in allowed}
    leaves[CLONE3] = [_refuse(errno.ENOSYS)]  # glibc then uses clone, whose flags a filter can see
    leaves[CLONE] = [(_LOAD, 0, 0, _FIRST_ARGUMENT_AT), (_JUMP_SET, 0, 1, NAMESPACE_FLAGS), _refuse(errno.EPERM), _ALLOWED]
    families: _Code = [(_LOAD, 0, 0, _FIRST_ARGUMENT_AT)]
    for index, family in enumerate(SOCKET_FAMILIES):
        families.append((_JUMP_EQUAL, len(SOCKET_FAMILIES) - index, 0, family))
    families += [_refuse(errno.EAFNOSUPPORT), _ALLOWED]
    leaves[SOCKET] = leaves[SOCKETPAIR] = families
    return leaves


def _tree(ranges: list[tuple[int, _Code]]) -> _Code:
    """Binary search over (first number, code): few steps per call, and few for the kernel's own walk at install."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    low, high = _tree(ranges[:middle]), _tree(ranges[middle:])
    if len(low) <= 255:
        return [(_JUMP_GREATER_EQUAL, len(low), 0, ranges[middle][0]), *low, *high]
    return [(_JUMP_GREATER_EQUAL, 0, 1, ranges[middle][0]), (0x05, 0, 0, len(low)), *low, *high]  # a far jump


def assemble(allowed: tuple[str, ...] = ()) -> bytes:
    """The filter as sock_filter instructions, without those of REFUSED that are `allowed`."""
    leaves = _leaves(allowed)
    ranges: list[tuple[int, _Code]] = []
    for number in sorted({0, *leaves, *(number + 1 for number in leaves)}):
        code = leaves.get(number, [_ALLOWED])
        if not ranges or ranges[-1][1] != code:
            ranges.append((number, code))
    program = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_JUMP_EQUAL, 1, 0, AUDIT_ARCH_X86_64),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_GREATER_EQUAL, 0, 1, X32_BIT),
        _refuse(errno.ENOSYS),
        *_tree(ranges),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
