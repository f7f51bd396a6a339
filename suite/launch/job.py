"""What a SLURM job does: some stages, and what is left of them again when it was stopped on the way."""

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

from suite import distributed, records
from suite.launch import local
from suite.progress import Watch
from suite.run import Context, Outcome, cores, execute, fail, failure
from suite.stages import Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StageJob(submitit.helpers.Checkpointable):
    """Does stages side by side. After the signal it stops at a checkpoint and asks SLURM to start it again, for as long as it
    takes: each start goes on from the last, so there is no limit on their number.

    source  the folder that the suite must have been imported from
    """

    context: Context
    source: Path

    def __call__(self, stages: Sequence[Stage]) -> list[Outcome]:
        """The outcome of each stage."""
        if records.ROOT.resolve() != self.source.resolve():
            reason = f"its job imported the suite from {records.ROOT} instead of {self.source}"
            return [fail(stage, self.context, "failed", reason) for stage in stages]
        stopped: list[int] = []
        outcomes = _ended_before(stages, self.context)
        left = [stage for stage in stages if stage.key not in outcomes]
        if len(left) == 1:
            try:
                with distributed.joined(self.context.device):
                    outcomes[left[0].key] = _one(left[0], self.context, stopped)
            except distributed.NoMeeting as error:  # which says nothing against the stage
                outcomes[left[0].key] = fail(left[0], self.context, "failed", str(error), counts=False)
        elif left:
            threads = self.context.threads or max(1, cores() // len(left))
            context = dataclasses.replace(self.context, threads=threads)
            outcomes |= local.run(left, context, jobs=len(left), signals=(signal_of_slurm(),), stopped=stopped)
        found = [outcomes.get(stage.key, "interrupted") for stage in stages]
        first = os.environ.get("SLURM_PROCID", "0") == "0"
        if stopped and "interrupted" in found and first:
            _requeue()
        return found


def signal_of_slurm() -> signal.Signals:
    """What says that the time is over or that others need the node: USR2, or what SUBMITIT_PREEMPT_SIGNAL names."""
    return signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]


def _ended_before(stages: Sequence[Stage], context: Context) -> dict[str, Outcome]:
    """What failed when this job was started before: the next launch tries it again, so that each attempt counts once."""
    if not int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        return {}
    found = ((stage, failure(stage, context) or {}) for stage in stages)
    return {stage.key: why["status"] for stage, why in found if why.get("status") in ("failed", "diverged")}


def _one(stage: Stage, context: Context, stopped: list[int]) -> Outcome:
    """Do the stage in this process."""
    folder = context.folder(stage)
    folder.mkdir(parents=True, exist_ok=True)
    watch = Watch(folder / "progress.json", context.max_minutes)
    watch.listen(signal_of_slurm())
    outcome = execute(stage, context, watch)
    if watch.signalled.is_set():
        stopped.append(signal_of_slurm())
    return outcome


def _requeue() -> None:
    """Put this job back into the queue. Where SLURM refuses, or does so itself, the stage is interrupted, not failed."""
    command = ["scontrol", "requeue", os.environ["SLURM_JOB_ID"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        log.warning("%s: %s", " ".join(command), done.stderr.strip())
