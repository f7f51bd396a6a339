"""Scope of pruning on the public ResNet-20, after half an epoch in bf16.

L1, FPGM and Taylor prune at once, without learning, so that scopes differ in the filters alone. One base network: n counts
fine-tunings. Accuracies are on the test set and support no claim on full training.
"""

from __future__ import annotations

from suite.grids import Grid, cross, dense_control
from suite.grids.ablation_scope import DSP_VARIANTS
from suite.schedule import Compute, Schedule
from suite.stages import Base, Pruned

SEEDS = (0, 1, 2)
BUDGETS = (0.65,)
SCOPES = ("untied", "inner", "coupled")
EPOCH = Schedule(epochs=1, lr=0.01, weight_decay=5e-4, epoch_images=25_000, compute=Compute(precision="bf16"))


def runs() -> list[Pruned]:
    """Return three criteria in each scope, DSP, and the dense control."""
    bases = [Base(data="cifar10", model="resnet20_a", schedule=None, weights="cifar10_resnet20_a", seed=0)]
    variants = [(name, {"scope": scope}) for name in ("l1_filter", "fpgm_once", "taylor_once") for scope in SCOPES]
    return [
        run
        for method, changes in (*variants, *DSP_VARIANTS)
        for run in cross(
            bases=bases, method=method, budgets=BUDGETS, finetune=EPOCH, learning=EPOCH, seeds=SEEDS, **changes
        )
    ] + dense_control(bases=bases, finetune=EPOCH, learning=EPOCH, seeds=SEEDS)


GRID = Grid(title="Scope of pruning after half an epoch", about=__doc__ or "", runs=runs, timings=())
