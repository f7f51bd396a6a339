"""Record of a grid's last launch, `results/launches/GRID.json`, from which other shells find its jobs.

The record maps stages to SLURM jobs. The state of a stage is in the stage's own folder.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from suite import jsonfile, progress, records
from suite.files import write_json
from suite.stages import Stage

log = logging.getLogger(__name__)

LATEST_S = 1e11
"""Largest time that `time.localtime` takes on every system."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The last launch of a grid.

    stages  key -> label of all stages of the grid at that time
    jobs    key of a stage -> number of its last job: "123", or "123_4" for a task of an array
    todo    keys of the stages that this launch does
    """

    grid: str
    cluster: str
    commit: str
    dirty: bool | None
    snapshot: str
    """Folder in `results/snapshots` with the source that the jobs run; "" if there is no snapshot."""
    time: float
    """Seconds since 1970 at the launch."""
    host: str
    pid: int
    stages: dict[str, str]
    jobs: dict[str, str] = field(default_factory=dict)
    todo: list[str] = field(default_factory=list)
    began: int = 0
    """Start of the launcher in clock ticks since the host's boot; 0 if unknown."""


def begin(
    grid: str,
    cluster: str,
    stages: Sequence[Stage],
    *,
    snapshot: str,
    jobs: Mapping[str, str],
    todo: Sequence[Stage] = (),
) -> Launch:
    """Return the record of a launch that begins now.

    `jobs` are those of the launch before.
    """
    source = records.source()
    return Launch(
        grid=grid,
        cluster=cluster,
        commit=source["commit"],
        dirty=source["dirty"],
        snapshot=snapshot,
        time=time.time(),
        host=socket.gethostname(),
        pid=os.getpid(),
        stages={stage.key: stage.label for stage in stages},
        jobs=dict(jobs),
        todo=[stage.key for stage in todo],
        began=progress.began(os.getpid()),
    )


def folder(results: Path) -> Path:
    """Return the folder of the records."""
    return results / "launches"


def lease(results: Path, grid: str) -> Path:
    """Return the lease of the grid's launcher."""
    return folder(results) / f"{grid}.lease"


def write(launch: Launch, results: Path) -> None:
    """Write the record, atomically."""
    write_json(_path(results, launch.grid), asdict(launch))


def read(results: Path, grid: str) -> Launch | None:
    """Read the grid's record; None if it is missing or damaged."""
    try:
        launch = jsonfile.read(_path(results, grid), Launch)
    except (OSError, ValueError):
        return None
    return launch if _is_valid(launch) else None


def read_or_set_aside(results: Path, grid: str) -> Launch | None:
    """Read the grid's record; None if it is missing.

    A damaged record is renamed to GRID.json.damaged, and its jobs are not found again. Raises OSError if the storage does not
    give the record, which then stays in place.
    """
    path = _path(results, grid)
    try:
        launch = jsonfile.read(path, Launch)
        if _is_valid(launch):
            return launch
    except FileNotFoundError:
        return None
    except ValueError:
        pass
    aside = path.with_name(f"{path.name}.damaged")
    os.replace(path, aside)
    log.warning("%s is damaged and set aside as %s; jobs that it names are not found again", path, aside.name)
    return None


def _path(results: Path, grid: str) -> Path:
    return folder(results) / f"{grid}.json"


def _is_valid(launch: Launch) -> bool:
    """Return True if the jobs are numbers of SLURM and the time is one."""
    numbers = all(re.fullmatch(r"\d+(_\d+)?", job) for job in launch.jobs.values())
    return numbers and 0 <= launch.time < LATEST_S


def log_of(results: Path, job: str) -> Path:
    """Return the path of the job's stderr."""
    return results / "logs" / job / f"{job}_0_log.err"
