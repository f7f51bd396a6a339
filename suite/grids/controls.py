"""Controls beside DSP and L1: random filters, uniform width, followed rates, training from scratch.

`random_rates` and `l1_rates` remove as large a part of every layer as the run that they follow; `scratch` trains that run's
architecture from the base network's initial weights, with the base network's schedule: for as many epochs (E), and for as
many as cost what the base network cost (B: epochs / (1 - budget); the cut that is reached is a little larger). Everything else
is fine-tuned alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from suite.grids import Grid, _released, cross, follow
from suite.schedule import Schedule
from suite.stages import Base, Pruned

SEEDS = (0, 1, 2)
BUDGETS = (0.5, 0.65, 0.8)
GROUPS = 2


def same_epochs(run: Pruned) -> Schedule:
    """Scratch-E."""
    return _released.BASE


def same_compute(run: Pruned) -> Schedule:
    """Scratch-B."""
    return replace(_released.BASE, epochs=round(_released.BASE.epochs / (1 - run.budget.share)))


def _every(method: str, budgets: Iterable[float] = BUDGETS, **changes: Any) -> list[Pruned]:
    bases = [
        Base(data="cifar10", model=model, schedule=_released.BASE, seed=seed)
        for model in ("resnet20", "resnet56")
        for seed in SEEDS
    ]
    return cross(
        bases=bases, method=method, budgets=budgets, finetune=_released.FINETUNE, learning=_released.LEARN, **changes
    )


def runs() -> list[Pruned]:
    """Return the two followed methods, the controls and the followers."""
    dsp, l1 = _every("dsp", groups=GROUPS), _every("l1_filter")
    planned = [*_every("dense_control", budgets=(0.0,)), *dsp, *l1, *_every("random_filter"), *_every("uniform_width")]
    planned += [*follow([*dsp, *l1], "random_rates"), *follow(dsp, "l1_rates")]
    for schedule in (same_epochs, same_compute):
        planned += follow([*dsp, *l1], "scratch", finetune=schedule)
    return planned


GRID = Grid(
    title="Controls on CIFAR-10",
    about=(__doc__ or "") + " The schedules are the released ones.",
    runs=runs,
    timings=(),
    family="dsp",
)
