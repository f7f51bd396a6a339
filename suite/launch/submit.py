"""Submission of stages to SLURM through submitit, in arrays that are tied by dependencies.

A dependent job starts when the jobs that it needs have ended in any way, and fails with the reason if a needed stage is not
done. So no job pends for ever.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError

from suite import registry
from suite.launch import arrays, queue, record, snapshot
from suite.launch.arrays import Array
from suite.launch.job import StageJob, slurm_signal
from suite.launch.options import Options
from suite.launch.record import Launch
from suite.run import Context
from suite.stages import Stage, Timed

RETRY_S = 1.0
PATIENCE_S = 120.0
"""Time for which a submission is retried while the controller is silent."""
ROOM_S = 30.0
"""Interval of submissions after a limit of the user's or account's jobs was reached."""
INHERITED = ("SLURM_CONF", "SUBMITIT_PREEMPT_SIGNAL")
"""Variables of SLURM that a person sets for jobs."""
MANY = 10**6
"""Time-outs that submitit allows."""
KEYS = ("partition", "account", "qos", "constraint", "time", "gres")
"""Options that a refusal may name."""
LIMITS = {"MaxWall": "time", "TimeLimit": "time", "Assoc": "account", "QOS": "qos"}
"""Parts of the names of SLURM's limits -> option that helps."""
BLOCK = (
    "import os, signal as s, sys; s.pthread_sigmask(s.SIG_BLOCK, [s.Signals[sys.argv[1]]]); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
)
"""Program that blocks a signal and executes Python. A signal that comes during the imports is pending until the job unblocks
it; its default action would kill the job."""


class Submitter:
    """Submission of arrays in order, within the limits of the user's jobs.

    jobs   key -> number of the stage's job
    kept   arrays that are not submitted yet
    limit  SLURM's name for the limit that was reached, such as "AssocMaxSubmitJobLimit"; "" if none was
    """

    def __init__(self, context: Context, options: Options, source: Path, launch: Launch, jobs: dict[str, str]) -> None:
        self.context = context
        self.options = options
        self.source = source
        self.launch = launch
        self.jobs = jobs
        self.kept: deque[Array] = deque()
        self.limit = ""
        self.due_at = 0.0
        self.saved_at = time.monotonic()

    def add(self, stages: Sequence[Stage]) -> None:
        """Make arrays of the stages; `submit` submits them."""
        most = max(1, queue.limit("MaxArraySize", 1001))  # 0: this cluster has no arrays
        per_job, chained = self.options.runs_per_gpu, self.options.parallel > 0
        self.kept.extend(arrays.arrays_of(stages, self.jobs, side_by_side=per_job, most=most, chained=chained))

    def submit(self) -> None:
        """Submit kept arrays until a limit is reached; no-op for ROOM_S after that.

        The launch file is kept up to date.
        Raises ValueError with SLURM's reason if it refuses a job for another reason, or at a limit of no jobs.
        """
        if not self.kept or time.monotonic() < self.due_at:
            return
        try:
            while self.kept:
                array = self.kept[0]
                for stage in (stage for task in array.tasks for stage in task):
                    (self.context.folder(stage) / "failed.json").unlink(missing_ok=True)  # of an earlier launch
                if not self._fits(array):
                    self.due_at = time.monotonic() + ROOM_S
                    return
                if time.monotonic() - self.saved_at > 1:
                    self.save()
            self.limit = ""
        finally:
            self.save()

    def save(self) -> None:
        """Write the launch file: the next launcher finds the jobs of a killed one."""
        launch = dataclasses.replace(self.launch, jobs={**self.launch.jobs, **self.jobs})
        record.write(launch, self.context.results)
        self.saved_at = time.monotonic()

    def _fits(self, array: Array) -> bool:
        """Submit the first kept array or a part; return False at a limit."""
        try:
            self._submit(array)
        except _LimitError as error:
            self.limit = error.limit
            if len(array.tasks) > 1:
                self.kept.popleft()
                self.kept.extendleft(reversed(arrays.halves(array)))
                return self._fits(self.kept[0])
            if queue.states() == {}:
                raise ValueError(
                    f"SLURM refuses even one job ({error.limit}), and you have none in the queue: {error}; "
                    "ask the cluster's staff for a higher limit, or take another account or QOS (--slurm qos=NAME)"
                ) from error
            return False
        self.kept.popleft()
        return True

    def _submit(self, array: Array) -> None:
        """Submit the array, and record the numbers of its jobs. Raises _LimitError, ValueError."""
        executor = self._executor(array)
        work = StageJob(context=self.context, source=self.source)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                with _deferred_signals(), _outside_of_jobs():
                    for task, job in zip(array.tasks, executor.map_array(work, array.tasks), strict=True):
                        self.jobs |= dict.fromkeys((stage.key for stage in task), job.job_id)
                    return
            except (RuntimeError, FailedJobError) as error:
                if queue.is_silent(str(error)) and time.monotonic() < deadline:
                    time.sleep(RETRY_S)
                    continue
                if limit := queue.limit_in(str(error)):
                    raise _LimitError(limit, str(error)) from error
                raise ValueError(_refusal(array, str(error))) from error

    def _executor(self, array: Array) -> Any:
        """Return submitit's executor for this array."""
        folder = self.context.results / "logs" / "%j"
        executor = submitit.SlurmExecutor(folder, max_num_timeout=MANY, python=python_command())
        first = array.tasks[0][0]
        device = first.timing.device if isinstance(first, Timed) else self.context.device
        parameters = self.options.parameters(gpu=device == "cuda", timing=array.timing)
        if after := self._after(array):
            parameters["dependency"] = f"afterany:{':'.join(after)}"
        source = shlex.quote(str(self.source))
        plugins = os.pathsep.join(map(str, snapshot.plugin_folders(self.source)))
        setup = [f"export {registry.VARIABLE}={shlex.quote(plugins)}"]
        setup += [f"export PYTHONSAFEPATH=1 PYTHONPATH={source}${{PYTHONPATH:+:$PYTHONPATH}}"]
        executor.update_parameters(
            **parameters,
            job_name=queue.job_name(self.launch.grid, timing=array.timing),
            array_parallelism=self.options.parallel or len(array.tasks),
            setup=setup,
        )
        return executor

    def _after(self, array: Array) -> list[str]:
        """Return the jobs or arrays to wait for.

        After a limit was reached, ended jobs are left out: SLURM refuses numbers that it has dropped.
        """
        jobs = {self.jobs[key] for key in array.after if key in self.jobs}
        present = queue.states() if self.limit else None
        if present is not None:
            jobs &= present.keys()
        return sorted({job.partition("_")[0] for job in jobs} if array.whole else jobs)


class _LimitError(Exception):
    """A limit of the user's or account's jobs was reached."""

    def __init__(self, limit: str, text: str) -> None:
        super().__init__(" ".join(text.split()))
        self.limit = limit


def python_command() -> str:
    """Return the command of a job's Python, with SLURM's signal blocked."""
    name = slurm_signal().name
    shell = f"""trap "" {name.removeprefix("SIG")}; exec "$0" -I -S -c {shlex.quote(BLOCK)} {name} "$@\""""
    return f"sh -c {shlex.quote(shell)} {shlex.quote(sys.executable)}"


@contextmanager
def _deferred_signals() -> Iterator[None]:
    """Defer SIGINT and SIGTERM until the numbers of the jobs are recorded."""
    came: list[int] = []
    # Not by a signal mask: the mask is the thread's, and another thread of this process would take the signal.
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
    """Remove the variables of the job that this process may run in.

    INHERITED stay, and outside of a job sbatch's defaults.
    """
    inside = "SLURM_JOB_ID" in os.environ
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in INHERITED or (name.startswith("SBATCH_") and not inside)
    }
    with submitit.helpers.clean_env():
        os.environ.update(kept)
        yield


def _refusal(array: Array, text: str) -> str:
    """Return one line: the refused stage, SLURM's reason, the option that changes it."""
    stage = array.tasks[0][0]
    more = sum(len(task) for task in array.tasks) - 1
    text = " ".join(text.split())
    key = next((key for words, key in LIMITS.items() if words in text), None)
    key = key or min((key for key in KEYS if key in text.lower()), key=text.lower().index, default="KEY")
    rest = f" and {more} more like it" if more else ""
    return (
        f"SLURM refused the job of {stage.label}{rest}: {text}; --slurm {key}=VALUE, or {key} in slurm.toml, changes it"
    )
