"""Scope of pruning on the public ResNet-20, after one epoch in bf16.

L1, FPGM and Taylor prune at once, without learning, so that scopes differ in the filters alone. DSP learns for one epoch before,
with the lambda whose dose is about 1. One base network: n counts fine-tunings. Accuracies are on the test set and support no
claim on full training.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from suite import methods
from suite.grids import Grid, _released, cross, dense_control
from suite.grids.ablation_scope import DSP_VARIANTS
from suite.grids.dose_scan_short import summed_rate
from suite.schedule import Compute, Schedule
from suite.stages import Base, Pruned

SEEDS = (0, 1, 2)
BUDGETS = (0.65,)
SCOPES = ("untied", "inner", "coupled")
EPOCH = Schedule(epochs=1, lr=0.01, weight_decay=5e-4, compute=Compute(precision="bf16", layout="channels_last"))
LEARN = replace(EPOCH, lr=0.05)
TRAIN_IMAGES = 50_000
RELEASED_DOSE = 4.7
"""Dose of the released schedule on ResNet-20 (`dsp.dose`)."""


def lam() -> float:
    """Return lambda whose dose on `LEARN` is 1, at weights like the released ones."""
    released: float = methods.get("dsp").for_task("cifar10", "resnet20_a").lam  # type: ignore[attr-defined]
    rates = summed_rate(_released.LEARN, TRAIN_IMAGES) / summed_rate(LEARN, TRAIN_IMAGES)
    return released * rates / RELEASED_DOSE


def runs() -> list[Pruned]:
    """Return three criteria and DSP in each scope, and the dense control."""
    bases = [Base(data="cifar10", model="resnet20_a", schedule=None, weights="cifar10_resnet20_a", seed=0)]
    variants: list[tuple[str, dict[str, Any]]] = [
        (name, {"scope": scope}) for name in ("l1_filter", "fpgm_once", "taylor_once") for scope in SCOPES
    ]
    variants += [(name, {**changes, "lam": lam()}) for name, changes in DSP_VARIANTS]
    return [
        run
        for method, changes in variants
        for run in cross(
            bases=bases, method=method, budgets=BUDGETS, finetune=EPOCH, learning=LEARN, seeds=SEEDS, **changes
        )
    ] + dense_control(bases=bases, finetune=EPOCH, learning=LEARN, seeds=SEEDS)


GRID = Grid(title="Scope of pruning after one epoch", about=__doc__ or "", runs=runs, timings=())
