"""Ablations of one setting, all else equal, without test images.

Networks train on all training images but the validation part, and accuracies are those of the last epoch on that part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from suite.grids import Grid, _released, cross
from suite.schedule import Schedule
from suite.stages import Base, Timing

SEEDS = (0, 1, 2)
BUDGETS = (0.6, 0.75)
GROUPS = 4
"""Filter groups wherever they are not what is varied."""
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Times the recipe's value."""

Changes = Iterable[Mapping[str, Any]]


def ablation(
    title: str,
    about: str,
    changes: Callable[[str, str], Changes],
    *,
    data: str = "cifar10",
    models: Sequence[str] = ("resnet20",),
    budgets: Sequence[float] = BUDGETS,
    schedules: tuple[Schedule, Schedule, Schedule] = (_released.BASE, _released.LEARN, _released.FINETUNE),
    timings: tuple[Timing, ...] = (),
) -> Grid:
    """Return a grid: a run for every change, model, seed and budget.

    `schedules` are those of base, learning and fine-tuning.
    """
    base, learning, finetune = schedules
    return Grid(
        title=title,
        about=f"{about.strip()} Accuracies are on the validation part, which no network is trained on.",
        runs=lambda: [
            run
            for model in models
            for change in changes(data, model)
            for run in cross(
                bases=[Base(data=data, model=model, schedule=base, seed=seed, split="tuning") for seed in SEEDS],
                method="dsp",
                budgets=budgets,
                finetune=finetune,
                learning=learning,
                **{"groups": GROUPS, **change},
            )
        ],
        timings=timings,
    )
