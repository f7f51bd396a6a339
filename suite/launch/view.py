"""View of a grid: its launch, its jobs in SLURM, its stages' states."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections import Counter
from collections.abc import Sequence

from suite.launch import cost, queue, record
from suite.launch.record import Launch
from suite.launch.status import RUNNING, Observer, State, time_left_s
from suite.run import Context
from suite.stages import Stage

PASSING = ("None", "Dependency", "Priority", "Resources", "BeginTime", "JobArrayTaskLimit")
"""Reasons to wait that end without help: after a requeue, and by --parallel, too."""
AGAIN_S = 60.0
"""Interval after which sacct is asked again about a job that it had no entry for."""


class View:
    """States of a grid, as its launcher, --status and --follow show them.

    name         of the grid's launch file
    ask_every_s  shortest interval between calls of squeue; None: SLURM is never asked
    """

    def __init__(
        self, name: str, stages: Sequence[Stage], context: Context, *, ask_every_s: float | None = 0.0
    ) -> None:
        self.name = name
        self.context = context
        self.ask_every_s = ask_every_s
        self.observer = Observer(stages, context)
        self.launch: Launch | None = None
        self.jobs: dict[str, str] | None = {} if ask_every_s is not None else None
        """Number -> state of SLURM's jobs; None if unknown."""
        self.asked_at = -math.inf
        """Time of the last call of squeue, by the monotonic clock."""
        self.held: Counter[str] = Counter()
        """Reason to wait -> number of jobs, without the passing reasons."""
        self.suspended: list[str] = []
        """Jobs that a person or the cluster has suspended."""
        self.ended: dict[str, str] = {}
        """Number -> last state of lost stages' jobs, as far as sacct has it."""
        self.states: list[State] = []
        self._accounted_at: dict[str, float] = {}

    @property
    def silent(self) -> bool:
        """True if SLURM was asked and gave no answer."""
        return self.jobs is None and self.ask_every_s is not None

    def look(self) -> None:
        """Read the launch file and all states; squeue and sacct are called once at most."""
        self.launch = record.read(self.context.results, self.name)
        now = time.monotonic()
        if self.ask_every_s is not None and now - self.asked_at >= self.ask_every_s:
            self.asked_at = now
            self._ask_queue()
        self.states = self.observer.states(self.launch, self.jobs)
        if self.ask_every_s is not None:
            self._ask_accounting(now)

    @functools.cached_property
    def expected(self) -> dict[str, float]:
        """Key -> seconds of a stage before anything has run.

        Jobs of SLURM are taken to run on a GPU.
        """
        slurm = self.launch is not None and self.launch.cluster == "slurm"
        context = dataclasses.replace(self.context, device="cuda") if slurm else self.context
        return cost.expected(self.observer.stages, context)

    def left_s(self, at_least: int = 0) -> float | None:
        """Return the estimated seconds of the remaining stages (`status.time_left_s`)."""
        return time_left_s(self.states, at_least, self.expected)

    def _ask_queue(self) -> None:
        answer = queue.jobs(self.name) if self.launch and self.launch.jobs else {}
        self.jobs = None if answer is None else {job: state for job, (state, _) in answer.items()}
        waiting = (reason for state, reason in (answer or {}).values() if state == "PENDING")
        self.held = Counter(reason for reason in waiting if reason not in PASSING)
        self.suspended = [job for job, (state, _) in (answer or {}).items() if state in ("SUSPENDED", "STOPPED")]

    def _ask_accounting(self, now: float) -> None:
        lost = {state.job for state in self.states if state.name == "lost"} - {""}
        self.ended = {job: state for job, state in self.ended.items() if job in lost}
        due = {job for job in lost - self.ended.keys() if now - self._accounted_at.get(job, -math.inf) > AGAIN_S}
        if due:
            self._accounted_at |= dict.fromkeys(due, now)
            states = {job: end.state for job, end in queue.ended(due).items()}
            final = {job: state for job, state in states.items() if state not in (*RUNNING, "PENDING")}
            self.ended |= final

    @property
    def running(self) -> dict[str, list[Stage]]:
        """Number of each running job -> its stages that have not ended.

        Running by SLURM's count.
        """
        jobs: dict[str, list[Stage]] = {}
        for state in self.states:
            if state.name in ("running", "queued") and (self.jobs or {}).get(state.job) == "RUNNING":
                jobs.setdefault(state.job, []).append(state.stage)
        return jobs

    @property
    def exit_status(self) -> int:
        """0 if all are done, 1 if one failed or was lost, else 75."""
        count = Counter(state.name for state in self.states)
        return 1 if count["failed"] or count["lost"] else 0 if count["done"] == len(self.states) else 75

    @property
    def goes_on(self) -> bool:
        """True if a stage runs or waits, or may do so while SLURM is silent."""
        return any(
            state.name in ("running", "queued") or (self.silent and state.job and state.name not in ("done", "failed"))
            for state in self.states
        )
