"""Measurement of other people's networks in a confined child process with time limits.

A network file is a program. The parent reads nothing of the file but the kind; the child inspects, loads and measures the file.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from suite import sandbox

IMPORTED, RAN = b"i", b"r"
"""Messages of the child after its imports, and after the first pass of the networks."""
MEMORY_SHARE = 0.8
"""Memory limit of the child, as a share of the memory that is available now."""
IMPORTS_S = 120.0
"""Time limit of the child's imports, during which no code of other people runs."""
ENDED_BY_US = 2


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a measurement.

    first_pass_s  seconds to load the networks and run each of them once
    minutes       for the whole measurement
    """

    first_pass_s: float
    minutes: float


def run(files: Sequence[Path], arguments: Sequence[str], limits: Limits, *, trust: bool) -> int:
    """Run `python -m suite.measure ARGUMENTS` in a child; return the exit status.

    The status is 2 if the child was stopped.

    files  the networks of other people among the arguments
    trust  do not confine the child
    Raises ValueError if the system cannot confine the child.
    """
    memory_bytes = int(MEMORY_SHARE * psutil.virtual_memory().available)
    confinement = (
        "without confinement (--trust)"
        if trust
        else f"with no writes outside of a scratch folder, no network, and {memory_bytes / 1e9:.1f} GB"
    )
    if not trust and not sandbox.is_supported():
        raise ValueError(
            f"{files[0]} is a program, and this system cannot confine it (Landlock 3 and seccomp, Linux 6.2 or newer): if you "
            "trust its author, --trust runs it"
        )
    sys.stderr.write(
        f"suite.measure: {', '.join(map(str, files))}: a network file is a program; it runs {confinement}, "
        f"at most {limits.first_pass_s:g} s until the end of its first pass, {limits.minutes:g} minutes in all\n"
    )
    sys.stderr.flush()
    with tempfile.TemporaryDirectory(prefix="suite-measure-") as scratch:
        reader, writer = os.pipe()
        command = [sys.executable, "-m", "suite.measure", *arguments, "--report-to", str(writer)]
        if not trust:
            command = sandbox.command(command, memory_bytes=memory_bytes, writable=[Path(scratch)])
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            env=_environment(scratch),
            pass_fds=[writer],
            start_new_session=True,  # no terminal, and one group to kill
        )
        os.close(writer)
        try:
            return _follow(child, reader, limits, files)
        finally:
            _kill(child)
            os.close(reader)


def _environment(scratch: str) -> dict[str, str]:
    """Return the child's environment: caches in the scratch folder, and no reader processes.

    Readers pass images through sockets, which are forbidden, and would wait for ever.
    """
    caches = (
        "TMPDIR",
        "XDG_CACHE_HOME",
        "TORCHINDUCTOR_CACHE_DIR",
        "TRITON_CACHE_DIR",
        "CUDA_CACHE_PATH",
        "MPLCONFIGDIR",
    )
    return {**os.environ, **dict.fromkeys(caches, scratch), "PYTHONDONTWRITEBYTECODE": "1", "SUITE_WORKERS": "0"}


def _follow(child: subprocess.Popen[bytes], reader: int, limits: Limits, files: Sequence[Path]) -> int:
    """Wait for the child; return its exit status.

    The status is 2 if a limit or a signal ended the child, and 130 after Ctrl-C.
    """
    names, began = " and ".join(map(str, files)), time.monotonic()
    try:
        if _message(reader, IMPORTS_S) == IMPORTED and _message(reader, limits.first_pass_s) is None:
            return _say(
                f"{names} had not ended its first pass after {limits.first_pass_s:g} s and was stopped; --timeout S waits longer"
            )
        status = child.wait(max(0.0, began + 60 * limits.minutes - time.monotonic()))
    except subprocess.TimeoutExpired:
        return _say(f"{names} was stopped after {limits.minutes:g} minutes; --max-minutes M waits longer")
    except KeyboardInterrupt:
        _say("stopped")
        return 128 + signal.SIGINT
    if status < 0:
        name = signal.Signals(-status).name
        return _say(f"{names} ended its process by {name}; out of memory is a usual reason: try a smaller --batch")
    return status


def _message(reader: int, seconds: float) -> bytes | None:
    """Return the child's next message, or None if none comes within the time.

    The message is b"" if the child has ended.
    """
    ready, _, _ = select.select([reader], [], [], seconds)
    return os.read(reader, 1) if ready else None


def _say(text: str) -> int:
    sys.stderr.write(f"suite.measure: {text}\n")
    return ENDED_BY_US


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and the processes of its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def report(handle: int | None, message: bytes) -> None:
    """Send a message to the parent; a no-op without a parent."""
    if handle is not None and handle >= 0:
        os.write(handle, message)
