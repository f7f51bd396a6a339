"""State of a stage on disk, `results/work/KEY/`: done, failed, and the reason.

A stage is done if `done.json` exists and the files that it lists have their sizes. Rows are the records; this folder decides
if a stage is done.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict, TypeVar

from suite import jsonfile, records
from suite.files import sha256, write_json
from suite.run.context import Context
from suite.stages import Base, Stage

log = logging.getLogger(__name__)

T = TypeVar("T")

TRIES = 3
"""Equal failures after which a stage is skipped until `--retry-failed`."""


def is_done(stage: Stage, context: Context) -> bool:
    """Return True if the stage's output is complete. Reads only: see `repair`."""
    try:
        return output(stage, context) is not None
    except DamagedError:
        return False


def repair(stage: Stage, context: Context) -> None:
    """Set a damaged output aside; rewrite a missing or different row.

    A no-op if the stage is not done or is complete. Called before a stage is executed, and by the launcher before it plans.
    """
    try:
        done = output(stage, context)
        if done is None or not done["row"]:
            return
        path = records.row_path(context.results, stage.key)
        if _json(path) != done["row"]:  # compares plain JSON first: building rows of thousands of stages takes seconds
            row = records.from_dict(done["row"])
            if row.key != stage.key:
                raise ValueError(f"it holds the row {row.key}")
            if records.read(path) != row:
                records.write(row, context.results)
    except DamagedError as error:
        _set_aside(context.folder(stage), error.files)
    except (ValueError, KeyError, TypeError, AttributeError):  # its row is none
        _set_aside(context.folder(stage), ["done.json"])


class DamagedError(ValueError):
    """Raised if files of a finished stage are missing or have another size."""

    def __init__(self, files: list[str]) -> None:
        super().__init__(", ".join(files))
        self.files = files


def output(stage: Stage, context: Context) -> dict[str, Any] | None:
    """Return the content of `done.json`, or None if the stage is not done. Reads only.

    Raises DamagedError naming the files that are missing or have another size.
    """
    folder = context.folder(stage)
    try:
        done = jsonfile.checked(folder / "done.json", records.Done)
        damaged = [name for name, about in done["files"].items() if not _has_size(folder / name, about["bytes"])]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        damaged = ["done.json"]
    if damaged:
        raise DamagedError(damaged)
    return done


def check_files(stage: Stage, context: Context) -> None:
    """Compare the finished stage's files with their checksums, before another stage reads the files.

    Sets a damaged output aside, so that the stage runs again. Raises ValueError naming the damaged files.
    """
    folder = context.folder(stage)
    try:
        files = jsonfile.checked(folder / "done.json", records.Done)["files"]
        damaged = [name for name, about in files.items() if sha256(folder / name) != about["sha256"]]
    except FileNotFoundError:  # set aside by another process, which has met the same damage
        damaged = ["done.json"]
    if damaged:
        _set_aside(folder, damaged)
        raise ValueError(
            f"{', '.join(damaged)} of {stage.key} is damaged; run the same command again to redo that stage"
        )


def _set_aside(folder: Path, damaged: list[str]) -> None:
    log.warning("%s: %s is damaged; the stage is done again", folder, ", ".join(damaged))
    with contextlib.suppress(FileNotFoundError):  # another process was first
        os.replace(folder / "done.json", folder / "done.json.damaged")


def _has_size(path: Path, size: int) -> bool:
    try:
        return os.stat(path).st_size == size
    except (FileNotFoundError, NotADirectoryError):
        return False


def _json(path: Path) -> Any:
    """Return the file's content, or None if the file is missing or is no JSON."""
    try:
        return jsonfile.loads(jsonfile.read_bytes(path))
    except (OSError, ValueError):
        return None


def result_of(stage: Stage, context: Context) -> dict[str, Any]:
    """Return the `result` of a finished stage."""
    return jsonfile.checked(context.folder(stage) / "done.json", records.Done)["result"]


def base_result(base: Base, context: Context) -> BaseResult:
    """Return the result of a finished base stage.

    Raises ValueError if an entry is missing or has another type.
    """
    return _converted(base, context, BaseResult)


def skipped_by(stage: Stage, context: Context) -> list[str]:
    """Return the names of the images that a finished stage and its needs skipped.

    Raises ValueError as `base_result` does.
    """
    return _converted(stage, context, Result).get("skipped", [])


def _converted(stage: Stage, context: Context, kind: type[T]) -> T:
    path = context.folder(stage) / "done.json"
    try:
        return jsonfile.convert(result_of(stage, context), kind)
    except ValueError as error:
        raise ValueError(
            f"{path}: the result of {stage.label} is damaged ({error}); delete {path} to redo it"
        ) from error


class Result(TypedDict):
    """Result of a stage that reads images; outputs of earlier versions lack `skipped`."""

    skipped: NotRequired[list[str]]


class BaseResult(Result):
    """Result of a base stage."""

    top1_pct: float
    params: int
    data_sha256: str
    base_sha256: str


class Failure(TypedDict):
    """Count and last reason of equal failures."""

    times: int
    reason: str


def failure(stage: Stage, context: Context) -> dict[str, Any] | None:
    """Return status and reason of the last attempt if it failed.

    Return None if it did not fail, or if the file is damaged.
    """
    about = _json(context.folder(stage) / "failed.json")
    if not isinstance(about, dict) or about.get("status") not in ("failed", "diverged", "interrupted"):
        return None
    return about if isinstance(about.get("reason"), str) else None


def failed_need(reason: str) -> str:
    """Return the key of the needed stage whose failure is the reason; else ""."""
    match = re.match(r"needs ([a-z]+-[0-9a-f]{12})\b", reason)
    return match[1] if match else ""


def forget(stage: Stage, context: Context) -> None:
    """Set the stage's row and mark of completion aside as NAME.replaced, and delete its checkpoints.

    The stage then runs again. The earlier row stays beside the new one, to be compared or put back.
    """
    folder = context.folder(stage)
    for path in (records.row_path(context.results, stage.key), folder / "done.json"):
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, path.with_name(f"{path.name}.replaced"))
    for path in _checkpoints(stage, context):
        path.unlink(missing_ok=True)


def has_checkpoint(stage: Stage, context: Context) -> bool:
    """Return True if an earlier process left what the stage would go on from."""
    return any(True for _ in _checkpoints(stage, context))


def _checkpoints(stage: Stage, context: Context) -> Iterator[Path]:
    for pattern in ("train*.pt", "plan*.safetensors"):
        yield from context.folder(stage).glob(pattern)


def count_failure(stage: Stage, context: Context, status: str, reason: str) -> None:
    """Count one more failure of this status and reason.

    Reasons that differ in numbers only (sizes, jobs, epochs) are equal. Raises OSError if the storage does not give the count.
    """
    path = context.folder(stage) / "failures.json"
    try:
        counts = _failures(path)
    except ValueError:
        counts = {}
        log.warning("%s is damaged; it is set aside as %s.damaged, and the count begins again", path, path.name)
        os.replace(path, path.with_name(f"{path.name}.damaged"))
    kind = re.sub(r"\d+", "#", f"{status}: {reason}")
    counts[kind] = {"times": counts.get(kind, {"times": 0})["times"] + 1, "reason": reason}
    write_json(path, counts)


def given_up(stage: Stage, context: Context) -> str | None:
    """Return the reason to skip the stage, or None if it may be tried.

    It is skipped after `TRIES` equal failures.
    """
    try:
        counts = _failures(context.folder(stage) / "failures.json")
    except (OSError, ValueError):  # damaged or out of reach: it is tried
        return None
    for count in counts.values():
        if count["times"] >= TRIES:
            times, reason = count["times"], count["reason"]
            return f"given up after {times} equal failures: {reason}; --retry-failed tries it again"
    return None


def forget_failures(stage: Stage, context: Context) -> None:
    """Reset the count of failures, so that the stage is tried again."""
    (context.folder(stage) / "failures.json").unlink(missing_ok=True)


def _failures(path: Path) -> dict[str, Failure]:
    """Return kind -> times and reason of a stage's failures.

    Raises ValueError if the file is damaged, OSError if the storage does not give it.
    """
    try:
        return jsonfile.read(path, dict[str, Failure])
    except FileNotFoundError:
        return {}
