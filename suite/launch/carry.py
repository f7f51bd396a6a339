"""State of a grid in few files of bounded size, for machines without shared folder.

`save` writes the finished and interrupted stages and the tables of layer times as one archive in pieces, `load` restores them in
the next slice. The manifest `carry.json` names the pieces with their sha256 and is written last: a slice that dies in between
keeps the previous archive.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict

from suite import data, jsonfile
from suite.files import write_bytes, write_json
from suite.launch import speed
from suite.measure.latency_budget import FOLDER as LAYER_TIMES
from suite.run import Context
from suite.run.folder import is_done
from suite.stages import Base, Pruned, Stage, Timed

log = logging.getLogger(__name__)

MANIFEST = "carry.json"
PIECE = re.compile(r"carry-[0-9a-f]{12}-\d+\.tar")
MEMBER = re.compile(rf"(?:base|learned|pruned|timed)-[0-9a-f]{{12}}/[\w-][\w.-]*|{LAYER_TIMES}/[\w-][\w.-]*\.json")
NOT_CARRIED = {"progress.json", "done.json.replaced", "done.json.damaged"}
BLOCK = tarfile.BLOCKSIZE


class Manifest(TypedDict):
    """Content of `carry.json`: name -> sha256 of each piece, in order."""

    pieces: dict[str, str]


def capacity(files: int, mb: float) -> int:
    """Return the bytes of stages that fit into the files beside the manifest.

    Raises ValueError if they cannot hold an archive.
    """
    if files < 2 or not mb >= 0.1:
        raise ValueError(f"--carry-files {files} --carry-mb {mb:g}: take 2 files or more, of 0.1 MB or more")
    return (files - 1) * int(mb * 1e6) - 2 * tarfile.RECORDSIZE


def check(stages: Sequence[Stage], todo: Sequence[Stage], context: Context, *, files: int, mb: float) -> str:
    """Return a line if the finished outputs of all stages do not fit, else "".

    Sizes follow from the networks' weights.
    Raises ValueError if a stage to do does not fit beside the outputs that it starts from: no slice could continue it.
    """
    room, outputs = capacity(files, mb), sum(output_bytes(stage, context) for stage in stages)
    sizes = {
        stage.label: sum(output_bytes(need, context) for need in stage.needs) + work_bytes(stage, context)
        for stage in todo
    }
    label, largest = max(sizes.items(), key=lambda item: item[1], default=("", 0))
    every = f"--carry-mb {_mb(outputs, files)} holds the outputs of all {len(stages)} stages, {outputs / 1e6:,.0f} MB at most"
    held = f"--carry-files {files} --carry-mb {mb:g} hold {room / 1e6:,.0f} MB"
    if largest > room:
        raise ValueError(
            f"{held}, and {label} takes about {largest / 1e6:,.0f} MB, with the outputs that it starts from: "
            f"take --carry-mb {_mb(largest, files)} or more; {every}"
        )
    return f"{held}; {every}: stages that do not fit start anew in the next slice" if outputs > room else ""


def _mb(size: int, files: int) -> int:
    """Return the megabytes of each file but the manifest; 2 % are logs and padding."""
    return math.ceil(1.02 * size / 1e6 / (files - 1))


def output_bytes(stage: Stage, context: Context) -> int:
    """Return the bytes of a finished stage's weights; of a pruned network at most."""
    if isinstance(stage, Timed):
        return 0
    return _weights_bytes(stage, context) * (2 if isinstance(stage, Base) else 1)


def work_bytes(stage: Stage, context: Context) -> int:
    """Return the bytes of a running stage: its checkpoints, and weights that it has written.

    A checkpoint has weights and momentum; average and best epoch if the schedule has them. A packed network counts by its share
    of MACs. The state of a learner, mostly small, is left out.
    """
    schedule = stage.schedule
    if schedule is None or not schedule.epochs:
        return output_bytes(stage, context)
    copies = 2.0 + bool(schedule.ema_decay) + (schedule.keep != "last")
    if isinstance(stage, Pruned):
        copies *= schedule.cycles * (1 - stage.budget.share)
    return int(_weights_bytes(stage, context) * (copies + isinstance(stage, Base)))


def _weights_bytes(stage: Stage, context: Context) -> int:
    """Return the bytes of the dense network's weights; 0 if they are not known."""
    try:
        about = data.size(stage.base.data, context.data)
        return speed.size_of(stage.base.model, about.classes, about.input_shape).bytes
    except (ValueError, OSError):
        return 0


def save(stages: Sequence[Stage], context: Context, folder: Path, *, files: int, mb: float) -> list[Stage]:
    """Write stages and tables of layer times to `folder`; return the stages left out.

    files  most files of `folder`, the manifest included
    mb     most megabytes of each
    Tables come first, then finished stages, as the others start from them, then checkpoints. A stage is carried whole or not
    at all. A table that does not fit is measured again.
    """
    room = capacity(files, mb)
    carried, left_out = [], []
    for path in sorted((context.results / LAYER_TIMES).glob("*.json")):
        if (size := _archived_bytes(path)) <= room:
            room -= size
            carried.append(path)
    for stage in sorted(stages, key=lambda stage: not is_done(stage, context)):
        paths = list(_files(context.folder(stage)))
        size = sum(map(_archived_bytes, paths))
        if size > room:
            left_out.append(stage)
            continue
        room -= size
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
            return sum(_restore(tar, member, context.results) for member in _in_order(tar))
    except tarfile.TarError as error:
        raise ValueError(f"the pieces in {folder} are no archive ({error}); delete {MANIFEST} to start anew") from error


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a stage that a continuation needs."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.is_file() and MEMBER.fullmatch(f"{folder.name}/{path.name}") and path.name not in NOT_CARRIED:
                yield path


def _archived_bytes(path: Path) -> int:
    """Return the bytes of a file in the archive, with its header."""
    return BLOCK + -(-path.stat().st_size // BLOCK) * BLOCK


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


def _restore(tar: tarfile.TarFile, member: tarfile.TarInfo, results: Path) -> bool:
    """Write one file unless a local file is as new; return True if written.

    Raises ValueError if the member is neither a file of a stage nor a table of layer times.
    """
    content = tar.extractfile(member) if member.isfile() and MEMBER.fullmatch(member.name) else None
    if content is None:
        raise ValueError(f"the archive holds {member.name!r}, which is no file of a stage; delete {MANIFEST}")
    path = (results if member.name.startswith(LAYER_TIMES) else results / "work") / member.name
    if path.exists() and path.stat().st_mtime >= member.mtime:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content.read())
    return True
