"""What a launch was, in `results/launches/GRID.json`: enough to find its jobs from another shell, or days later.

It says which SLURM job does which stage; what became of the stage is in the stage's own folder.
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

    stages  key -> label of all stages of the grid as it was then
    jobs    key of a stage -> number of the job that was last given to it: "123", or "123_4" for a task of an array
    todo    keys of the stages that this launch does; --only leaves out others
    """

    grid: str
    cluster: str
    commit: str
    dirty: bool | None
    snapshot: str
    """Of the source that the jobs run: the name of its folder in `results/snapshots`; "" when they run it where it lies."""
    time: float
    """When it was launched, in seconds since 1970."""
    host: str
    pid: int
    stages: dict[str, str]
    jobs: dict[str, str] = field(default_factory=dict)
    todo: list[str] = field(default_factory=list)


def of(
    grid: str,
    cluster: str,
    stages: Sequence[Stage],
    *,
    snapshot: str,
    jobs: Mapping[str, str],
    todo: Sequence[Stage] = (),
) -> Launch:
    """The launch that begins now; `jobs` are those of the launch before."""
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
    """Where launches lie."""
    return results / "launches"


def write(launch: Launch, results: Path) -> None:
    """Write the launch's file, atomically."""
    write_json(folder(results) / f"{launch.grid}.json", asdict(launch))


def read(results: Path, grid: str) -> Launch | None:
    """The last launch of the grid of this name; None when there was none, or when its file is damaged."""
    try:
        value = json.loads((folder(results) / f"{grid}.json").read_text())
        return Launch(**{item.name: value[item.name] for item in fields(Launch) if item.name in value})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def log_of(results: Path, job: str) -> Path:
    """What the job wrote to stderr."""
    return results / "logs" / job / f"{job}_0_log.err"
