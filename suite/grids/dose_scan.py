"""Dose of DSP's penalty at 1, 10, 30 and 100 times the recipe's lambda.

VGG-16 on CIFAR-10 and ResNet-18 on `tinyimagenet20`. At the recipes' lambdas the dose of these networks is well below 1, and
group entropies stay at ln G: the groups are not learned. The dose stands in every row of DSP. Accuracies are on the
validation part, which no network is trained on.
"""

from __future__ import annotations

from suite import methods
from suite.grids import Grid, _released, cross, dense_control
from suite.grids.cifar10_fair import FINETUNE, LEARN
from suite.stages import Base, Pruned

SEEDS = (0, 1, 2)
BUDGETS = (0.5, 0.65)
FACTORS = (1.0, 10.0, 30.0, 100.0)
GROUPS = 2
NETWORKS = (("cifar10", "vgg16"), ("tinyimagenet20", "resnet18"))


def runs() -> list[Pruned]:
    """Return DSP at each factor, and the dense control, on both networks."""
    planned: list[Pruned] = []
    for data, model in NETWORKS:
        bases = [Base(data=data, model=model, schedule=_released.BASE, seed=seed, split="tuning") for seed in SEEDS]
        lam = methods.get("dsp").for_task(data, model).lam  # type: ignore[attr-defined]
        for factor in FACTORS:
            planned += cross(
                bases=bases,
                method="dsp",
                budgets=BUDGETS,
                finetune=FINETUNE,
                learning=LEARN,
                groups=GROUPS,
                lam=lam * factor,
            )
        planned += dense_control(bases=bases, finetune=FINETUNE, learning=LEARN)
    return planned


GRID = Grid(title="Dose of DSP's penalty", about=__doc__ or "", runs=runs, timings=())
