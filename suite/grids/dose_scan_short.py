"""Dose of DSP's penalty as in `dose_scan`, with short schedules for two cores.

Lambda is raised so that each factor gives the dose that it gives under the schedule of `dose_scan`. One seed and few images:
the grid shows the dose at which groups become sparse, and supports no claim on accuracy.
"""

from __future__ import annotations

from suite.grids import Grid
from suite.grids._dose import scan
from suite.grids.cifar10_fair import LEARN
from suite.schedule import Compute, Schedule
from suite.stages import Pruned

SEEDS = (0,)
BUDGETS = (0.65,)
IMAGES = 6_000
BF16 = Compute(precision="bf16", layout="channels_last")
TRAIN_IMAGES = {"cifar10": 45_000, "tinyimagenet20": 9_000}
"""Training images of the grid `dose_scan`, about."""
BASE = Schedule(epochs=8, lr=0.02, warmup_epochs=1, weight_decay=5e-4, epoch_images=IMAGES, compute=BF16)
SHORT_LEARN = Schedule(epochs=2, lr=0.05, weight_decay=5e-4, epoch_images=IMAGES, compute=BF16)
FINETUNE = Schedule(epochs=1, lr=0.01, weight_decay=5e-4, epoch_images=IMAGES, compute=BF16)


def summed_rate(schedule: Schedule, images: int) -> float:
    """Return the sum of learning rate times ramp over the steps of a schedule."""
    steps = images // schedule.batch
    total = steps * schedule.epochs
    return sum(schedule.lr_at(step, steps) * (step + 1) / total for step in range(total))


def _same_dose(lam: float, data: str) -> float:
    """Return the lambda that gives the dose of `lam` under the schedule of `dose_scan`."""
    images = TRAIN_IMAGES[data]
    return lam * summed_rate(LEARN, images) / summed_rate(SHORT_LEARN, min(IMAGES, images))


def runs() -> list[Pruned]:
    """Return DSP at each factor, and the dense control, on both networks."""
    return scan(base=BASE, learning=SHORT_LEARN, finetune=FINETUNE, seeds=SEEDS, budgets=BUDGETS, lam_of=_same_dose)


GRID = Grid(title="Dose of DSP's penalty, short schedules", about=__doc__ or "", runs=runs, timings=())
