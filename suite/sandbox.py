"""Confinement of a command: few writable folders, no network, limited memory.

`python -I suite/sandbox.py MEMORY FOLDER... -- COMMAND...` confines itself by Landlock, seccomp, resource limits and the loss of
all capabilities, then executes the command. Child processes inherit the confinement, and none of them can leave it.

The file imports no package, because threads that a package has started would stay unconfined.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF, CAPSET = (
    444,
    445,
    446,
    {"x86_64": 126, "aarch64": 91},
)
WRITE_FILE, REFER, TRUNCATE, DEVICES = 1 << 1, 1 << 13, 1 << 14, 1 << 15
MAKE_AND_REMOVE = sum(1 << bit for bit in range(4, 13))
"""Rights of Landlock, version 3; commands to devices (ioctl) since version 5."""
NO_ACCESS: tuple[tuple[str, int | None, int | None], ...] = (
    ("socket", 41, 198),
    ("ptrace", 101, 117),
    ("process_vm_writev", 311, 271),
    ("io_uring_setup", 425, 425),
    ("chmod", 90, None),
    ("fchmod", 91, 52),
    ("fchmodat", 268, 53),
    ("fchmodat2", 452, 452),
    ("chown", 92, None),
    ("lchown", 94, None),
    ("fchown", 93, 55),
    ("fchownat", 260, 54),
    ("setxattr", 188, 5),
    ("lsetxattr", 189, 6),
    ("fsetxattr", 190, 7),
    ("setxattrat", 463, 463),
    ("removexattr", 197, 14),
    ("lremovexattr", 198, 15),
    ("fremovexattr", 199, 16),
    ("removexattrat", 466, 466),
    ("file_setattr", 469, 469),
    ("utime", 132, None),
    ("utimes", 235, None),
    ("futimesat", 261, None),
    ("utimensat", 280, 88),
)
"""System calls that fail with EACCES, with their numbers on x86_64 and aarch64. Landlock covers none of them."""
ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Machine -> audit number, and place in the numbers of NO_ACCESS."""
FILE_BYTES = 4 << 30
"""Size limit of a file that the command writes."""

_libc = ctypes.CDLL(None, use_errno=True)


def is_supported() -> bool:
    """Return True if this system has Landlock and a seccomp filter for this machine."""
    return _landlock_version() >= 3 and platform.machine() in ARCHITECTURES


def command(arguments: Sequence[str], *, memory_bytes: int, writable: Sequence[Path]) -> list[str]:
    """Return the command line that runs `arguments` confined, with write access to the folders `writable`."""
    program = [sys.executable, "-I", __file__]
    return [*program, str(memory_bytes), *map(str, writable), "--", *arguments]


def confine(memory_bytes: int, writable: Sequence[Path]) -> None:
    """Confine this process and its later children. Raises OSError if the system refuses."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    _check(_libc.prctl(38, 1, 0, 0, 0), "no_new_privs")
    _landlock(writable)
    _drop_capabilities()
    _seccomp()


def _landlock_version() -> int:
    return _libc.syscall(LANDLOCK_CREATE_RULESET, None, 0, 1)


def _landlock(writable: Sequence[Path]) -> None:
    """Allow writes below `writable`, to /dev/null, GPUs and semaphores only."""
    version = _landlock_version()
    rights = WRITE_FILE | MAKE_AND_REMOVE | REFER | TRUNCATE | (DEVICES if version >= 5 else 0)
    # Rights on files; TCP of version 4; abstract sockets and signals to processes outside of version 6.
    attribute = struct.pack("QQQ", rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    attribute = attribute[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = _check(_libc.syscall(LANDLOCK_CREATE_RULESET, attribute, len(attribute), 0), "Landlock")
    devices = [path for path in Path("/dev").iterdir() if path.name.startswith("nvidia")]
    for path in (*writable, Path("/dev/null"), Path("/dev/shm"), *devices):
        if not path.exists():
            continue
        handle = os.open(path, os.O_PATH)
        allowed = rights if path.is_dir() else rights & (WRITE_FILE | TRUNCATE | DEVICES)
        rule = struct.pack("=Qi", allowed, handle)
        _check(_libc.syscall(LANDLOCK_ADD_RULE, ruleset, 1, rule, 0), "Landlock rule")
        os.close(handle)
    _check(_libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0), "Landlock")
    os.close(ruleset)


def _drop_capabilities() -> None:
    """Give up root's capabilities, such as access to files of all users.

    `no_new_privs` keeps execve from giving them back.
    """
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    _check(_libc.syscall(CAPSET[platform.machine()], header, none), "capset")


def _seccomp() -> None:
    """Let the system calls of NO_ACCESS fail."""
    audit, column = ARCHITECTURES[platform.machine()]
    numbers = [row[1:][column] for row in NO_ACCESS]
    load, equal, larger, leave = 0x20, 0x15, 0x35, 0x06
    refuse, allow, kill = 0x50000 | errno.EACCES, 0x7FFF0000, 0x80000000
    program = [(load, 0, 0, 4), (equal, 1, 0, audit), (leave, 0, 0, kill), (load, 0, 0, 0)]
    program += [(larger, 0, 1, 0x40000000), (leave, 0, 0, kill)]  # x32 has numbers of its own
    for number in (number for number in numbers if number is not None):
        program += [(equal, 0, 1, number), (leave, 0, 0, refuse)]
    program.append((leave, 0, 0, allow))
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code)
    filter_ = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(buffer))
    _check(_libc.prctl(22, 2, filter_, 0, 0), "seccomp")


def _check(result: int, name: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def main() -> None:
    """Confine this process, then execute the command."""
    split = sys.argv.index("--")
    memory_bytes, *folders = sys.argv[1:split]
    confine(int(memory_bytes), [Path(folder) for folder in folders])
    words = sys.argv[split + 1 :]
    os.execvp(words[0], words)


if __name__ == "__main__":
    main()
