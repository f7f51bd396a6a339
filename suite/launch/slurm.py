"""Stages as SLURM jobs: submit them, then wait until all have ended.

Whether a stage is done is read from its folder, never from SLURM's memory.
"""

from __future__ import annotations

import logging
import shutil
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from suite.launch import lost, queue
from suite.launch.display import Display
from suite.launch.heartbeat import Heartbeats
from suite.launch.options import Options
from suite.launch.record import Launch
from suite.launch.status import State
from suite.launch.submit import PATIENCE_S, RETRY_S, Submitter
from suite.launch.view import View
from suite.run import Context, Outcome, fail
from suite.stages import Stage

log = logging.getLogger(__name__)

POLL_S = 1.0
QUEUE_S = 5.0
"""Interval of squeue, one command for any number of jobs."""
LOST_AFTER_S = 20.0
"""A job without status file is lost after it was unknown to SLURM for so long. After a node failure SLURM may not know a job
for some seconds before it requeues the job."""
FORBIDDEN = "%\\\"':"
"""Characters that SLURM expands in names of log files, or that separate the folders of PYTHONPATH."""


def check(results: Path) -> None:
    """Raise ValueError if SLURM cannot be used with this results folder.

    A silent controller is no error: it may come back.
    """
    if missing := [command for command in ("sbatch", "srun", "squeue", "scontrol") if shutil.which(command) is None]:
        raise ValueError(f"--cluster slurm: there is no SLURM here (no {missing[0]} on PATH); use --cluster local")
    if text := queue.unconfigured():
        raise ValueError(
            f"--cluster slurm: SLURM's commands here know of no cluster ({text}); launch on a login node, point SLURM_CONF to "
            "the cluster's slurm.conf, or use --cluster local"
        )
    if bad := [letter for letter in str(results) if letter in FORBIDDEN or not letter.isprintable()]:
        raise ValueError(
            f"--results {str(results)!r}: SLURM cannot write logs to a folder with {bad[0]!r} in its path; name another folder"
        )


def run(
    stages: Sequence[Stage], context: Context, display: Display, launch: Launch, *, options: Options, source: Path
) -> dict[str, Outcome]:
    """Submit the stages that have no job, and wait until all have ended.

    Ctrl-C leaves the jobs running.

    launch  the record of this launch, with the jobs of earlier ones; the file is kept up to date
    source  the snapshot that the jobs run

    Raises ValueError if SLURM refuses a job.
    """
    states = _states(launch)
    names = {state.stage.key: state.name for state in display.view.observer.states(None, None)}
    goes_on = [stage for stage in stages if names.get(stage.key) != "failed"]
    jobs = {stage.key: launch.jobs[stage.key] for stage in goes_on if launch.jobs.get(stage.key) in states}
    submitter = Submitter(context, options, source, launch, jobs)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # --cancel needs the numbers of the jobs
    try:
        submitter.add([stage for stage in stages if stage.key not in jobs])
        submitter.submit()
        return _wait(stages, submitter, context, display)
    except KeyboardInterrupt:
        if submitter.kept:
            count = sum(len(task) for array in submitter.kept for task in array.tasks)
            log.warning("%d stages are not submitted yet (%s); the same command submits them", count, submitter.limit)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _states(launch: Launch) -> dict[str, str]:
    """Return the states of the launch's earlier jobs; {} without any.

    Without an answer, jobs that wait or run would be submitted again. Raises ValueError if SLURM stays silent.
    """
    deadline = time.monotonic() + PATIENCE_S
    while launch.jobs:
        if (states := queue.states(launch.grid)) is not None:
            return states
        if time.monotonic() >= deadline:
            raise ValueError(
                f"SLURM does not answer squeue, and {len(launch.jobs)} stages of an earlier launch have jobs that may still run; "
                "launch again when it answers"
            )
        time.sleep(RETRY_S)
    return {}


def _wait(stages: Sequence[Stage], submitter: Submitter, context: Context, display: Display) -> dict[str, Outcome]:
    """Return the outcome of each stage, after all have ended."""
    outcomes: dict[str, Outcome] = {}
    keys = {stage.key for stage in stages}
    queued_at, heartbeats = _Queued(), Heartbeats(context)
    limit = ""
    while len(outcomes) < len(keys):
        submitter.submit()
        if submitter.limit != limit:
            limit = submitter.limit
            display.note(_limited(submitter) if limit else "SLURM has taken all jobs")
        display.look()
        for line in heartbeats.tend(display.view.running):
            display.note(line)
        queued_at.update(display.view, submitter.jobs.values())
        open_keys = {key for key in submitter.jobs if key in keys and key not in outcomes}
        absent = []
        for state in (state for state in display.view.states if state.stage.key in open_keys):
            has_left = state.name != "queued" and queued_at.absent_s(submitter.jobs[state.stage.key]) >= LOST_AFTER_S
            if (outcome := _outcome(state, has_left=has_left)) is not None:
                outcomes[state.stage.key] = outcome
                display.ended(state.stage, outcome)
            elif has_left:
                absent.append(state.stage)
        for stage, outcome in _lost(absent, submitter.jobs, context, heartbeats.cancelled):
            outcomes[stage.key] = outcome
            display.ended(stage, outcome)
        time.sleep(POLL_S)
    return outcomes


class _Queued:
    """Time at which each job was last in the queue."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}
        self.now = 0.0

    def update(self, view: View, jobs: Iterable[str]) -> None:
        """Take the last answer of squeue."""
        self.now = view.asked_at
        for job in jobs:
            if view.jobs is None or job in view.jobs:
                self.at[job] = self.now
            self.at.setdefault(job, self.now)

    def absent_s(self, job: str) -> float:
        """Return the seconds for which SLURM has not known the job."""
        return self.now - self.at[job]


def _outcome(state: State, *, has_left: bool) -> Outcome | None:
    """Return the outcome of a settled stage, else None.

    An interrupted stage is settled if its job has left the queue; until then it may be requeued.
    """
    if state.name == "done":
        return "done"
    if state.name == "failed":
        return "diverged" if state.about.get("status") == "diverged" else "failed"
    return "interrupted" if state.name == "interrupted" and has_left else None


def _limited(submitter: Submitter) -> str:
    count = sum(len(task) for array in submitter.kept for task in array.tasks)
    return (
        f"SLURM takes no more jobs now ({submitter.limit}): {count:,} stages are kept and submitted as soon as there is room; "
        "--runs-per-gpu K needs fewer jobs, --only TEXT fewer stages"
    )


def _lost(
    stages: Sequence[Stage], jobs: Mapping[str, str], context: Context, cancelled: Mapping[str, str]
) -> list[tuple[Stage, Outcome]]:
    """Write a failure for stages whose jobs ended without a status file.

    cancelled  number -> reason of jobs that this launcher has cancelled
    """
    ends = queue.ended(jobs[stage.key] for stage in stages)
    outcomes: list[tuple[Stage, Outcome]] = []
    for stage in stages:
        job = jobs[stage.key]
        loss = lost.explain(job, ends.get(job), context.results)
        reason = cancelled.get(job, loss.reason)
        outcomes.append((stage, fail(stage, context, "failed", reason, counts=loss.counts)))
    return outcomes
