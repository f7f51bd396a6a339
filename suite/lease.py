"""Who does what, on one machine or on many that share a file system: a lock file with its owner and a heartbeat.

The file is created exclusively, which NFS does atomically since version 3, so of several processes one gets it. The owner
touches it; another process takes over when it has seen no change for `LEASE_S` seconds of its own clock, so clocks need not
agree, or at once when the owner was on the same host and is gone. `LEASE_S` is longer than NFS clients keep attributes (60 s
by default).

What this does not give, on NFS or anywhere: an owner that is cut off or asleep for so long is taken over and may wake up and
write. Work under a lease must therefore leave the same bits whoever writes last, each file whole; stages do.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

LEASE_S = 90.0
HEARTBEAT_S = 15.0


@contextmanager
def held(path: Path, *, waiting: Callable[[str], None], lost: Callable[[], None]) -> Iterator[None]:
    """Hold the lease of this file; it is gone afterwards, and with the process.

    waiting  called twice a second with the present owner, until the lease is free; what it raises ends the wait
    lost     called from another thread when somebody took over
    """
    lease = _lease(path, lost)
    while True:
        try:
            lease.acquire(timeout=0.5)
            break
        except Timeout:
            waiting(owner(path))
    try:
        yield
    finally:
        lease.release()


def owner(path: Path) -> str:
    """The process that this file names, "process 123 on node7"; "" when there is none. It may be dead."""
    record = _lease(path).owner
    return f"process {record.pid} on {record.hostname.partition('?')[0]}" if record else ""


def is_fresh(path: Path) -> bool:
    """Whether the lease is held and was touched lately. Its owner may have died since; by another clock it may seem older."""
    try:
        return time.time() - os.stat(path).st_mtime < 2 * LEASE_S
    except OSError:
        return False


def host() -> str:
    """This machine, as `owner` names it."""
    return socket.gethostname()


def _lease(path: Path, lost: Callable[[], None] = lambda: None) -> SoftFileLease:
    return SoftFileLease(
        path, lease_duration=LEASE_S, heartbeat_interval=HEARTBEAT_S, on_compromise=lambda _: lost(), poll_interval=0.1
    )
