"""ResNet-20 on CIFAR-10 at equal MACs, equal base networks and equal training, on two cores.

A block is one base network with all methods on it. Its training is short, so that two cores finish a block at one budget in a
day or less; the grid `cifar10_study_length` shows what half and twice as much are worth, and to whom. Every method gets the
plain-step equivalents of DSP's learning and fine-tuning; a method that learns from initial weights replaces the base network's
training. A penalty has its authors' product of coefficient and summed learning rates; for DSP this is the dose of its released
schedule, and its group logits have the released product of rate and steps. GReg has no such product: its factor grows with the
iteration, so that weights decay by exp(-0.014) until it picks filters, and by exp(-0.50) in its authors' schedule. Runs are
listed budget by budget, so that one budget is complete before the second begins; within a block static groups and the cheapest
rivals stand before the others.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from suite.contract import Budget
from suite.grids import Grid, _released, cross, dense_control, follow
from suite.grids.controls import whole_training
from suite.schedule import Compute, Schedule
from suite.stages import Base, Pruned

SEEDS = (0, 1, 2, 3, 4)
SHARES = (0.6247, 0.5, 0.8)
"""The first is near the released cuts of ResNet-20 (`_released.CUTS`, 61.23 to 63.57 % of the prunable convolutions)."""
BF16 = Compute(precision="bf16", layout="channels_last")
BASE = Schedule(epochs=40, lr=0.1, weight_decay=5e-4, warmup_epochs=1, compute=BF16)
LEARN = Schedule(epochs=8, lr=0.05, weight_decay=5e-4, compute=BF16)
FINETUNE = Schedule(epochs=20, lr=0.02, weight_decay=5e-4, compute=BF16)
TOTAL = FINETUNE.epochs + 2.1 * LEARN.epochs
"""Plain-step equivalents of DSP's learning and fine-tuning."""
TRAIN_IMAGES = 50_000
FIXED = {"dose": _released.DOSES["resnet20"]}
LEARNED = {**FIXED, "logit_lr": 1e-3 * _released.LEARN.epochs / LEARN.epochs}
"""Dose, and product of steps and rate of the group logits, as in the released learning."""
RIVALS = ("l1_filter", "fpgm", "greg", "depgraph", "chip", "resrep", "equal_gkp", "random_filter", "slimming")
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("dsp", {**LEARNED, "groups": 4}),
    ("dsp", {**FIXED, "groups": 4, "grouping": "random"}),
    *((name, {}) for name in RIVALS),
    ("dsp", {**LEARNED, "groups": 2}),
    ("dsp", {**FIXED, "groups": 1}),
)


def bases() -> list[Base]:
    """Return the base networks, one a block."""
    return [Base(data="cifar10", model="resnet20", schedule=BASE, seed=seed) for seed in SEEDS]


def block(base: Base, budget: Budget) -> list[Pruned]:
    """Return all methods on a base network at one budget, other numbers of groups last."""
    scratch = replace(BASE, epochs=BASE.epochs + LEARN.epochs)
    runs = [
        run
        for method, changes in VARIANTS
        for run in cross(
            bases=[base],
            method=method,
            budgets=[budget],
            finetune=FINETUNE,
            learning=LEARN,
            scratch=scratch,
            total=TOTAL,
            penalty_images=TRAIN_IMAGES,
            **changes,
        )
    ]
    return [*runs, *follow(runs[:1], "scratch", finetune=whole_training)]


def runs() -> list[Pruned]:
    """Return every block budget by budget, with its dense control first."""
    planned: list[Pruned] = []
    for share in SHARES:
        for base in bases():
            planned += dense_control(bases=[base], finetune=FINETUNE, learning=LEARN, total=TOTAL)
            planned += block(base, Budget(share=share, refill=True))
    return list(dict.fromkeys(planned))


GRID = Grid(
    title="DSP and its rivals on CIFAR-10 at equal MACs",
    about=__doc__ or "",
    runs=runs,
    timings=(),
    family="dsp(groups=4, grouping=learned)",
    commit="31119f84c70437b792ae4d94e78f48fc1c9b4941",
)
