"""A confined command leaves times and attributes of other files as they are."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from suite import sandbox

pytestmark = pytest.mark.skipif(not sandbox.is_supported(), reason="needs Landlock and seccomp")


NUMBERS = [463, 466, 469] + ([132, 235, 261] if platform.machine() == "x86_64" else [])
"""Calls without a function of Python: setxattrat, removexattrat, file_setattr; utime, utimes, futimesat."""


def test_times_and_attributes_of_a_file_outside_stay(tmp_path: Path) -> None:
    outside, scratch = tmp_path / "outside", tmp_path / "scratch"
    outside.touch()
    scratch.mkdir()
    os.utime(outside, (1, 1))
    code = f"""
import ctypes, os
name = {str(outside)!r}
handle = os.open(name, os.O_RDONLY)
for attempt in (
    lambda: os.utime(name), lambda: os.utime(handle), lambda: os.utime(name, follow_symlinks=False),
    lambda: os.removexattr(name, "user.a"), lambda: os.removexattr(handle, "user.a"),
    lambda: os.removexattr(name, "user.a", follow_symlinks=False),
):
    try:
        attempt()
        print("allowed")
    except OSError as error:
        print(error.errno)
libc = ctypes.CDLL(None, use_errno=True)
for number in {NUMBERS}:
    print(ctypes.get_errno() if libc.syscall(number, -1, -1, -1, -1, -1, -1) else "allowed")
"""
    words = sandbox.command([sys.executable, "-c", code], memory_bytes=1 << 30, writable=[scratch])
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [str(errno.EACCES)] * (6 + len(NUMBERS)), (done.stdout, done.stderr)
    assert outside.stat().st_mtime == 1
