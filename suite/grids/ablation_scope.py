"""Scope of pruning: untied, inner and coupled filters for each criterion, SSL and DSP.

DSP as published never narrows a residual stream; with `filter_pruned="coupled"` it does. Accuracies are on the validation part,
which no network is trained on; schedules are those of `cifar10_fair`.
"""

from __future__ import annotations

from typing import Any, get_args

from suite import methods
from suite.contract import Criterion, Scope
from suite.grids import Grid, _released, cross, dense_control
from suite.grids.cifar10_fair import FINETUNE, LEARN, TOTAL
from suite.stages import Base, Pruned

SEEDS = (0, 1, 2)
BUDGETS = (0.5, 0.65)
MODELS = ("resnet20", "resnet56")
DSP_VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("dsp", {"filter_pruned": "closing"}),
    ("dsp", {"filter_pruned": "none"}),
    ("dsp", {"filter_pruned": "coupled"}),
)


def runs() -> list[Pruned]:
    """Return every criterion and SSL in each of their scopes, DSP, and the dense control."""
    kinds = {name: methods.get(name) for name in methods.rivals()}
    scopes = {name: kind.scopes for name, kind in kinds.items() if issubclass(kind, Criterion)}
    scopes["ssl"] = get_args(Scope)
    variants = DSP_VARIANTS + tuple((name, {"scope": scope}) for name, each in scopes.items() for scope in each)
    bases = [
        Base(data="cifar10", model=model, schedule=_released.BASE, seed=seed, split="tuning")
        for model in MODELS
        for seed in SEEDS
    ]
    return [
        run
        for method, changes in variants
        for run in cross(
            bases=bases, method=method, budgets=BUDGETS, finetune=FINETUNE, learning=LEARN, total=TOTAL, **changes
        )
    ] + dense_control(bases=bases, finetune=FINETUNE, learning=LEARN, total=TOTAL)


GRID = Grid(title="Scope of pruning on CIFAR-10", about=__doc__ or "", runs=runs, timings=())
