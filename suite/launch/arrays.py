"""Which stages become one array of jobs: those that are alike. Pure functions; SLURM is nowhere in here.

Alike are stages that wait for the same stages and ask for the same things, so that each starts as soon as it can. Latency is
measured last: when the whole array of its runs has ended. With a limit of parallel jobs each level waits for the one before
it instead, because SLURM limits an array, not a launch.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from suite.stages import Stage, Timed


@dataclass(frozen=True, kw_only=True)
class Array:
    """Jobs that are submitted together.

    tasks  the stages of each job
    after  keys of the stages whose jobs must have ended, in any way; `whole`: with the arrays that they are in
    """

    tasks: tuple[tuple[Stage, ...], ...]
    after: tuple[str, ...]
    whole: bool

    @property
    def timing(self) -> bool:
        """Is it latency that these jobs measure?"""
        return isinstance(self.tasks[0][0], Timed)


def of(
    stages: Sequence[Stage], pending: Mapping[str, str], *, side_by_side: int, most: int, chained: bool
) -> list[Array]:
    """The arrays of these stages, what is needed first.

    stages        to be submitted
    pending       key -> job of stages that are with SLURM already
    side_by_side  stages of one job; latency never shares
    most          jobs in an array
    chained       one array after the other, the first after all that is with SLURM already
    """
    levels = _levels(stages)
    groups: dict[Hashable, list[Stage]] = {}
    group_of: dict[str, Hashable] = {}
    for stage in stages:
        needs = tuple(sorted(n.key for n in stage.needs if n.key in levels or n.key in pending))
        group: Hashable = (levels[stage.key], needs)
        if isinstance(stage, Timed):
            waits = group_of.get(stage.pruned.key) or needs
            group = (levels[stage.key], "timed", stage.timing.device, waits)
        if chained:
            group = (levels[stage.key], isinstance(stage, Timed) and stage.timing.device)
        groups.setdefault(group, []).append(stage)
        group_of[stage.key] = group
    arrays: list[Array] = []
    for members in sorted(groups.values(), key=lambda members: levels[members[0].key]):
        after = tuple(sorted({n.key for stage in members for n in stage.needs if n.key in levels or n.key in pending}))
        size = 1 if isinstance(members[0], Timed) else side_by_side
        tasks = [tuple(members[start : start + size]) for start in range(0, len(members), size)]
        for start in range(0, len(tasks), most):
            if chained:
                after = (arrays[-1].tasks[0][0].key,) if arrays else tuple(pending)
            whole = chained or isinstance(members[0], Timed)
            arrays.append(Array(tasks=tuple(tasks[start : start + most]), after=after, whole=whole))
    return arrays


def _levels(stages: Sequence[Stage]) -> dict[str, int]:
    """How many of these stages must be done one after the other before each; latency comes after all else."""
    levels: dict[str, int] = {}
    for stage in stages:
        levels[stage.key] = max((levels[n.key] + 1 for n in stage.needs if n.key in levels), default=0)
    last = max(levels.values(), default=0)
    return {stage.key: last + 1 if isinstance(stage, Timed) else levels[stage.key] for stage in stages}
