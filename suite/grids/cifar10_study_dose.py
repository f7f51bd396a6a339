"""Dose of DSP's penalty at the length of training of `cifar10_study`, on the validation part.

The study applies the dose of DSP's released schedule in 8 epochs instead of 120, in which DSP loses accuracy. A smaller dose
costs less accuracy while it learns, and more when channels are cut. Base networks are trained without the validation part, and
no image of the test set is read. The dose with the highest mean accuracy after fine-tuning, over the base networks, is chosen. If
that is not the released dose, the study gets DSP with both. L1 has no setting to choose; its accuracy is the reference.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from suite.contract import Budget
from suite.grids import Grid, cross, dense_control
from suite.grids.cifar10_study import FINETUNE, LEARN, LEARNED, SHARES, TOTAL, bases
from suite.stages import Pruned

SEEDS = (0, 1, 2)
FACTORS = (1, 1 / 2, 1 / 4)
"""Of the released dose; below a dose of about 1 no kernel becomes sparse (`dsp.dose`)."""


def runs() -> list[Pruned]:
    """Return dense control, DSP with four groups at each dose, and L1, base by base."""
    planned: list[Pruned] = []
    for base in bases():
        if base.seed not in SEEDS:
            continue
        shared: dict[str, Any] = {
            "bases": [replace(base, split="tuning")],
            "learning": LEARN,
            "finetune": FINETUNE,
            "total": TOTAL,
        }
        pruned = {**shared, "budgets": [Budget(share=SHARES[0], refill=True)]}
        planned += dense_control(**shared)
        for factor in FACTORS:
            changes: dict[str, Any] = {**LEARNED, "dose": LEARNED["dose"] * factor}
            planned += cross(method="dsp", groups=4, **changes, **pruned)
        planned += cross(method="l1_filter", **pruned)
    return planned


GRID = Grid(
    title="Dose of DSP's penalty at the study's length",
    about=__doc__ or "",
    runs=runs,
    timings=(),
    commit="6bcb9bd06d3428a5afa72789f1f39849bdc4401f",
)
