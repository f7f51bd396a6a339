"""Five methods on two small networks and embedded data, in a few minutes."""

from __future__ import annotations

from typing import Any

from suite.grids import Grid, cross, dense_control
from suite.schedule import Schedule
from suite.stages import Base, Pruned, Timing

SEEDS = (0, 1, 2)
BUDGETS = (0.5, 0.9)
BASE = Schedule(epochs=6, lr=0.1, weight_decay=5e-4, batch=64)
LEARN = Schedule(epochs=3, lr=0.05, weight_decay=5e-4, batch=64)
FINETUNE = Schedule(epochs=4, lr=0.05, weight_decay=5e-4, batch=64)
DOSE = 1.0
"""Of DSP's penalty. The recipe's lambda has a dose of 0.002 on this short schedule, which leaves no kernel sparse."""
TRAIN_IMAGES = 1437
"""Of an epoch: slimming's penalty keeps the authors' product of coefficient and summed learning rates."""
TOTAL = FINETUNE.epochs + 2.1 * LEARN.epochs
"""Plain-step equivalents of DSP's learning and fine-tuning, which every method gets."""


def runs() -> list[Pruned]:
    """DSP with two groups, and four rivals."""
    bases = [
        Base(data="digits", model=model, schedule=BASE, seed=seed) for model in ("resnet8", "vgg6") for seed in SEEDS
    ]
    shared: dict[str, Any] = {"bases": bases, "finetune": FINETUNE, "learning": LEARN, "total": TOTAL}
    planned = dense_control(**shared) + cross(method="dsp", budgets=BUDGETS, dose=DOSE, **shared)
    for method in ("l1_filter", "fpgm_once", "random_filter", "slimming"):
        planned += cross(method=method, budgets=BUDGETS, penalty_images=TRAIN_IMAGES, **shared)
    return planned


GRID = Grid(
    title="Quickstart",
    about="A small ResNet and a small VGG on scikit-learn's digits. Schedules are ours, short and of equal cost. Half of the "
    "MACs can go almost without loss, nine tenths cannot. Methods within each other's spread over three seeds have no order.",
    runs=runs,
    timings=(Timing(batch=32, protocol="quick"),),
    family="dsp",
)
