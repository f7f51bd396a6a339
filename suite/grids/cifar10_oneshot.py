"""A public CIFAR-10 ResNet-20, pruned at once by methods that need no training.

Criteria differ most before fine-tuning repairs what they broke. Every method has the scope of its authors. A variant ranks
coupled sets within classes of isomorphic sub-graphs. Methods that draw filters or candidates at random have three seeds
everywhere. Without fine-tuning the others have one: equal GKP, lasso and ThiNet draw samples, too, and theirs are the numbers of
one draw. The epoch of fine-tuning is in bf16. CHIP and EagleEye see fewer images and candidates than their authors', so that two
cores compute the grid.
"""

from __future__ import annotations

from typing import Any

from suite import methods
from suite.grids import Grid, cross, dense_control
from suite.schedule import Compute, Schedule
from suite.stages import Base, Pruned

SEEDS = (0, 1, 2)
BUDGETS = (0.3, 0.5, 0.65, 0.8, 0.9)
TUNED_BUDGET = 0.65
RANDOM = ("random_filter", "eagle_eye")
NONE = Schedule(epochs=0, lr=0.01, weight_decay=5e-4)
ONE_EPOCH = Schedule(epochs=1, lr=0.01, weight_decay=5e-4, compute=Compute(precision="bf16", layout="channels_last"))
LESS: dict[str, dict[str, Any]] = {
    "chip": {"images": 128},
    "eagle_eye": {"candidates": 20, "batches": 20, "images": 1000},
}
"""Settings below the authors', for cost."""
ISOMORPHIC = ("l1_filter", "taylor_once")


def runs() -> list[Pruned]:
    """Return all methods at five budgets, one with an epoch too, and the dense control."""
    bases = [Base(data="cifar10", model="resnet20_a", schedule=None, weights="cifar10_resnet20_a", seed=0)]
    variants = [(method, LESS.get(method, {})) for method in methods.rivals(learns=False)]
    variants += [(method, {"ranking": "isomorphic", "scope": "coupled"}) for method in ISOMORPHIC]
    planned: list[Pruned] = []
    for method, changes in variants:
        seeds = SEEDS if method in RANDOM else SEEDS[:1]
        planned += cross(bases=bases, method=method, budgets=BUDGETS, finetune=NONE, seeds=seeds, **changes)
        planned += cross(
            bases=bases, method=method, budgets=(TUNED_BUDGET,), finetune=ONE_EPOCH, seeds=SEEDS, **changes
        )
    return planned + dense_control(bases=bases, finetune=ONE_EPOCH, learning=NONE, seeds=SEEDS)


GRID = Grid(
    title="Methods without training on CIFAR-10",
    about=(__doc__ or "") + " Base weights are public (91.73 % on the test set); the schedule is ours.",
    runs=runs,
    timings=(),
)
