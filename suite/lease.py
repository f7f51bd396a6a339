"""Leases: lock files with owner and heartbeat, on a shared file system.

The file is created exclusively, which is atomic on NFS since version 3, so one of several processes gets the lease. The owner
touches the file. Another process takes the lease over if the file has not changed for `LEASE_S` seconds of that process's own
clock, so clocks need not agree; if the owner was on the same host and has ended, at once. `LEASE_S` is longer than the time for
which NFS clients cache attributes (60 s by default).

Limit, on NFS or anywhere: the lease of an owner that is cut off or suspended for `LEASE_S` is taken over, and the owner may
resume. `held` gives the owner a check before each write. Between check and write the owner may be suspended too, so work under a
lease must also write the same bits in any process, each file atomically; stages do.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import SoftFileLease, Timeout

LEASE_S = 90.0
HEARTBEAT_S = 15.0


@contextlib.contextmanager
def held(path: Path, *, waiting: Callable[[str], None], lost: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Hold the lease at `path` during the block; yield a check of ownership.

    The lease ends with the process, too. The check returns True as long as the file names this holder: a process that was
    suspended until another one took the lease over must not write.

    waiting  called twice a second with the present owner, until the lease is free; its exceptions end the wait
    lost     called from another thread if another process took the lease over
    """
    lease = _lease(path, lost)
    empty = _EmptyFile(path)
    while True:
        try:
            lease.acquire(timeout=0.5)
            break
        except Timeout:
            empty.expire()
            waiting(owner(path))
    with contextlib.suppress(OSError), path.open("rb") as file:  # a lease that only a cache holds would be empty later
        os.fsync(file.fileno())

    def is_ours() -> bool:
        record = lease.owner
        return record is not None and record.token == lease.token

    try:
        yield is_ours
    finally:
        lease.release()


class _EmptyFile:
    """Age of a lease file without content.

    A crash between creation and first write leaves such a file. It names no owner, so no end of an owner frees it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version: tuple[int, int] | None = None
        self.since = 0.0

    def expire(self) -> None:
        """Delete the file if it was empty and unchanged for `LEASE_S`.

        The age is taken by this process's monotonic clock.
        """
        try:
            status = self.path.stat()
        except OSError:
            self.version = None
            return
        version = (status.st_ino, status.st_mtime_ns) if status.st_size == 0 else None
        if version is None or version != self.version:
            self.version, self.since = version, time.monotonic()
        elif time.monotonic() - self.since >= LEASE_S:
            self.path.unlink(missing_ok=True)


def owner(path: Path) -> str:
    """Return the owner in the lease file, "process 123 on node7", or "".

    The owner may have ended.
    """
    record = _lease(path).owner
    return f"process {record.pid} on {record.hostname.partition('?')[0]}" if record else ""


def is_fresh(path: Path) -> bool:
    """Return True if the lease is held with a recent heartbeat.

    The age is taken by this host's clock.
    The owner may have ended since.
    """
    try:
        return time.time() - os.stat(path).st_mtime < 2 * LEASE_S
    except OSError:
        return False


def host() -> str:
    """Return this machine's name as in `owner`."""
    return socket.gethostname()


def _lease(path: Path, lost: Callable[[], None] = lambda: None) -> SoftFileLease:
    return SoftFileLease(
        path, lease_duration=LEASE_S, heartbeat_interval=HEARTBEAT_S, on_compromise=lambda _: lost(), poll_interval=0.1
    )
