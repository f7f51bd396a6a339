"""Scan of DSP's dose on VGG-16 and ResNet-18, at multiples of the recipe's lambda.

Accuracies are on the validation part, which no network is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from suite import methods
from suite.grids import cross, dense_control
from suite.schedule import Schedule
from suite.stages import Base, Pruned

FACTORS = (1.0, 10.0, 30.0, 100.0)
GROUPS = 2
NETWORKS = {("cifar10", "vgg16"): FACTORS, ("tinyimagenet20", "resnet18"): (*FACTORS, 300.0, 1000.0)}
"""Network -> multiples of lambda. ResNet-18 makes so few steps on so few images that its dose at 100 is below 1."""


def scan(
    *,
    base: Schedule,
    learning: Schedule,
    finetune: Schedule,
    seeds: Sequence[int],
    budgets: Sequence[float],
    lam_of: Callable[[float, str], float] = lambda lam, data: lam,
) -> list[Pruned]:
    """Return DSP at each factor, and the dense control, on both networks.

    lam_of   (lambda of the recipe, data set) -> lambda at factor 1
    """
    planned: list[Pruned] = []
    for (data, model), factors in NETWORKS.items():
        bases = [Base(data=data, model=model, schedule=base, seed=seed, split="tuning") for seed in seeds]
        lam = lam_of(methods.get("dsp").for_task(data, model).lam, data)  # type: ignore[attr-defined]
        for factor in factors:
            planned += cross(
                bases=bases,
                method="dsp",
                budgets=budgets,
                finetune=finetune,
                learning=learning,
                groups=GROUPS,
                lam=lam * factor,
            )
        planned += dense_control(bases=bases, finetune=finetune, learning=learning)
    return planned
