"""Hyperparameters of every method on the validation part of CIFAR-10: at most six trials.

The first trial has the method's recipe without winners. Base and learning schedules are the released ones, fine-tuning is a tenth
as long.
`python -m suite.report --winners tuning` names the best trial of each method.
"""

from __future__ import annotations

from suite.grids import Grid, _released, _tuning
from suite.schedule import Schedule
from suite.stages import Base

GRID = Grid(
    title="Tuning of every method on CIFAR-10",
    about=__doc__ or "",
    runs=lambda: _tuning.runs(
        [Base(data="cifar10", model="resnet20", schedule=_released.BASE, seed=0, split="tuning")],
        budget=0.65,
        finetune=Schedule(epochs=40, lr=0.015, weight_decay=1e-3),
        learning=_released.LEARN,
        scratch=_released.BASE,
        seeds=(0, 1, 2),
    ),
    timings=(),
)
