"""Every method's own hyperparameters, over the same number of trials, on the validation part of CIFAR-10.

The first trial is the recipe as it is. Base and learning schedules are the released ones, fine-tuning is a tenth as long.
`python -m suite.report --winners tuning` names the best trial of each method.
"""

from __future__ import annotations

from suite import methods
from suite.grids import Grid, _released, cross
from suite.grids._rivals import CONTROLS, CRITERIA, FROM_SCRATCH, LEARNING, RECONSTRUCTING
from suite.grids._tuning import trials
from suite.schedule import Schedule
from suite.stages import Base, Pruned

TRIALS = 6
MODEL = "resnet20"
FINETUNE = Schedule(epochs=40, lr=0.015, weight_decay=1e-3)


def runs() -> list[Pruned]:
    """Up to six trials of each method."""
    base = Base(data="cifar10", model=MODEL, schedule=_released.BASE, seed=0, split="tuning")
    return [
        run
        for method in ("dsp", *CRITERIA, *CONTROLS, *RECONSTRUCTING, *LEARNING, *FROM_SCRATCH)
        for trial in trials(methods.get(method), "cifar10", MODEL, TRIALS)
        for run in cross(
            bases=[base],
            method=method,
            budgets=(0.65,),
            finetune=FINETUNE,
            learning=_released.BASE if method in FROM_SCRATCH else _released.LEARN,
            seeds=(0, 1, 2),
            **trial,
        )
    ]


GRID = Grid(title="Tuning of every method on CIFAR-10", about=__doc__ or "", runs=runs, timings=())
