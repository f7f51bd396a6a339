"""Dense control, DSP and L1 with half, all and twice the training of `cifar10_study`.

Epochs of learning and of fine-tuning are multiplied. DSP stands there without fine-tuning, too: as learned, and as cut. The
dose stays, and the group logits keep their product of rate and steps. If DSP comes nearer to L1 with more training, the study's
order holds for its length of training only. That length is enough if twice as much moves the dense control by at most 0.3
points.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from suite.contract import Budget
from suite.grids import Grid, cross, dense_control
from suite.grids.cifar10_study import FINETUNE, LEARN, LEARNED, SHARES, TOTAL, TRAIN_IMAGES, bases
from suite.stages import Pruned

SEEDS = (0, 1, 2)
FACTORS = (0.5, 1, 2)


def runs() -> list[Pruned]:
    """Return dense control, DSP with four groups and L1 for each length."""
    planned: list[Pruned] = []
    for factor in FACTORS:
        shared: dict[str, Any] = {
            "bases": [base for base in bases() if base.seed in SEEDS],
            "learning": replace(LEARN, epochs=round(LEARN.epochs * factor)),
            "finetune": replace(FINETUNE, epochs=round(FINETUNE.epochs * factor)),
            "total": TOTAL * factor,
        }
        pruned = {**shared, "budgets": [Budget(share=SHARES[0], refill=True)], "penalty_images": TRAIN_IMAGES}
        learned: dict[str, Any] = {**LEARNED, "logit_lr": LEARNED["logit_lr"] / factor}
        planned += dense_control(**shared)
        planned += cross(method="dsp", groups=4, **learned, **pruned)
        cut = {**pruned, "finetune": replace(FINETUNE, epochs=0), "total": None}
        planned += cross(method="dsp", groups=4, **learned, **{**cut, "budgets": [Budget(share=0.0), *cut["budgets"]]})
        planned += cross(method="l1_filter", **pruned)
    return planned


GRID = Grid(
    title="Length of the study's training",
    about=__doc__ or "",
    runs=runs,
    timings=(),
    family="dsp(groups=4, grouping=learned)",
    commit="27144665c8d9e4d839acc1e3467b679b7cf510ee",
)
