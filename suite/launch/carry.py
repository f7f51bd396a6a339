"""State of a grid in few files of bounded size, for machines without shared folder.

`save` writes the finished and interrupted stages as one archive in pieces, `load` restores them in the next slice. The manifest
`carry.json` names the pieces with their sha256 and is written last: a slice that dies in between keeps the previous archive.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict

from suite import jsonfile
from suite.files import write_bytes, write_json
from suite.run import Context
from suite.run.folder import is_done
from suite.stages import Stage

log = logging.getLogger(__name__)

MANIFEST = "carry.json"
PIECE = re.compile(r"carry-[0-9a-f]{12}-\d+\.tar")
MEMBER = re.compile(r"(?:base|learned|pruned|timed)-[0-9a-f]{12}/[\w-][\w.-]*")
NOT_CARRIED = {"progress.json", "done.json.replaced", "done.json.damaged"}
BLOCK = tarfile.BLOCKSIZE


class Manifest(TypedDict):
    """Content of `carry.json`: name -> sha256 of each piece, in order."""

    pieces: dict[str, str]


def check(files: int, mb: float) -> None:
    """Raise ValueError if so many files of this size cannot hold an archive."""
    if files < 2 or not mb >= 0.1:
        raise ValueError(f"--carry-files {files} --carry-mb {mb:g}: take 2 files or more, of 0.1 MB or more")


def save(stages: Sequence[Stage], context: Context, folder: Path, *, files: int, mb: float) -> list[Stage]:
    """Write the stages' state to `folder`; return the stages that do not fit.

    files  most files of `folder`, the manifest included
    mb     most megabytes of each
    Finished stages come first, as the others start from them, then checkpoints. A stage is carried whole or not at all.
    """
    check(files, mb)
    limit = (files - 1) * int(mb * 1e6) - 2 * tarfile.RECORDSIZE
    carried, left_out = [], []
    for stage in sorted(stages, key=lambda stage: not is_done(stage, context)):
        paths = list(_files(context.folder(stage)))
        size = sum(BLOCK + -(-path.stat().st_size // BLOCK) * BLOCK for path in paths)
        if size > limit:
            left_out.append(stage)
            continue
        limit -= size
        carried += paths
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in carried:
            tar.add(path, f"{path.parent.name}/{path.name}", recursive=False)
    _write(archive.getbuffer(), folder, int(mb * 1e6))
    if left_out:
        log.warning(
            "%d stages do not fit into %d files of %g MB in %s and start anew, %s first; raise --carry-files or --carry-mb",
            *(len(left_out), files, mb, folder, left_out[0].label),
        )
    return left_out


def load(context: Context, folder: Path) -> int:
    """Restore the saved files that are newer than local ones; return their number.

    A no-op if `folder` has no archive. Raises ValueError naming a piece that is missing or damaged.
    """
    try:
        pieces = jsonfile.read(folder / MANIFEST, Manifest)["pieces"]
    except FileNotFoundError:
        return 0
    except ValueError:
        raise ValueError(f"{folder / MANIFEST} is damaged; delete {MANIFEST} to start the grid anew") from None
    contents = []
    for name, digest in pieces.items():
        content = (folder / name).read_bytes() if PIECE.fullmatch(name) and (folder / name).is_file() else b""
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError(
                f"{folder / name} is missing or damaged; copy all {len(pieces)} files that {MANIFEST} names, or delete "
                f"{MANIFEST} to start the grid anew"
            )
        contents.append(content)
    try:
        with tarfile.open(fileobj=io.BytesIO(b"".join(contents)), mode="r:") as tar:
            return sum(_restore(tar, member, context.results / "work") for member in _in_order(tar))
    except tarfile.TarError as error:
        raise ValueError(f"the pieces in {folder} are no archive ({error}); delete {MANIFEST} to start anew") from error


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a stage that a continuation needs."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.is_file() and MEMBER.fullmatch(f"{folder.name}/{path.name}") and path.name not in NOT_CARRIED:
                yield path


def _write(archive: memoryview, folder: Path, piece: int) -> None:
    """Write the pieces, then the manifest, then delete the pieces of the previous archive."""
    folder.mkdir(parents=True, exist_ok=True)
    tag = hashlib.sha256(archive).hexdigest()[:12]
    digests = {}
    for number, first in enumerate(range(0, len(archive), piece)):
        content = archive[first : first + piece]
        write_bytes(folder / f"carry-{tag}-{number}.tar", content)
        digests[f"carry-{tag}-{number}.tar"] = hashlib.sha256(content).hexdigest()
    write_json(folder / MANIFEST, {"pieces": digests})
    for path in folder.iterdir():
        if PIECE.fullmatch(path.name) and path.name not in digests:
            path.unlink()


def _in_order(tar: tarfile.TarFile) -> Iterable[tarfile.TarInfo]:
    """Return the members, each `done.json` last: the files that it lists exist then."""
    return sorted(tar.getmembers(), key=lambda member: member.name.endswith("/done.json"))


def _restore(tar: tarfile.TarFile, member: tarfile.TarInfo, work: Path) -> bool:
    """Write one file unless a local file is as new; return True if written.

    Raises ValueError if the member is no file of a stage.
    """
    content = tar.extractfile(member) if member.isfile() and MEMBER.fullmatch(member.name) else None
    if content is None:
        raise ValueError(f"the archive holds {member.name!r}, which is no file of a stage; delete {MANIFEST}")
    path = work / member.name
    if path.exists() and path.stat().st_mtime >= member.mtime:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content.read())
    return True
