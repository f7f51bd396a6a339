"""Fine-tuning sweep for every method: 3 learning rates times 3 weight decays.

The best schedule of a method becomes its recipe: `finetune = { lr = ..., weight_decay = ... }` in suite/winners.toml. Learning,
penalties and the total of plain-step equivalents are those of `cifar10_fair`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from suite import methods
from suite.grids import Grid, _released, cross, dense_control
from suite.grids.cifar10_fair import DOSES, FINETUNE, LEARN, LEARNED, TOTAL
from suite.stages import Base, Pruned

SEEDS = (0, 1, 2)
BUDGETS = (0.65,)
RATES = (0.005, 0.015, 0.05)
DECAYS = (1e-4, 5e-4, 1e-3)
TRAIN_IMAGES = 45_000
"""Without the validation part."""


def runs() -> list[Pruned]:
    """Return every method and the dense control under nine fine-tuning schedules."""
    bases = [
        Base(data="cifar10", model="resnet20", schedule=_released.BASE, seed=seed, split="tuning") for seed in SEEDS
    ]
    learned: dict[str, Any] = {**LEARNED, "dose": DOSES["resnet20"]}
    planned: list[Pruned] = []
    for lr in RATES:
        for decay in DECAYS:
            finetune = replace(FINETUNE, lr=lr, weight_decay=decay)
            for method in ("dsp", *methods.rivals()):
                planned += cross(
                    bases=bases,
                    method=method,
                    budgets=BUDGETS,
                    finetune=finetune,
                    learning=LEARN,
                    total=TOTAL,
                    tuned=False,
                    penalty_images=TRAIN_IMAGES,
                    **(learned if method == "dsp" else {}),
                )
            planned += dense_control(bases=bases, finetune=finetune, learning=LEARN, total=TOTAL, tuned=False)
    return planned


GRID = Grid(title="Fine-tuning schedules of every method on CIFAR-10", about=__doc__ or "", runs=runs, timings=())
