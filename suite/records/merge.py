"""Merge of results folders: rows, and the outputs of finished stages.

Keys are hashes of all inputs of a stage, so equal keys are the same work. Of two rows with one key
- equal ones (in the result fields; latency in all measured columns) become one: the first folder's row is kept;
- a result replaces a failure;
- different results are a conflict: the first folder's row stays, the other is kept beside it as
  `KEY.json.conflict-DIGEST`, and both are listed.
An output (`work/KEY/`, if `done.json` exists and its files are complete) comes from the folder of the kept row, so that row
and network belong together; if the rows are equal, from either folder. Base and learned networks with one key and different
bytes are listed, too: the first folder's output stays, and rows of runs from the other one carry its checksum.

Sources stay unchanged. Unfinished work, tables and figures are not merged: a launch, or `python -m suite.report`, makes them
again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suite import jsonfile
from suite.files import replacing, write_json
from suite.records import Done, PrunedRow, Row, from_dict, row_path, rows_folder

ALSO = ("history.jsonl", "started.json", "log.txt")
"""Files of a finished stage that are not listed in `done.json`."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """Counts of a merge, and the conflicts and unreadable files that need a decision."""

    counts: Counter[str] = field(default_factory=Counter)
    conflicts: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def merge(first: Path, second: Path, into: Path | None = None, *, outputs: bool = True) -> Merged:
    """Merge `second` into `first`, or both into a new folder `into`. Idempotent.

    Without `outputs` only rows are merged.
    Raises ValueError if a folder holds no results, or if the folders are the same.
    """
    _check(first, second, into)
    target, merged = into or first, Merged()
    for source in (first, second) if into else (second,):
        rows = {key: _read(path, merged) for key, path in _rows(source)}
        refused = {key for key, row in rows.items() if row is None or not _take(row, source, target, merged)}
        for folder in sorted((source / "work").glob("*/done.json")) if outputs else ():
            if folder.parent.name not in refused:
                copy_output(folder.parent, target / "work" / folder.parent.name, merged)
    return merged


def _check(first: Path, second: Path, into: Path | None) -> None:
    for folder in (first, second):
        if not rows_folder(folder).is_dir() and not (folder / "work").is_dir():
            raise ValueError(
                f"{folder} holds no results: it has neither rows/ nor work/; name a folder that --results named"
            )
    if first.resolve() == second.resolve():
        raise ValueError(f"{first} and {second} are the same folder; name two")
    if into is None:
        return
    if any(folder.resolve() in (into.resolve(), *into.resolve().parents) for folder in (first, second)):
        raise ValueError(
            f"--into {into} is one of the folders or lies in one; leave it out to merge {second} into {first}"
        )
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise ValueError(
            f"--into {into} exists and is not empty; name a new folder, or merge into it: merge {into} ..."
        )


def _rows(source: Path) -> Iterator[tuple[str, Path]]:
    return ((path.stem, path) for path in sorted(rows_folder(source).glob("*.json")))


def _read(path: Path, merged: Merged) -> Row | None:
    """Return the row in this file, or None.

    An unreadable file stays unchanged and is listed.
    """
    try:
        row = from_dict(jsonfile.loads(jsonfile.read_bytes(path)))
        if row.key != path.stem:
            raise ValueError(f"it holds the row {row.key}")
        return row
    except (OSError, ValueError) as error:
        merged.unreadable.append(f"{path}: {' '.join(str(error).split())}")
        return None


def _take(row: Row, source: Path, target: Path, merged: Merged) -> bool:
    """Write a row into the target. Return False if the target's row stays and differs."""
    origin, path = row_path(source, row.key), row_path(target, row.key)
    present = _read(path, merged) if path.exists() else None
    if present is None and path.exists():
        return False
    if present is None or (present.status != "done" and row.status == "done"):
        merged.counts["rows taken" if present is None else "failures replaced by results"] += 1
        write_json(path, jsonfile.loads(jsonfile.read_bytes(origin)))
        return True
    if row.status != "done":
        merged.counts["failures beside a result" if present.status == "done" else "equal rows"] += 1
        return present.status != "done"
    if not (differing := _differing(present, row)):
        merged.counts["equal rows"] += 1
        return True
    digest = hashlib.sha256(json.dumps(_result(row), sort_keys=True).encode()).hexdigest()[:8]
    beside = path.with_name(f"{path.name}.conflict-{digest}")
    write_json(beside, jsonfile.loads(jsonfile.read_bytes(origin)))
    values = ", ".join(f"{name} {_result(present)[name]!r} and {_result(row)[name]!r}" for name in differing[:3])
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    merged.conflicts.append(f"{row.key} ({row.label}): {values}{more}; {path} stays, {origin} is kept as {beside.name}")
    return False


def _result(row: Row) -> dict[str, Any]:
    """Return the columns that equal rows share.

    Of a pruned row these are the result fields, of a latency row all columns but its origin.
    """
    if isinstance(row, PrunedRow):
        return {name: getattr(row, name) for name in row.result_fields}
    return {
        name: value for name, value in dataclasses.asdict(row).items() if name not in ("provenance", "stage", "label")
    }


def _differing(one: Row, other: Row) -> list[str]:
    first, second = _result(one), _result(other)
    return [name for name in first if first[name] != second[name]]


def copy_output(source: Path, target: Path, merged: Merged) -> None:
    """Copy a finished stage's files, `done.json` last. A damaged output in the target is replaced."""
    if (done := _whole(source)) is None:
        merged.unreadable.append(
            f"{source}: its done.json cannot be read, or a listed file is missing, has another size or lies elsewhere"
        )
        return
    files = done["files"]
    if (present := _whole(target)) is not None:
        if differing := [name for name, about in files.items() if about != present["files"].get(name)]:
            merged.conflicts.append(f"{source.name} ({done['label']}): {', '.join(differing)} differs; {target} stays")
        return
    for name in copied_names(source, files):
        with replacing(target / name) as part:
            shutil.copyfile(source / name, part)
    with contextlib.suppress(FileNotFoundError):
        (target / "failed.json").unlink()
    merged.counts["outputs copied"] += 1


def copied_names(folder: Path, files: Iterable[str]) -> list[str]:
    """Return the names of the files that are copied of a finished stage.

    `files` are the listed ones; `done.json` is last.
    """
    return [*files, *(name for name in ALSO if (folder / name).is_file()), "done.json"]


def _whole(folder: Path) -> dict[str, Any] | None:
    """Return the content of `done.json`, or None if the output is incomplete.

    It is incomplete if a listed file is missing, has another size, or lies outside the folder.
    """
    try:
        done = jsonfile.checked(folder / "done.json", Done)
        whole = all((folder / name).stat().st_size == about["bytes"] for name, about in done["files"].items())
        return done if whole else None
    except (OSError, ValueError):
        return None
