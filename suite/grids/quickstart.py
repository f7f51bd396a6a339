"""Five methods on two small networks and embedded data, in about ten minutes."""

from __future__ import annotations

from suite.grids import Grid, cross, dense_control
from suite.schedule import Schedule
from suite.stages import Base, Pruned, Timing

SEEDS = (0, 1, 2)
BUDGETS = (0.5, 0.9)
BASE = Schedule(epochs=6, lr=0.1, weight_decay=5e-4, batch=64)
LEARN = Schedule(epochs=3, lr=0.05, weight_decay=5e-4, batch=64)
FINETUNE = Schedule(epochs=4, lr=0.05, weight_decay=5e-4, batch=64)
TOTAL = FINETUNE.epochs + 2.1 * LEARN.epochs
"""Plain-step equivalents of DSP's learning and fine-tuning, which every method gets."""


def runs() -> list[Pruned]:
    """DSP with two groups, and four rivals."""
    bases = [
        Base(data="digits", model=model, schedule=BASE, seed=seed) for model in ("resnet8", "vgg6") for seed in SEEDS
    ]
    return dense_control(bases=bases, finetune=FINETUNE, learning=LEARN, total=TOTAL) + [
        run
        for method in ("dsp", "l1_filter", "fpgm_once", "random_filter", "slimming")
        for run in cross(bases=bases, method=method, budgets=BUDGETS, finetune=FINETUNE, learning=LEARN, total=TOTAL)
    ]


GRID = Grid(
    title="Quickstart",
    about="A small ResNet and a small VGG on scikit-learn's digits. Schedules are ours, short and of equal cost. Half of the "
    "MACs can go almost without loss, nine tenths cannot. Methods within each other's spread over three seeds have no order. "
    "Three epochs of DSP's penalty leave no kernel sparse, so its channels are those of large energy in the base network.",
    runs=runs,
    timings=(Timing(batch=32, protocol="quick"),),
    family="dsp",
)
