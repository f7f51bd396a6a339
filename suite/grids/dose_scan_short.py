"""Dose of DSP's penalty as in `dose_scan`, with short schedules for two cores.

Lambda is raised so that each factor gives the dose that it gives under the schedule of `dose_scan`. One seed and few images:
the grid shows the dose at which groups become sparse, and supports no claim on accuracy.
"""

from __future__ import annotations

from suite import methods
from suite.grids import Grid, cross, dense_control
from suite.grids.cifar10_fair import LEARN
from suite.grids.dose_scan import FACTORS, GROUPS, NETWORKS
from suite.schedule import Compute, Schedule
from suite.stages import Base, Pruned

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


def runs() -> list[Pruned]:
    """Return DSP at each factor, and the dense control, on both networks."""
    planned: list[Pruned] = []
    for data, model in NETWORKS:
        bases = [Base(data=data, model=model, schedule=BASE, seed=seed, split="tuning") for seed in SEEDS]
        full, short = summed_rate(LEARN, TRAIN_IMAGES[data]), summed_rate(SHORT_LEARN, min(IMAGES, TRAIN_IMAGES[data]))
        lam = methods.get("dsp").for_task(data, model).lam * full / short  # type: ignore[attr-defined]
        for factor in FACTORS:
            planned += cross(
                bases=bases,
                method="dsp",
                budgets=BUDGETS,
                finetune=FINETUNE,
                learning=SHORT_LEARN,
                groups=GROUPS,
                lam=lam * factor,
            )
        planned += dense_control(bases=bases, finetune=FINETUNE, learning=SHORT_LEARN)
    return planned


GRID = Grid(title="Dose of DSP's penalty, short schedules", about=__doc__ or "", runs=runs, timings=())
