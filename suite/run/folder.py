"""A stage's own folder, `results/work/KEY/`: what is done, what failed, and why.

A stage is done when `done.json` is there and the files that it lists are whole. Rows are the records; this folder decides
what is done.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite import distributed, records
from suite.files import sha256, write_json
from suite.stages import Stage, identity

log = logging.getLogger(__name__)

TRIES = 3
"""A stage that fails in the same way so often is left alone until somebody asks for it."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """Where and on what a stage runs; none of it changes a result but for rounding on another device."""

    results: Path
    data: Path | None = None
    device: str = "cpu"
    threads: int = 0
    """0: as many as there are cores."""
    max_minutes: float | None = None

    def folder(self, stage: Stage) -> Path:
        """The stage's own folder."""
        return self.results / "work" / stage.key


def is_done(stage: Stage, context: Context) -> bool:
    """True when the stage's output is there and whole. A damaged output is set aside and named in the log."""
    try:
        done = output(stage, context)
        if done is None:
            return False
        if done["row"] and _json(_row_path(stage, context)) != done["row"]:  # a comparison; rows are made when it fails
            row = records.from_dict(done["row"])
            if records.read(_row_path(stage, context)) != row:
                records.write(row, context.results)
    except DamagedError as error:
        _set_aside(context.folder(stage), error.files)
        return False
    except ValueError:
        _set_aside(context.folder(stage), ["done.json"])
        return False
    return True


def seems_done(stage: Stage, context: Context) -> bool:
    """True when the stage's output is there and whole. Changes nothing, whatever is damaged or missing."""
    try:
        return output(stage, context) is not None
    except DamagedError:
        return False


class DamagedError(ValueError):
    """Files of a finished stage are not as they were written."""

    def __init__(self, files: list[str]) -> None:
        super().__init__(", ".join(files))
        self.files = files


def output(stage: Stage, context: Context) -> dict[str, Any] | None:
    """What `done.json` says, its files being there in their size; None when the stage is not done. Changes nothing.

    Raises DamagedError.
    """
    folder = context.folder(stage)
    try:
        done = json.loads((folder / "done.json").read_bytes())
        damaged = [name for name, about in done["files"].items() if not _has_size(folder / name, about["bytes"])]
        done["row"], done["result"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        damaged = ["done.json"]
    if damaged:
        raise DamagedError(damaged)
    return done


def check_files(stage: Stage, context: Context) -> None:
    """Compare the finished stage's files with their checksums, before they are used.

    Raises ValueError naming the damaged ones; the stage is then no longer done.
    """
    folder = context.folder(stage)
    files = json.loads((folder / "done.json").read_text())["files"]
    if damaged := [name for name, about in files.items() if sha256(folder / name) != about["sha256"]]:
        _set_aside(folder, damaged)
        raise ValueError(
            f"{', '.join(damaged)} of {stage.key} is damaged; run the same command again to redo that stage"
        )


def _set_aside(folder: Path, damaged: list[str]) -> None:
    log.warning("%s: %s is damaged; the stage is done again", folder, ", ".join(damaged))
    os.replace(folder / "done.json", folder / "done.json.damaged")


def _row_path(stage: Stage, context: Context) -> Path:
    return records.rows_folder(context.results) / f"{stage.key}.json"


def _has_size(path: Path, size: int) -> bool:
    try:
        return os.stat(path).st_size == size
    except OSError:
        return False


def _json(path: Path) -> Any:
    """What the file holds; None when it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def failure(stage: Stage, context: Context) -> dict[str, Any] | None:
    """Status and reason of the last attempt, when it failed."""
    return _json(context.folder(stage) / "failed.json")


def count_failure(stage: Stage, context: Context, status: str, reason: str) -> None:
    """Remember one more failure of this kind and reason. Numbers in reasons (sizes, jobs, epochs) make no difference."""
    counts = _failures(stage, context)
    kind = re.sub(r"\d+", "#", f"{status}: {reason}")
    counts[kind] = {"times": counts.get(kind, {"times": 0})["times"] + 1, "reason": reason}
    write_json(context.folder(stage) / "failures.json", counts)


def given_up(stage: Stage, context: Context) -> str | None:
    """Why the stage is left alone, when it has failed in the same way `TRIES` times; None when it may be tried."""
    for failures in _failures(stage, context).values():
        if failures["times"] >= TRIES:
            times, reason = failures["times"], failures["reason"]
            return f"given up after {times} equal failures: {reason}; --retry-failed tries it again"
    return None


def forget_failures(stage: Stage, context: Context) -> None:
    """Let the stage be tried again, however often it has failed."""
    (context.folder(stage) / "failures.json").unlink(missing_ok=True)


def _failures(stage: Stage, context: Context) -> dict[str, dict[str, Any]]:
    return _json(context.folder(stage) / "failures.json") or {}


def finish(
    stage: Stage, context: Context, files: Iterable[str], result: Mapping[str, Any], row: records.Row | None
) -> None:
    """Write the row, then mark the stage as done, then drop what only a continuation needed. The first task does it for all."""
    if not distributed.is_first():
        return
    folder = context.folder(stage)
    if row is not None:
        records.write(row, context.results)
    whole = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in files}
    about = {"stage": identity(stage), "label": stage.label, "files": whole, "result": dict(result)}
    write_json(folder / "done.json", {**about, "row": records.to_dict(row) if row else None})
    for leftover in (
        *folder.glob("train*.pt"),
        *folder.glob("plan*.safetensors"),
        *folder.glob("*.part"),
        folder / "failed.json",
        folder / "failures.json",
        folder / "progress.json",
    ):
        leftover.unlink(missing_ok=True)


def result_of(stage: Stage, context: Context) -> dict[str, Any]:
    """The `result` of a finished stage."""
    return json.loads((context.folder(stage) / "done.json").read_text())["result"]
