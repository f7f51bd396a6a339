"""All methods on CIFAR-10: equal base networks, budgets and training cost.

Every method trains for the same number of plain-step equivalents after the base network: a learning epoch of DSP costs 2.1
plain epochs, and methods that learn less fine-tune longer. Schedules are ours. DSP has the dose of its released schedules, and
each rival's penalty its authors' product of coefficient and summed learning rates. GReg has no such coefficient: its factor
grows with the iteration. Until it picks filters, weights decay by exp(-0.10) here and by exp(-0.50) in its authors' schedule.
"""

from __future__ import annotations

from typing import Any

from suite import methods
from suite.grids import Grid, _released, cross, dense_control
from suite.schedule import Schedule
from suite.stages import Base, Pruned, Timing

SEEDS = (0, 1, 2, 3, 4)
BUDGETS = (0.3, 0.5, 0.65, 0.8, 0.9)
MODELS = ("resnet20", "resnet56", "vgg16")
LEARN = Schedule(epochs=60, lr=0.05, weight_decay=5e-4)
FINETUNE = Schedule(epochs=120, lr=0.05, weight_decay=5e-4)
TRAIN_IMAGES = 50_000
LEARNED = {"logit_lr": 1e-3 * _released.LEARN.epochs / LEARN.epochs}
"""Of DSP: product of steps and rate of the group logits, as in the released learning."""
DOSES = {**_released.DOSES, "vgg16": _released.DOSES["resnet56"]}
"""Nobody released a VGG-16; it has the lower one of the released doses."""
TOTAL = FINETUNE.epochs + 2.1 * LEARN.epochs
"""Plain-step equivalents of DSP's learning and fine-tuning, which every method gets."""


def runs() -> list[Pruned]:
    """DSP with two and with four groups, and all rivals."""
    variants: list[tuple[str, dict[str, Any]]] = [("dsp", {"groups": 2}), ("dsp", {"groups": 4})]
    variants += [(method, {}) for method in methods.rivals()]
    bases = {
        model: [Base(data="cifar10", model=model, schedule=_released.BASE, seed=seed) for seed in SEEDS]
        for model in MODELS
    }
    planned = [
        run
        for method, changes in variants
        for model in MODELS
        for run in cross(
            bases=bases[model],
            method=method,
            budgets=BUDGETS,
            finetune=FINETUNE,
            learning=LEARN,
            total=TOTAL,
            penalty_images=TRAIN_IMAGES,
            **({**changes, **LEARNED, "dose": DOSES[model]} if method == "dsp" else changes),
        )
    ]
    every = [base for own in bases.values() for base in own]
    return planned + dense_control(bases=every, finetune=FINETUNE, learning=LEARN, total=TOTAL)


GRID = Grid(
    title="Every method under the same conditions on CIFAR-10",
    about=__doc__ or "",
    runs=runs,
    timings=tuple(Timing(device="cuda", batch=batch) for batch in (1, 32, 128)),
    family="dsp",
)
