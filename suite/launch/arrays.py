"""Grouping of stages into arrays of jobs. Pure functions, without SLURM.

An array has stages that wait for the same stages and need the same resources, so each starts as early as possible. Latency is
measured last: after the whole array of its runs has ended. With a limit of parallel jobs each level waits for the level before,
because SLURM limits an array, not a launch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from suite.stages import Stage, Timed


@dataclass(frozen=True, kw_only=True)
class Array:
    """Jobs that are submitted together.

    tasks    the stages of each job
    after    keys of the stages whose jobs must have ended, in any way; `whole`: with the arrays that they are in
    chained  the next array waits for this one
    """

    tasks: tuple[tuple[Stage, ...], ...]
    after: tuple[str, ...]
    whole: bool
    chained: bool = False

    @property
    def timing(self) -> bool:
        """True if these jobs measure latency."""
        return isinstance(self.tasks[0][0], Timed)


def arrays_of(
    stages: Sequence[Stage], pending: Mapping[str, str], *, side_by_side: int, most: int, chained: bool
) -> list[Array]:
    """Group the stages into arrays, in an order in which needed stages come first.

    stages        to be submitted
    pending       key -> job of stages that are with SLURM already
    side_by_side  stages of one job; a timed stage has a job of its own
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
                after = (_last(arrays[-1]),) if arrays else tuple(pending)
            whole = chained or isinstance(members[0], Timed)
            part = tuple(tasks[start : start + most])
            arrays.append(Array(tasks=part, after=after, whole=whole, chained=chained))
    return arrays


def halves(array: Array) -> list[Array]:
    """Split an array in two; a chained second half waits for the first."""
    middle = len(array.tasks) // 2
    first = dataclasses.replace(array, tasks=array.tasks[:middle])
    after = (_last(first),) if array.chained else array.after
    return [first, dataclasses.replace(array, tasks=array.tasks[middle:], after=after)]


def _last(array: Array) -> str:
    """Return the key of a stage of the last job, which splitting leaves last."""
    return array.tasks[-1][0].key


def _levels(stages: Sequence[Stage]) -> dict[str, int]:
    """Return key -> length of the longest chain of needed stages before each.

    Timed stages come after all others.
    """
    levels: dict[str, int] = {}
    for stage in stages:
        levels[stage.key] = max((levels[n.key] + 1 for n in stage.needs if n.key in levels), default=0)
    last = max(levels.values(), default=0)
    return {stage.key: last + 1 if isinstance(stage, Timed) else levels[stage.key] for stage in stages}
