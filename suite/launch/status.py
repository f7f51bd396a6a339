"""Where the stages of a grid stand, read from the results folder alone; SLURM is asked once, for its queue.

done         the output is there
running      its process reports progress, or its job runs
queued       its job waits, or a launcher that lives will come to it
failed       the last attempt ended so, or its training diverged; the reason is there
interrupted  stopped at a checkpoint; the next launch goes on from there
lost         its process is gone without a word: killed, or its node is; the next launch goes on from its last checkpoint
to do        nobody has begun
"""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from suite import lease, progress
from suite.launch import record
from suite.launch.cost import TIMED_S
from suite.launch.record import Launch
from suite.run import Context, failure
from suite.run.folder import DamagedError, output
from suite.stages import Base, Pruned, Stage, Timed

Name = Literal["done", "running", "queued", "failed", "interrupted", "lost", "to do"]
NAMES: tuple[Name, ...] = get_args(Name)
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT")
ENDED: dict[str, Name] = {"failed": "failed", "diverged": "failed", "interrupted": "interrupted"}
TAIL_LINES, TAIL_BYTES = 4, 4096


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a stage stands. `about` is what its process reported last, or status and reason of a failure."""

    stage: Stage
    name: Name
    about: Mapping[str, Any] = field(default_factory=dict)
    job: str = ""
    seconds: float | None = None
    """What a finished stage took."""


class Observer:
    """Reads the states of a grid's stages again and again; those once seen done are not read again."""

    def __init__(self, stages: Sequence[Stage], context: Context) -> None:
        self.stages = stages
        self.context = context
        self._done: dict[str, State] = {}

    def states(self, launch: Launch | None, queue: Mapping[str, str] | None) -> list[State]:
        """The state of every stage, in their order; `queue` holds the states of SLURM's jobs, None when it is silent."""
        begun = _names(self.context.results / "work")
        jobs = launch.jobs if launch else {}
        shared = {job for job, count in Counter(jobs.values()).items() if count > 1}
        here = launch is not None and launch.cluster != "slurm" and launcher_lives(launch, self.context.results)
        queued = set(launch.todo) if launch and here else set()
        found = []
        for stage in self.stages:
            if (state := self._done.get(stage.key)) is None:
                job = jobs.get(stage.key, "")
                now = (queue or {}).get(job)
                if stage.key in begun or now:
                    state = _state(stage, self.context, job, now, shared=job in shared)
                if state is None:
                    idle: Name = "queued" if stage.key in queued else "to do"
                    state = State(stage=stage, name="lost" if job and queue is not None else idle, job=job)
                if state.name == "done":
                    self._done[stage.key] = state
            found.append(state)
        return found


def _names(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(folder)}
    except FileNotFoundError:
        return set()


def launcher_lives(launch: Launch, results: Path) -> bool:
    """Whether the process that launched is still at it, as far as this host can know."""
    held = lease.is_fresh(record.folder(results) / f"{launch.grid}.lease")
    return held and progress.is_alive(launch.host, launch.pid, launch.time) is not False


def _state(stage: Stage, context: Context, job: str, now: str | None, *, shared: bool) -> State | None:
    """The state of a stage that has a folder, or whose job SLURM knows as `now`; None when neither says anything."""
    try:
        done = output(stage, context)
    except DamagedError:
        done = None
    if done is not None:
        return State(stage=stage, name="done", seconds=(done["row"] or done["result"]).get("seconds"))
    reported, ended = progress.read(context.folder(stage) / "progress.json"), failure(stage, context)
    job = job or str(reported.get("job", ""))
    goes_on = bool(reported) and (ended is None or _is_another(reported, ended))
    if now is not None and now not in RUNNING:
        return State(stage=stage, name="queued", about=ended or reported, job=job)
    if goes_on and (now or _is_alive(stage, context, reported)):
        return State(stage=stage, name="running", about=reported, job=job)
    if ended is not None and not (now and ended.get("status") == "interrupted"):
        return State(stage=stage, name=ENDED.get(ended.get("status", ""), "failed"), about=ended, job=job)
    if now:
        return State(stage=stage, name="queued" if shared or ended else "running", about=ended or {}, job=job)
    return State(stage=stage, name="lost", about=reported, job=job) if reported else None


def process_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """Which process reported this."""
    return {name: about[name] for name in ("host", "pid") if name in about}


def _is_another(reported: Mapping[str, Any], ended: Mapping[str, Any]) -> bool:
    """Whether the report is of a later attempt than the end. Until it is killed, a cancelled process goes on reporting."""
    cancelled = process_of(ended)
    return ended.get("time", 0) < reported.get("time", 0) and not (cancelled and cancelled == process_of(reported))


def _is_alive(stage: Stage, context: Context, reported: Mapping[str, Any]) -> bool:
    """Whether the stage's lease is held by a process that is there; on another host: by one that was heard of lately."""
    if not lease.is_fresh(context.folder(stage) / ".lease"):
        return False
    return (
        progress.is_alive(str(reported.get("host")), int(reported.get("pid", 0)), reported.get("time", 0.0))
        is not False
    )


def counts(states: Iterable[State]) -> dict[str, Counter[Name]]:
    """Kind of stage -> how many stand where."""
    found: dict[str, Counter[Name]] = {}
    for state in states:
        found.setdefault(state.stage.kind, Counter())[state.name] += 1
    return found


def time_left_s(states: Sequence[State]) -> float | None:
    """From the mean time of the finished stages of each kind and model, for as many at a time as run now.

    None when nothing runs, or no stage of some kind that is left has been finished yet.
    """
    running = sum(state.name == "running" for state in states)
    seen: dict[tuple[str, ...], list[float]] = {}
    for state in states:
        if state.seconds is not None:
            seen.setdefault(_alike(state.stage), []).append(state.seconds)
    means = {alike: statistics.mean(seconds) for alike, seconds in seen.items()}
    total = 0.0
    for state in states:
        if state.name in ("running", "queued", "to do", "interrupted", "lost"):
            stage = state.stage
            whole = TIMED_S[stage.timing.protocol] if isinstance(stage, Timed) else means.get(_alike(stage))
            share = state.about.get("share") or 0.0
            if whole is None and share:
                whole = float(state.about["seconds"]) / share
            if whole is None:
                return None
            total += whole * (1 - share)
    return total / running if running else None


def _alike(stage: Stage) -> tuple[str, ...]:
    """Stages that take about as long as each other."""
    if isinstance(stage, Timed):
        return (stage.kind,)
    base = stage if isinstance(stage, Base) else stage.base
    method = () if isinstance(stage, Base | Pruned) else (type(stage.settings).__name__,)
    return (stage.kind, base.data, base.model, *method)


def log_of(state: State, context: Context) -> Path | None:
    """The log that says most: the stage's own, else what its job wrote to stderr."""
    places = [context.folder(state.stage) / "log.txt"]
    if state.job:
        places.append(record.log_of(context.results, state.job))
    return next((path for path in places if path.is_file() and path.stat().st_size), None)


def tail(path: Path) -> list[str]:
    """The last lines of a log."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return [line for line in lines if line.strip()][-TAIL_LINES:]
