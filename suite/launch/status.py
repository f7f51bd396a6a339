"""State of each stage of a grid, from the results folder and squeue.

done         the output is there
running      its process reports progress, or its job runs
queued       its job waits, or a living launcher will start it
failed       the last attempt failed or diverged; `about` has the reason
interrupted  stopped at a checkpoint; the next launch goes on from this checkpoint
lost         the process ended without a status file: it was killed, or its node failed
to do        no attempt has begun
"""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from suite import lease, progress
from suite.launch import record
from suite.launch.record import Launch
from suite.run import Context, failure
from suite.run.folder import DamagedError, output
from suite.stages import Base, Learned, Pruned, Stage, Timed

Name = Literal["done", "running", "queued", "failed", "interrupted", "lost", "to do"]
NAMES: tuple[Name, ...] = get_args(Name)
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT")
ENDED: dict[str, Name] = {"failed": "failed", "diverged": "failed", "interrupted": "interrupted"}
NUMBERS = ("share", "share_before", "seconds", "time", "pid", "began", "epoch", "epochs", "train_top1_pct")
"""Fields of reports that are numbers, 0 or more."""
TIMED_S = {"quick": 2.0, "full": 60.0}
"""Usual seconds of a timed stage, by protocol."""
EXPECTED_S = 60.0
"""Weight of the expectation beside measured seconds."""
LEAST_SHARE = 0.05
"""Share of a running stage from which on its pace counts if there is no expectation."""


@dataclass(frozen=True, kw_only=True)
class State:
    """State of one stage.

    `about` is the last progress report, or the status and reason of a failure.
    """

    stage: Stage
    name: Name
    about: Mapping[str, Any] = field(default_factory=dict)
    job: str = ""
    seconds: float | None = None
    """Duration of a finished stage."""


class Observer:
    """Reader of all stages' states; a done stage is read once."""

    def __init__(self, stages: Sequence[Stage], context: Context) -> None:
        self.stages = stages
        self.context = context
        self._done: dict[str, State] = {}

    def states(self, launch: Launch | None, queue: Mapping[str, str] | None) -> list[State]:
        """Read the state of every stage, in their order.

        queue  number -> state of SLURM's jobs; None if squeue gave no answer
        """
        begun = _names(self.context.results / "work")
        jobs = launch.jobs if launch else {}
        shared = {job for job, count in Counter(jobs.values()).items() if count > 1}
        is_running = launch is not None and launcher_lives(launch, self.context.results)
        queued = set(launch.todo) if launch and is_running else set()
        states = []
        for stage in self.stages:
            if (state := self._done.get(stage.key)) is None:
                job = jobs.get(stage.key, "")
                now = (queue or {}).get(job)
                if stage.key in begun or now:
                    state = state_of(stage, self.context, job, now, shared=job in shared)
                if state is None:
                    idle: Name = "queued" if stage.key in queued else "to do"
                    state = State(stage=stage, name="lost" if job and queue is not None else idle, job=job)
                if state.name == "done":
                    self._done[stage.key] = state
            states.append(state)
        return states


def _names(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(folder)}
    except FileNotFoundError:
        return set()


def launcher_lives(launch: Launch, results: Path) -> bool:
    """Return True if the launcher holds its lease and, on this host, its process exists."""
    held = lease.is_fresh(record.lease(results, launch.grid))
    return held and _exists(launch.host, launch.pid, launch.began)


def state_of(
    stage: Stage, context: Context, job: str = "", now: str | None = None, *, shared: bool = False
) -> State | None:
    """Read the state of one stage; None if no attempt has begun.

    now     state of the stage's job in squeue
    shared  other stages are in the same job
    """
    try:
        done = output(stage, context)
    except DamagedError:
        done = None
    if done is not None:
        return State(stage=stage, name="done", seconds=_clean(done["row"] or done["result"]).get("seconds"))
    reported, ended = _clean(progress.read(context.progress(stage))), failure(stage, context)
    ended = None if ended is None else _clean(ended)
    job = job or str(reported.get("job", ""))
    goes_on = bool(reported) and (ended is None or _is_another(reported, ended))
    if now is not None and now not in RUNNING:
        return State(stage=stage, name="queued", about=ended or reported, job=job)
    if goes_on and (now or _is_alive(stage, context, reported)):
        return State(stage=stage, name="running", about=reported, job=job)
    if ended is not None and not (now and ended.get("status") == "interrupted"):
        return State(stage=stage, name=ENDED.get(ended.get("status", ""), "failed"), about=ended, job=job)
    if now:
        about = ended or _lease_of(context.lease(stage))
        return State(stage=stage, name="queued" if shared or ended else "running", about=about, job=job)
    return State(stage=stage, name="lost", about=reported, job=job) if reported else None


def _lease_of(path: Path) -> dict[str, Any]:
    """Return who holds the lease of a stage without a report; else {}."""
    if not lease.is_fresh(path):
        return {}
    heartbeat = time.strftime("%T", time.localtime(path.stat().st_mtime))
    owner = lease.owner(path) or "an unnamed process"
    return {"doing": f"no report yet; {owner} holds its lease, last heartbeat {heartbeat}"}


def _clean(about: object) -> dict[str, Any]:
    """Return texts and finite numbers of a report, without values of a wrong type."""
    values = about if isinstance(about, dict) else {}
    numbers = {
        name: value
        for name in NUMBERS
        if isinstance(value := values.get(name), int | float)
        and 0 <= value < (record.LATEST_S if not name.startswith("share") else 1 + 1e-9)
    }
    return numbers | {name: value for name, value in values.items() if isinstance(value, str) and name not in NUMBERS}


def process_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return host and process number of a report."""
    return {name: about[name] for name in ("host", "pid") if name in about}


def _is_another(reported: Mapping[str, Any], ended: Mapping[str, Any]) -> bool:
    """Return True if the report is of a later attempt.

    A cancelled process reports until it is killed.
    """
    cancelled = process_of(ended)
    return ended.get("time", 0) < reported.get("time", 0) and not (cancelled and cancelled == process_of(reported))


def _is_alive(stage: Stage, context: Context, reported: Mapping[str, Any]) -> bool:
    """Return True if the lease is fresh and no dead process holds it."""
    if not lease.is_fresh(context.lease(stage)):
        return False
    return _exists(str(reported.get("host")), int(reported.get("pid", 0)), reported.get("began", 0))


def _exists(host: str, pid: int, began: int) -> bool:
    """Return False if the process was on this host and has ended."""
    alive = progress.is_alive(host, pid)
    return alive is None or (alive and began in (0, progress.began(pid)))


def counts(states: Iterable[State]) -> dict[str, Counter[Name]]:
    """Return kind of stage -> number of stages in each state."""
    counters: dict[str, Counter[Name]] = {}
    for state in states:
        counters.setdefault(state.stage.kind, Counter())[state.name] += 1
    return counters


def stage_left_s(state: State) -> float | None:
    """Return the seconds that a running stage still takes; None without a report."""
    done, seconds = _since_start(state)
    return float(seconds) * (1 - state.about["share"]) / done if done > 0 and seconds is not None else None


def time_left_s(
    states: Sequence[State], at_least: int = 0, expected: Mapping[str, float] | None = None
) -> float | None:
    """Estimate the seconds that the grid still takes.

    expected  key -> seconds of a stage before anything has run (`cost.expected`)

    As many stages run at a time as now, and `at_least` so many; latency is measured alone.
    Each stage takes the mean time of the finished stages of its kind and model. If there is none, it takes what is expected,
    times the pace of finished and running stages. None if nothing runs, or if there is neither pace nor expectation.
    """
    running = max(at_least, sum(state.name == "running" for state in states))
    seconds_by_kind: dict[tuple[str, ...], list[float]] = {}
    for state in states:
        if state.seconds is not None:
            seconds_by_kind.setdefault(_alike(state.stage), []).append(state.seconds)
    means = {kind: statistics.mean(seconds) for kind, seconds in seconds_by_kind.items()}
    pace = _pace(states, expected or {})
    total = 0.0
    for state in states:
        if state.name in ("done", "failed"):
            continue
        stage = state.stage
        if isinstance(stage, Timed):
            whole: float | None = running * TIMED_S[stage.timing.protocol]
        elif (whole := means.get(_alike(stage))) is None and pace is not None:
            whole = pace * _weight(stage, expected or {})
        if whole is None:
            return None
        share = state.about.get("share") or 0.0 if state.name == "running" else 0.0
        total += whole * (1 - share)
    return total / running if running else None


def _pace(states: Iterable[State], expected: Mapping[str, float]) -> float | None:
    """Return the seconds for each unit of weight in finished and running stages.

    The pace is None without one. Stages that failed or were interrupted do not count. The expectation counts as `EXPECTED_S` that
    took as long as expected, so that the first seconds of a stage, which are spent on loading, are not extrapolated.
    """
    seconds = weight = EXPECTED_S if expected else 0.0
    for state in states:
        share, spent = 1.0, state.seconds
        if state.name == "running":
            share, spent = _since_start(state)
            share = share if share >= LEAST_SHARE or expected else 0.0
        if spent is not None and share > 0 and not isinstance(state.stage, Timed):
            seconds += spent
            weight += share * _weight(state.stage, expected)
    return seconds / weight if weight else None


def _since_start(state: State) -> tuple[float, float | None]:
    """Return share and seconds of a running stage in its present process.

    A process that goes on from a checkpoint has not done the share before it.
    """
    share = (state.about.get("share") or 0.0) - (state.about.get("share_before") or 0.0)
    return share, state.about.get("seconds")


def _weight(stage: Stage, expected: Mapping[str, float]) -> float:
    """Return the expected seconds of a stage, else its epochs."""
    return expected.get(stage.key) or _epochs(stage)


def _epochs(stage: Stage) -> float:
    """Return the epochs of a stage in plain-step equivalents, and one for everything else."""
    cost = stage.settings.step_cost if isinstance(stage, Learned) else 1.0
    return 1.0 + (stage.schedule.epochs * cost if stage.schedule else 0.0)


def _alike(stage: Stage) -> tuple[str, ...]:
    """Return what stages of about equal duration have in common."""
    if isinstance(stage, Timed):
        return (stage.kind,)
    method = () if isinstance(stage, Base | Pruned) else (type(stage.settings).__name__,)
    return (stage.kind, stage.base.data, stage.base.model, *method)
