"""Stages as SLURM jobs through submitit, tied by dependencies.

A dependent job starts when what it needs has ended in any way, and fails with the reason when that is not done: so no job
waits for ever. What is done is read from the stages' folders, never from SLURM's memory.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from typing import Any

import submitit
from submitit.slurm.slurm import _make_sbatch_string

from suite.launch.display import Display
from suite.run import Context, Outcome, execute, fail, failure, is_done
from suite.stages import Stage

POLL_S = 2.0
LOST_AFTER_S = 30
"""A job that SLURM calls ended, and that left no status for so long, is lost."""
DEFAULTS = {"time": 24 * 60, "nodes": 1, "ntasks_per_node": 1, "cpus_per_task": 8}


class StageJob(submitit.helpers.Checkpointable):
    """What a job does. Requeued, it goes on from the stage's last checkpoint."""

    def __call__(self, stage: Stage, context: Context) -> Outcome:
        """Do the stage."""
        return execute(stage, context)


def parameters(options: Sequence[str], device: str = "cuda") -> dict[str, Any]:
    """The executor's parameters from KEY=VALUE words; what submitit does not name goes to sbatch as it is.

    Raises ValueError for a word without "=".
    """
    known = set(inspect.signature(_make_sbatch_string).parameters)
    result: dict[str, Any] = {**DEFAULTS, "gpus_per_node": 1 if device == "cuda" else 0}
    extra: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise ValueError(f"--slurm {option!r} is not KEY=VALUE, such as partition=gpu")
        name = key.replace("-", "_")
        (result if name in known else extra)[name] = int(value) if value.isdigit() else value
    return {**{k: v for k, v in result.items() if v != 0}, "additional_parameters": extra}


def run(stages: Sequence[Stage], context: Context, display: Display, *, options: Sequence[str]) -> dict[str, Outcome]:
    """Submit every stage and wait until all have ended; Ctrl-C leaves the jobs running.

    Raises ValueError when SLURM is not there or refuses a job.
    """
    try:
        executor = submitit.AutoExecutor(folder=context.results / "logs" / "%j", cluster="slurm")._executor
    except RuntimeError as error:
        raise ValueError(f"--cluster slurm: there is no SLURM here ({error}); use --cluster local") from error
    jobs: dict[str, Any] = {}
    for stage in stages:
        (context.folder(stage) / "failed.json").unlink(missing_ok=True)  # of an earlier launch
        needed = [jobs[n.key].job_id for n in stage.needs if n.key in jobs]
        executor.parameters = {}
        executor.update_parameters(**parameters(options, context.device), job_name=stage.key)
        if needed:
            executor.update_parameters(dependency=f"afterany:{':'.join(needed)}")
        try:
            jobs[stage.key] = executor.submit(StageJob(), stage, context)
        except (RuntimeError, submitit.core.utils.FailedJobError) as error:
            raise ValueError(f"SLURM refused the job of {stage.label}: {error}; see --slurm KEY=VALUE") from error
        display.started(stage)
    return _wait(stages, jobs, context, display)


def _wait(stages: Sequence[Stage], jobs: dict[str, Any], context: Context, display: Display) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    ended_at: dict[str, float] = {}
    while len(outcomes) < len(stages):
        for stage in stages:
            if stage.key in outcomes:
                continue
            outcome = _settled(stage, context)
            if outcome is None and jobs[stage.key].done():
                first = ended_at.setdefault(stage.key, time.time())
                if time.time() - first > LOST_AFTER_S:
                    state, log = jobs[stage.key].state, jobs[stage.key].paths.stderr
                    outcome = fail(stage, context, "failed", f"its job ended as {state} and left no status; see {log}")
            if outcome is not None:
                outcomes[stage.key] = outcome
                display.finished(stage, outcome)
        display.refresh()
        time.sleep(POLL_S)
    return outcomes


def _settled(stage: Stage, context: Context) -> Outcome | None:
    """The stage's outcome, from its folder."""
    why = failure(stage, context)
    return why["status"] if why else "done" if is_done(stage, context) else None
