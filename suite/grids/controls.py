"""Controls beside DSP and L1: random filters, uniform width, followed rates, training from scratch.

`random_rates` and `l1_rates` remove as large a part of every layer as the run that they follow. `scratch` trains that run's
architecture from the base network's initial weights under the fine-tuning recipe, for the epochs of base, learning and
fine-tuning together (learning in plain-step equivalents). All others get the plain-step equivalents of DSP's learning and
fine-tuning.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from suite.grids import Grid, _released, cross, follow
from suite.schedule import Schedule
from suite.stages import Base, Pruned

SEEDS = (0, 1, 2, 3, 4)
BUDGETS = (0.5, 0.65, 0.8)
GROUPS = 2
TOTAL = _released.FINETUNE.epochs + 2.1 * _released.LEARN.epochs
"""Plain-step equivalents of DSP's learning and fine-tuning."""


def whole_training(run: Pruned) -> Schedule:
    """Return the fine-tuning recipe, without cycles, over all plain-step equivalents of a run."""
    return replace(run.finetune, epochs=round(run.plain_epochs), cycles=1, replan_pp=0.0)


def _every(method: str, budgets: Iterable[float] = BUDGETS, **changes: Any) -> list[Pruned]:
    bases = [
        Base(data="cifar10", model=model, schedule=_released.BASE, seed=seed)
        for model in ("resnet20", "resnet56")
        for seed in SEEDS
    ]
    return cross(
        bases=bases,
        method=method,
        budgets=budgets,
        finetune=_released.FINETUNE,
        learning=_released.LEARN,
        total=TOTAL,
        **changes,
    )


def _equal_training(run: Pruned) -> Schedule:
    """Return the fine-tuning schedule that spends `TOTAL` without learning, in whole cycles."""
    return replace(run.finetune, epochs=run.finetune.cycles * round(TOTAL / run.finetune.cycles))


def runs() -> list[Pruned]:
    """Return the two followed methods, the controls and the followers."""
    dsp, l1 = _every("dsp", groups=GROUPS), _every("l1_filter")
    planned = [*_every("dense_control", budgets=(0.0,)), *dsp, *l1, *_every("random_filter"), *_every("uniform_width")]
    planned += [*follow([*dsp, *l1], "random_rates", finetune=_equal_training)]
    planned += follow(dsp, "l1_rates", finetune=_equal_training)
    return [*planned, *follow([*dsp, *l1], "scratch", finetune=whole_training)]


GRID = Grid(
    title="Controls on CIFAR-10",
    about=(__doc__ or "") + " The schedules are the released ones.",
    runs=runs,
    timings=(),
    family="dsp",
)
