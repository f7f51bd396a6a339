"""Progress report of a stage in a small JSON file, and stop requests."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from suite import jsonfile

INTERVAL_S = 0.3


class Interrupted(Exception):
    """Raised if a stage stops at a checkpoint: by a signal or at its limit.

    A new start continues from there.
    """


class Superseded(Interrupted):
    """Raised if another process has taken the stage over; nothing more is written."""


class Watch:
    """Progress reports and stop requests of a stage.

    holds        returns False once another process has taken the stage over: this one must then write nothing
    path         progress.json of the stage, or None for no report; not flushed to disk, because its loss costs nothing
    max_minutes  time limit, at which the stage stops at a checkpoint; None for no limit
    """

    def __init__(self, path: Path | None = None, max_minutes: float | None = None) -> None:
        self.path = path
        self.deadline = time.monotonic() + 60 * max_minutes if max_minutes is not None else float("inf")
        self.signalled = threading.Event()
        self.holds: Callable[[], bool] = lambda: True
        self.started = time.monotonic()
        self._written = 0.0
        self._share_before: float | None = None

    def begin(self, path: Path) -> None:
        """Report on another stage from here on; limits and signals stay."""
        self.path, self.started, self._written, self._share_before = path, time.monotonic(), 0.0, None

    def check_holder(self) -> None:
        """Raise Superseded if another process has taken the stage over. Called before each write."""
        if not self.holds():
            raise Superseded("another process has taken this stage over")

    def listen(self, *signals: signal.Signals) -> None:
        """Stop at the end of the step in which one of these signals arrives.

        The handler only sets a flag.
        """

        def handler(number: int, frame: FrameType | None) -> None:
            self.signalled.set()

        for number in signals:
            signal.signal(number, handler)

    @property
    def must_stop(self) -> bool:
        """True after a signal or the time limit."""
        return self.signalled.is_set() or time.monotonic() >= self.deadline

    def report(self, doing: str, **numbers: Any) -> None:
        """Write the present activity, at most every `INTERVAL_S`. A no-op in between.

        numbers  columns of the report; `share` (0 to 1) is the finished part of the stage, from which the time left follows;
                 `share_before` is added: the part that was finished at the first step, by an earlier process
        """
        if "epoch" in numbers and self._share_before is None:
            self._share_before = numbers.get("share", 0.0)
        now = time.monotonic()
        if self.path is None or now - self._written < INTERVAL_S or not self.holds():
            return
        self._written = now
        state = {
            "doing": doing,
            "pid": os.getpid(),
            "began": began(os.getpid()),
            "host": socket.gethostname(),
            "job": os.environ.get("SLURM_JOB_ID", ""),
            "seconds": round(now - self.started, 1),
            "time": time.time(),
            **numbers,
            "share_before": self._share_before or 0.0,
        }
        part = self.path.with_suffix(f".{os.getpid()}.part")
        with contextlib.suppress(OSError):  # a folder that cannot be written for a while costs reports
            part.write_text(json.dumps(state))
            os.replace(part, self.path)


def read(path: Path) -> dict[str, Any]:
    """Return the last report of `Watch.report`; empty if there is none."""
    try:
        return jsonfile.read(path, dict[str, Any])
    except (OSError, ValueError):
        return {}


def is_alive(host: str, pid: int) -> bool | None:
    """Return True if the process exists and is no zombie.

    Return None if the process is on another host.
    """
    if host != socket.gethostname():
        return None
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def began(pid: int) -> int:
    """Return a process's start in clock ticks since boot; 0 if it has ended.

    Steps of the clock do not change the number, and a later process of the same number has another one.
    """
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def end_with_parent() -> None:
    """Kill this process as soon as its parent process has ended in any way."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "the main process has no parent of its own"

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
