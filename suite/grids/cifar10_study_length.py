"""Dense controls of `cifar10_study` with its training, and with twice as much."""

from __future__ import annotations

from suite.grids import Grid, cifar10_study, dense_control
from suite.stages import Pruned

SEEDS = cifar10_study.SEEDS[:3]
FACTORS = (1, 2)


def runs() -> list[Pruned]:
    """Return dense controls with the study's total training, and with twice as much."""
    bases = [base for base in cifar10_study.bases() if base.seed in SEEDS]
    return [
        run
        for factor in FACTORS
        for run in dense_control(
            bases=bases,
            finetune=cifar10_study.FINETUNE,
            learning=cifar10_study.LEARN,
            total=cifar10_study.TOTAL * factor,
        )
    ]


GRID = Grid(title="Length of the study's training", about=__doc__ or "", runs=runs, timings=())
