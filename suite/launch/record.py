"""Record of a grid's last launch, `results/launches/GRID.json`, from which other shells find its jobs.

The record maps stages to SLURM jobs. The state of a stage is in the stage's own folder.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from suite import records
from suite.files import write_json
from suite.stages import Stage


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
    )


def folder(results: Path) -> Path:
    """Return the folder of the records."""
    return results / "launches"


def write(launch: Launch, results: Path) -> None:
    """Write the record, atomically."""
    write_json(folder(results) / f"{launch.grid}.json", asdict(launch))


def read(results: Path, grid: str) -> Launch | None:
    """Read the grid's record; None if it is missing or damaged."""
    try:
        value = json.loads((folder(results) / f"{grid}.json").read_text())
        return Launch(**{item.name: value[item.name] for item in fields(Launch) if item.name in value})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def log_of(results: Path, job: str) -> Path:
    """Return the path of the job's stderr."""
    return results / "logs" / job / f"{job}_0_log.err"
