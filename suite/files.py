"""Atomic file writes: under a temporary name, flushed, then moved."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path, and move its file to `path` after the block.

    If the block raises, `path` stays unchanged. An OSError carries `path`, also if the system gave no file name (a full disk).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        with contextlib.suppress(PermissionError):  # a confined process may not; its files stay private
            part.chmod(0o666 & ~_umask())
        os.replace(part, path)
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; a FIFO does not block.

    Raises OSError, and ValueError if the path is a FIFO, a folder or a device.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return open(handle, "rb")
    os.close(handle)
    raise ValueError(f"{path} is no regular file")


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path`, atomically."""
    with replacing(path) as part:
        part.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically; raises ValueError for NaN and infinity."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def is_of_machine(error: BaseException) -> bool:
    """Return True for an error of the storage or the memory.

    Such an error is no evidence about a file's content. Parsers raise OSError without a number for a damaged file.
    """
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)


def short_path(path: Path) -> str:
    """Return the path from the working folder, if it is below; otherwise as it is."""
    return os.path.relpath(path) if path.absolute().is_relative_to(Path.cwd()) else str(path)


def plain_name(name: str) -> str:
    """Return `name` if it names a file directly inside a folder.

    Every file name read from a JSON file goes through here. Raises ValueError for a path, "..", and names with a null byte.
    """
    if not isinstance(name, str) or name != Path(name).name or "\0" in name or "\\" in name:
        raise ValueError(f"{name!r} is no plain file name")
    return name


def sha256(path: Path) -> str:
    """Return the hex digest of the file's bytes."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    """Return the process's umask.

    Read from the system, because setting it would race with other threads.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022


def remove_parts(folder: Path) -> None:
    """Remove temporary files of killed processes from a folder: those older than PART_S."""
    for part in folder.glob(".*.part"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > PART_S:
                part.unlink()


PART_S = 3600.0
"""Age at which no living process writes to a temporary file any more."""
