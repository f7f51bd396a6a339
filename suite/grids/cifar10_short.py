"""Public CIFAR-10 networks, pruned and fine-tuned for a few epochs."""

from __future__ import annotations

from typing import Any

from suite.grids import Grid, cross, dense_control
from suite.schedule import Schedule
from suite.stages import Base, Pruned, Timing

SEEDS = (0, 1, 2)
BUDGETS = (0.3, 0.5, 0.65)
LEARN = Schedule(epochs=2, lr=0.01, weight_decay=5e-4)
FINETUNE = Schedule(epochs=2, lr=0.01, weight_decay=5e-4)
TOTAL = FINETUNE.epochs + 2.1 * LEARN.epochs
"""Plain-step equivalents of DSP's learning and fine-tuning, which every method gets."""
DOSE = 1.0
"""From about this dose on, DSP's penalty makes channels small (`dsp.dose`)."""


def runs() -> list[Pruned]:
    """DSP with two groups, and four rivals."""
    bases = [
        Base(data="cifar10", model=f"resnet{depth}_a", schedule=None, weights=f"cifar10_resnet{depth}_a", seed=0)
        for depth in (20, 56)
    ]
    shared: dict[str, Any] = {"bases": bases, "finetune": FINETUNE, "learning": LEARN, "total": TOTAL, "seeds": SEEDS}
    planned = dense_control(**shared) + cross(method="dsp", budgets=BUDGETS, dose=DOSE, **shared)
    for method in ("l1_filter", "fpgm", "random_filter", "taylor"):
        planned += cross(method=method, budgets=BUDGETS, **shared)
    return planned


GRID = Grid(
    title="CIFAR-10, public base networks, short fine-tuning",
    about="Option-A ResNet-20 and -56 with public weights (91.73 and 93.39 % on the test set). Schedules are ours and short: "
    "accuracies lie below those of the full schedules. There is one base network for each model, so no comparison is declared.",
    runs=runs,
    timings=(Timing(batch=128, protocol="quick"),),
)
