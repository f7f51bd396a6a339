"""Schedules that DSP's authors released for CIFAR-10; the paper's grids use them for all methods.

Batch 128, SGD with momentum 0.9; how often the cosine moves is not stated, here it moves every step. The cut grows by 0.1
points at each of the four re-plannings of the fine-tuning. The authors keep the epoch that is best on the test set, in every
stage, and look for it in group learning after epoch 8. Here the last epoch is kept, or (`kept`) the best on the validation
part; the best on the test set exists only to stand beside their rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from suite.contract import Budget
from suite.grids import Grid, cross
from suite.schedule import Schedule
from suite.stages import Base, Split

BASE = Schedule(epochs=164, lr=0.1, weight_decay=1e-4, shape="warm_steps")
LEARN = Schedule(epochs=120, lr=0.05, weight_decay=1e-3)
FINETUNE = Schedule(epochs=400, lr=0.015, weight_decay=1e-3, cycles=5, replan_pp=0.1)

DOSES = {"resnet20": 4.7, "resnet56": 2.0}
"""Dose of these schedules with the published lambdas (`dsp.dose`), on base networks of the suite."""
SEEDS = (0, 1, 2, 3, 4)
CUTS = {
    "resnet20": {2: 0.6123, 3: 0.6243, 4: 0.6357},
    "resnet56": {2: 0.6326, 3: 0.6414, 4: 0.6511},
}
"""Model -> number of groups -> the published share of the prunable convolutions' MACs."""


def kept(keep: Literal["best_validation", "best_test"], title: str, about: str) -> Grid:
    """Return DSP at its released cuts; every stage keeps its best epoch."""
    base, learning, finetune = (
        replace(BASE, keep=keep),
        replace(LEARN, keep=keep, keep_after=8),
        replace(FINETUNE, keep=keep),
    )
    split: Split = "held_out" if keep == "best_validation" else "all"
    return Grid(
        title=title,
        about=about,
        runs=lambda: [
            run
            for model, cuts in CUTS.items()
            for groups, share in cuts.items()
            for run in cross(
                bases=[Base(data="cifar10", model=model, schedule=base, seed=seed, split=split) for seed in SEEDS],
                method="dsp",
                groups=groups,
                budgets=[Budget(share=share, scope="prunable")],
                finetune=finetune,
                learning=learning,
            )
        ],
        timings=(),
    )
