"""Work of one SLURM job: execute stages; requeue the job if it was stopped."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit

from suite import cli, distributed, records
from suite.launch import local
from suite.progress import Watch
from suite.run import Context, Outcome, execute, fail, failure
from suite.stages import Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StageJob(submitit.helpers.Checkpointable):
    """Execute stages side by side; after the signal, stop and requeue.

    Each start goes on from the last checkpoint, so the number of starts has no limit.

    source  the folder that the suite must have been imported from
    """

    context: Context
    source: Path

    def __call__(self, stages: Sequence[Stage]) -> list[Outcome]:
        """Return the outcome of each stage."""
        if records.ROOT.resolve() != self.source.resolve():
            reason = f"its job imported the suite from {records.ROOT} instead of {self.source}"
            return [fail(stage, self.context, "failed", reason) for stage in stages]
        stopped: list[int] = []
        outcomes = _failed_before(stages, self.context)
        rest = [stage for stage in stages if stage.key not in outcomes]
        if len(rest) == 1:
            try:
                with distributed.process_group(self.context.device):
                    outcomes[rest[0].key] = _one(rest[0], self.context, stopped)
            except distributed.RendezvousError as error:  # which is no failure of the stage
                outcomes[rest[0].key] = fail(rest[0], self.context, "failed", str(error), counts=False)
        elif rest:
            threads = self.context.threads or max(1, cli.cores() // len(rest))
            context = dataclasses.replace(self.context, threads=threads)
            outcomes |= local.run(rest, context, jobs=len(rest), signals=(slurm_signal(),), stopped=stopped)
        result = [outcomes.get(stage.key, "interrupted") for stage in stages]
        is_first = os.environ.get("SLURM_PROCID", "0") == "0"
        if stopped and "interrupted" in result and is_first:
            _requeue()
        return result


def slurm_signal() -> signal.Signals:
    """Return the signal of SLURM before a time limit or a pre-emption: USR2, or SUBMITIT_PREEMPT_SIGNAL."""
    return signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]


def _failed_before(stages: Sequence[Stage], context: Context) -> dict[str, Outcome]:
    """Return the failures of earlier starts of this job.

    The next launch retries these stages, so each attempt counts once.
    """
    if not int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        return {}
    failures = ((stage, failure(stage, context) or {}) for stage in stages)
    return {stage.key: why["status"] for stage, why in failures if why.get("status") in ("failed", "diverged")}


def _one(stage: Stage, context: Context, stopped: list[int]) -> Outcome:
    """Execute the stage in this process; a pending signal stops it at once."""
    context.folder(stage).mkdir(parents=True, exist_ok=True)
    watch = Watch(context.progress(stage), context.max_minutes)
    watch.listen(slurm_signal())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {slurm_signal()})
    outcome = execute(stage, context, watch)
    if watch.signalled.is_set():
        stopped.append(slurm_signal())
    return outcome


def _requeue() -> None:
    """Requeue this job.

    If SLURM refuses, or requeues by itself, the stage is interrupted, not failed.
    """
    command = ["scontrol", "requeue", os.environ["SLURM_JOB_ID"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        log.warning("%s: %s", " ".join(command), done.stderr.strip())
