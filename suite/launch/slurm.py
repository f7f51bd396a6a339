"""Stages as SLURM jobs through submitit, in arrays that are tied by dependencies.

A dependent job starts when what it needs has ended in any way, and fails with the reason when that is not done: so no job
waits for ever. What is done is read from the stages' folders, never from SLURM's memory.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError

from suite.launch import arrays, queue, record
from suite.launch.arrays import Array
from suite.launch.display import Display
from suite.launch.job import StageJob, signal_of_slurm
from suite.launch.options import Options
from suite.launch.record import Launch
from suite.run import Context, Outcome, fail, failure, is_done
from suite.stages import Stage, Timed

log = logging.getLogger(__name__)

POLL_S = 1.0
QUEUE_S = 5.0
"""SLURM is asked so often, with one command, whatever the number of jobs."""
LOST_AFTER_S = 20.0
"""A job that SLURM has not known for so long, and that left no status, is lost. Shortly after a node was lost, a job that will
be started again is unknown, too."""
PATIENCE_S = 120.0
"""While the controller is silent, a submission is tried again for so long."""
UNKNOWN = "unknown to SLURM"
NO_FAULT = ("CANCELLED", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", UNKNOWN)
"""How states begin that say nothing against the stage: a person or the cluster ended its job."""
PERSONS = ("SLURM_CONF", "SUBMITIT_PREEMPT_SIGNAL")
MANY = 10**6
"""Time-outs that submitit allows."""


def check() -> None:
    """Raises ValueError where there is no SLURM, or where its commands know of no cluster. A silent controller may come back."""
    if missing := [command for command in ("sbatch", "srun", "squeue", "scontrol") if shutil.which(command) is None]:
        raise ValueError(f"--cluster slurm: there is no SLURM here (no {missing[0]} on PATH); use --cluster local")
    if said := queue.unconfigured():
        raise ValueError(
            f"--cluster slurm: SLURM's commands here know of no cluster ({said}); launch on a login node, point SLURM_CONF to "
            "the cluster's slurm.conf, or use --cluster local"
        )


def run(
    stages: Sequence[Stage], context: Context, display: Display, launch: Launch, *, options: Options, source: Path
) -> dict[str, Outcome]:
    """Submit the stages that are not with SLURM yet, and wait until all have ended; Ctrl-C leaves the jobs running.

    launch  the record of this launch, with the jobs of earlier ones; the file is kept up to date
    source  the snapshot that the jobs run

    Raises ValueError when SLURM refuses a job.
    """
    states = queue.states(launch.grid) or {}
    goes_on = [stage for stage in stages if _settled(stage, context) in (None, "interrupted")]
    jobs = {stage.key: launch.jobs[stage.key] for stage in goes_on if launch.jobs.get(stage.key) in states}
    submitter = _Submitter(context, options, source, launch, jobs)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # --cancel must learn what was submitted
    try:
        try:
            submitter.submit([stage for stage in stages if stage.key not in jobs])
        finally:
            submitter.save()
        return _wait(stages, jobs, launch.grid, context, display)
    finally:
        signal.signal(signal.SIGTERM, before)


class _Submitter:
    """Gives stages to SLURM and keeps account of it.

    jobs  key -> number of the job of a stage; grows
    """

    def __init__(self, context: Context, options: Options, source: Path, launch: Launch, jobs: dict[str, str]) -> None:
        self.context = context
        self.options = options
        self.source = source
        self.launch = launch
        self.jobs = jobs
        self.saved_at = time.monotonic()

    def submit(self, stages: Sequence[Stage]) -> None:
        """Submit an array after the other. Raises ValueError with SLURM's own words."""
        most = max(1, queue.limit("MaxArraySize", 1001))  # 0: this cluster has no arrays
        per_job, chained = self.options.runs_per_gpu, self.options.parallel > 0
        for array in arrays.of(stages, self.jobs, side_by_side=per_job, most=most, chained=chained):
            for stage in (stage for task in array.tasks for stage in task):
                (self.context.folder(stage) / "failed.json").unlink(missing_ok=True)  # of an earlier launch
            self._submit(array)
            if time.monotonic() - self.saved_at > 1:
                self.save()

    def save(self) -> None:
        """Write the launch's file: a launcher that is killed leaves jobs that the next one finds."""
        known = dataclasses.replace(self.launch, jobs={**self.launch.jobs, **self.jobs})
        record.write(known, self.context.results)
        self.saved_at = time.monotonic()

    def _submit(self, array: Array) -> None:
        """Submit the array, and remember the numbers of its jobs."""
        executor = self._executor(array)
        work = StageJob(context=self.context, source=self.source)
        patience = time.monotonic() + PATIENCE_S
        while True:
            try:
                with _undisturbed(), _outside_of_jobs():
                    for task, job in zip(array.tasks, executor.map_array(work, array.tasks), strict=True):
                        self.jobs |= dict.fromkeys((stage.key for stage in task), job.job_id)
                    return
            except (RuntimeError, FailedJobError) as error:
                if queue.is_silent(str(error)) and time.monotonic() < patience:
                    time.sleep(POLL_S)
                    continue
                raise ValueError(_refused(array, str(error))) from error

    def _executor(self, array: Array) -> Any:
        """What submits this array."""
        signal_name = signal_of_slurm().name.removeprefix("SIG")
        # The signal may come while everything is still being imported; what has not begun need not stop.
        shell = f"""trap "" {signal_name}; exec "$0" "$@\""""
        python = f"sh -c {shlex.quote(shell)} {shlex.quote(sys.executable)}"
        folder = self.context.results / "logs" / "%j"
        executor = submitit.SlurmExecutor(folder, max_num_timeout=MANY, python=python)
        first = array.tasks[0][0]
        device = first.timing.device if isinstance(first, Timed) else self.context.device
        wanted = self.options.parameters(gpu=device == "cuda", timing=array.timing)
        if after := self._after(array):
            wanted["dependency"] = f"afterany:{':'.join(after)}"
        source = shlex.quote(str(self.source))
        setup = [f"export PYTHONSAFEPATH=1 PYTHONPATH={source}${{PYTHONPATH:+:$PYTHONPATH}}"]
        executor.update_parameters(
            **wanted,
            job_name=queue.job_name(self.launch.grid, timing=array.timing),
            array_parallelism=self.options.parallel or len(array.tasks),
            setup=setup,
        )
        return executor

    def _after(self, array: Array) -> list[str]:
        jobs = {self.jobs[key] for key in array.after}
        return sorted({job.partition("_")[0] for job in jobs} if array.whole else jobs)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """What tells the launcher to stop waits until the numbers of the jobs are known, or nobody would find them again."""
    came: list[int] = []
    # Not by a signal mask: it is the thread's, and another thread of this process would take the signal.
    before = {n: signal.signal(n, lambda number, frame: came.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Without the variables of the job that this may run in; what a person sets for jobs stays, sbatch's defaults too."""
    inside = "SLURM_JOB_ID" in os.environ
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in PERSONS or (name.startswith("SBATCH_") and not inside)
    }
    with submitit.helpers.clean_env():
        os.environ.update(kept)
        yield


def _refused(array: Array, said: str) -> str:
    stage = array.tasks[0][0]
    more = sum(len(task) for task in array.tasks) - 1
    keys = ("partition", "account", "qos", "constraint", "time", "gres")
    key = next((key for key in keys if key in said.lower()), "KEY")
    others = f" and {more} more like it" if more else ""
    return f"SLURM refused the job of {stage.label}{others}: {said}; --slurm {key}=VALUE, or {key} in slurm.toml, changes it"


def _wait(
    stages: Sequence[Stage], jobs: dict[str, str], grid: str, context: Context, display: Display
) -> dict[str, Outcome]:
    """The outcome of each stage, when all have ended."""
    outcomes: dict[str, Outcome] = {}
    started: set[str] = set()
    states: dict[str, str] | None = None
    asked = -QUEUE_S
    seen = {job: time.monotonic() for job in jobs.values()}
    """When SLURM last knew a job, or could not be asked."""
    while len(outcomes) < len(stages):
        if time.monotonic() - asked >= QUEUE_S:
            asked, states = time.monotonic(), queue.states(grid)
            seen |= dict.fromkeys(jobs.values() if states is None else states.keys() & seen.keys(), asked)
        lost = []
        for stage in stages:
            job = jobs[stage.key]
            state = (states or {}).get(job)
            if stage.key in outcomes or state == "PENDING":
                continue
            if stage.key not in started and state == "RUNNING":
                started.add(stage.key)
                display.started(stage)
            outcome = _settled(stage, context)
            gone = state is None and asked - seen[job] >= LOST_AFTER_S
            if outcome is None and gone:
                lost.append(stage)
            elif outcome is not None and (outcome != "interrupted" or gone):  # an interrupted one may be queued again
                outcomes[stage.key] = outcome
                _finished(stage, outcome, started, display)
        for stage, outcome in _lost(lost, jobs, context):
            outcomes[stage.key] = outcome
            _finished(stage, outcome, started, display)
        display.refresh()
        time.sleep(POLL_S)
    return outcomes


def _finished(stage: Stage, outcome: Outcome, started: set[str], display: Display) -> None:
    if stage.key not in started:
        display.started(stage)
    display.finished(stage, outcome)


def _lost(stages: Sequence[Stage], jobs: dict[str, str], context: Context) -> list[tuple[Stage, Outcome]]:
    """Record that the jobs of these stages have ended without a word, and whether that counts as a failure of the stage."""
    states = queue.ended(jobs[stage.key] for stage in stages)
    result: list[tuple[Stage, Outcome]] = []
    for stage in stages:
        job = jobs[stage.key]
        state, path = states.get(job, UNKNOWN), record.log_of(context.results, job)
        hidden = state != UNKNOWN and not path.exists()
        there = f", which is not there: can the nodes write to {context.results}?" if hidden else ""
        reason = f"its job ended as {state} and left no status; see {path}{there}"
        result.append((stage, fail(stage, context, "failed", reason, counts=not state.startswith(NO_FAULT))))
    return result


def _settled(stage: Stage, context: Context) -> Outcome | None:
    """The stage's outcome, from its folder."""
    why = failure(stage, context)
    return why["status"] if why else "done" if is_done(stage, context) else None
