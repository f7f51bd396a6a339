"""Training steps per second on a GPU, one run alone and eight together.

Nothing is trained: networks have their initial weights, images are random, plans are random channels of four random filter
groups. A step does not depend on the weights. Steps are in bf16 and channels_last. Each CIFAR step draws, crops and flips its
batch on the device as a run does; ResNet-50 repeats one batch, since readers of files are measured apart
(`tests/benchmarks/readers.py`). Eight runs together are branches of one CUDA graph, and processes, under MPS if the machine has
it.

A released ResNet-20 run of 684 epochs has 267,000 steps: 446 steps per second, all kinds together, are 10 minutes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from suite.grids import Grid, cross
from suite.schedule import Schedule
from suite.stages import Base, Pruned, TimedSteps, Timing

UNTRAINED = Schedule(epochs=0, lr=0.1, weight_decay=0.0)
NETWORKS = {
    "resnet20": "synthetic_cifar10",
    "resnet50": "synthetic_imagenet",
    "resnet56": "synthetic_cifar10",
    "vgg16": "synthetic_cifar10",
}
"""Model -> data set, most important first."""
BUDGET, GROUPS, TOGETHER = 0.6, 4, 8
STEPS = Timing(device="cuda", batch=128, precision="bf16", layout="channels_last", protocol="quick")
ALONE_ONLY = ("resnet50",)
"""One run fills the device."""
PROCESSES = ("resnet20",)


def runs() -> list[Pruned]:
    """Return the network to fine-tune of each model."""
    return [
        run
        for model, data in NETWORKS.items()
        for run in cross(
            bases=[Base(data=data, model=model, schedule=UNTRAINED, seed=0)],
            method="random_groups",
            groups=GROUPS,
            budgets=[BUDGET],
            finetune=UNTRAINED,
        )
    ]


def steps(runs: Sequence[Pruned]) -> list[TimedSteps]:
    """Return the measurements of all kinds of steps: together in a graph, then in processes."""
    graphs, processes = [], []
    for run in runs:
        (learning,) = cross(
            bases=[run.base],
            method="dsp",
            groups=GROUPS,
            budgets=[run.budget],
            finetune=run.finetune,
            learning=run.base.schedule,
        )
        together = 1 if run.base.model in ALONE_ONLY else TOGETHER
        kinds = [
            TimedSteps(pruned=run, timing=STEPS, training="base", together=together),
            TimedSteps(pruned=learning, timing=STEPS, training="learning", together=together),
            TimedSteps(pruned=run, timing=STEPS, training="finetune", together=together),
        ]
        graphs += kinds
        if run.base.model in PROCESSES:
            processes += [dataclasses.replace(kind, processes=True) for kind in kinds]
    return [*graphs, *processes]


GRID = Grid(title="Training steps on a GPU", about=__doc__ or "", runs=runs, steps=steps, timings=())
