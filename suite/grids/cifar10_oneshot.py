"""A public CIFAR-10 ResNet-20, pruned at once by criteria that need no training.

Criteria differ most before fine-tuning repairs what they broke. Random filters have three seeds everywhere; the
others give the same plan for every seed, so one run is enough without fine-tuning. A uniform width is not fine-tuned, nor
are the methods that choose channels or kernels: their advantage over a criterion comes before any training.
"""

from __future__ import annotations

from suite import methods
from suite.grids import Grid, cross
from suite.schedule import Schedule
from suite.stages import Base, Pruned

SEEDS = (0, 1, 2)
BUDGETS = (0.3, 0.5, 0.65, 0.8, 0.9)
TUNED_BUDGETS = (0.5, 0.65, 0.8)
RANDOM = "random_filter"
NONE = Schedule(epochs=0, lr=0.01, weight_decay=5e-4)
ONE_EPOCH = Schedule(epochs=1, lr=0.01, weight_decay=5e-4)


def runs() -> list[Pruned]:
    """Return all at five budgets without fine-tuning, criteria at three with one epoch."""
    bases = [Base(data="cifar10", model="resnet20_a", schedule=None, weights="cifar10_resnet20_a", seed=0)]
    planned: list[Pruned] = []
    for method in methods.rivals(learns=False):
        seeds = SEEDS if method == RANDOM else SEEDS[:1]
        planned += cross(bases=bases, method=method, budgets=BUDGETS, finetune=NONE, seeds=seeds)
    for method in (*methods.rivals(learns=False, granularity="filter", control=False), RANDOM):
        planned += cross(bases=bases, method=method, budgets=TUNED_BUDGETS, finetune=ONE_EPOCH, seeds=SEEDS)
    return planned


GRID = Grid(
    title="Criteria without training on CIFAR-10",
    about=(__doc__ or "") + " Base weights are public (91.73 % on the test set); the schedule is ours.",
    runs=runs,
    timings=(),
)
