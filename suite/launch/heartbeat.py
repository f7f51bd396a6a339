"""Heartbeats of running jobs: a job without one is named, requeued once, then cancelled.

SLURM counts such a job as running, but its processes are stopped or its node is cut off. Example: a controller that is killed
just after `scontrol suspend` loses the suspension and refuses `scontrol resume`. A requeue is safe at any time: stages go on
from their checkpoints, and a process that wakes after its lease was taken over writes nothing more.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from suite import lease
from suite.launch import queue
from suite.run import Context
from suite.stages import Stage

STALLED_S = 2 * lease.LEASE_S
"""Time without a heartbeat after which a job is requeued."""
START_S = 600.0
"""The same for a job that has shown none since its start: it imports, or waits for the other tasks."""
Jobs = Mapping[str, Sequence[Stage]]
"""Number of a job that SLURM counts as running -> its stages that have not ended."""


@dataclass
class _Silence:
    """A heartbeat, and the monotonic time at which it was first seen.

    beat_s  its time in seconds since 1970; 0: there is none
    """

    beat_s: float
    seen_at: float
    named: bool = False
    patience_s: float | None = None


class Heartbeats:
    """Time without a heartbeat of each running job, by this process's monotonic clock.

    cancelled  number -> reason of the jobs that were cancelled
    requeued   numbers of the jobs that were requeued
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.cancelled: dict[str, str] = {}
        self.requeued: set[str] = set()
        self._silences: dict[str, _Silence] = {}

    def tend(self, jobs: Jobs) -> list[str]:
        """Requeue or cancel the jobs that have stalled, and return lines for the launcher's log."""
        now = time.monotonic()
        lines = []
        self._silences = {job: silence for job, silence in self._silences.items() if job in jobs}
        for job, stages in jobs.items():
            beat_s = _last_beat_s(stages, self.context)
            silence = self._silences.setdefault(job, _Silence(beat_s, now))
            if beat_s != silence.beat_s:
                self._silences[job] = _Silence(beat_s, now)
                continue
            silent_s = now - silence.seen_at
            if silent_s >= lease.LEASE_S and beat_s and not silence.named:
                silence.named = True
                lines.append(_line(job, stages, beat_s, self.context))
            if silent_s >= STALLED_S and silent_s >= _patience_s(job, silence):
                lines.extend(self._restart(job, silent_s))
        return lines

    def _restart(self, job: str, silent_s: float) -> list[str]:
        """Requeue the job; cancel it if it has been requeued before, or if SLURM refuses."""
        del self._silences[job]  # its next start is given the same time
        reason = f"its job {job} had no heartbeat for {silent_s:.0f} s"
        if job not in self.requeued:
            refusal = _command("scontrol", "requeue", job)
            if not refusal:
                self.requeued.add(job)
                return [f"job {job} had no heartbeat for {silent_s:.0f} s and is requeued"]
            if queue.is_silent(refusal) or refusal == subprocess.TimeoutExpired.__name__:
                return [f"{reason}, and SLURM does not answer ({refusal}); tried again later"]
            reason += f" and could not be requeued ({refusal})"
        else:
            reason += " again after a requeue"
        if refusal := _command("scancel", job):
            return [f"{reason}; scancel failed, too: {refusal}"]
        self.cancelled[job] = f"{reason}, so the launcher cancelled it"
        return [self.cancelled[job]]


def lines(jobs: Jobs, context: Context) -> list[str]:
    """Return a line for each running job without a heartbeat for `LEASE_S`.

    The age is taken by this host's clock.
    """
    beats = {job: _last_beat_s(stages, context) for job, stages in jobs.items()}
    silent = [job for job, beat_s in beats.items() if beat_s and time.time() - beat_s >= lease.LEASE_S]
    return [_line(job, jobs[job], beats[job], context) for job in silent]


def _line(job: str, stages: Sequence[Stage], beat_s: float, context: Context) -> str:
    owners = (lease.owner(context.lease(stage)) for stage in stages)
    owner = next((f" by {owner}" for owner in owners if owner), "")
    what = stages[0].key if len(stages) == 1 else f"{len(stages)} stages, {stages[0].key} and others"
    since = time.strftime("%F %T", time.localtime(beat_s))
    return (
        f"job {job} ({what}) shows no heartbeat since {since}{owner}: its processes are stopped, or its node is cut off; "
        f"`scontrol requeue {job}` starts it again; its launcher does so after {STALLED_S:.0f} s"
    )


def _last_beat_s(stages: Sequence[Stage], context: Context) -> float:
    """Return the time of the last change of a lease or report.

    0 if there is none; now if the folder cannot be read, which is no fault of the job.
    """
    times = []
    for stage in stages:
        for path in (context.lease(stage), context.progress(stage)):
            try:
                times.append(path.stat().st_mtime)
            except FileNotFoundError:
                continue
            except OSError:
                return time.time()
    return max(times, default=0.0)


def _patience_s(job: str, silence: _Silence) -> float:
    """Return the time without a heartbeat after which this start of the job has stalled.

    A heartbeat from before the start is that of an earlier process.
    """
    if silence.patience_s is None:
        started_s = queue.started_s(job)
        is_of_this_start = started_s is not None and silence.beat_s >= started_s
        silence.patience_s = STALLED_S if is_of_this_start else START_S
    return silence.patience_s


def _command(*command: str) -> str:
    """Run a command of SLURM; return "", or why it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=queue.TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return type(error).__name__
    return " ".join(done.stderr.split()) or f"status {done.returncode}" if done.returncode else ""
