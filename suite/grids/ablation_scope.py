"""Scope of pruning: untied, inner and coupled filters for each criterion, SSL and DSP.

DSP as published never narrows a residual stream; with `filter_pruned="coupled"` it does. Accuracies are on the validation part,
which no network is trained on; schedules and penalties are those of `cifar10_fair`.
"""

from __future__ import annotations

from typing import Any, get_args

from suite import methods
from suite.contract import Criterion, Scope
from suite.grids import Grid, _released, cross, dense_control
from suite.grids.cifar10_fair import DOSES, FINETUNE, LEARN, LEARNED, TOTAL
from suite.grids.retraining import TRAIN_IMAGES
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
    bases = {
        model: [Base(data="cifar10", model=model, schedule=_released.BASE, seed=seed, split="tuning") for seed in SEEDS]
        for model in MODELS
    }
    shared: dict[str, Any] = {"finetune": FINETUNE, "learning": LEARN, "total": TOTAL}
    planned = [
        run
        for method, changes in variants
        for model in MODELS
        for run in cross(
            bases=bases[model],
            method=method,
            budgets=BUDGETS,
            penalty_images=TRAIN_IMAGES,
            **shared,
            **({**changes, **LEARNED, "dose": DOSES[model]} if method == "dsp" else changes),
        )
    ]
    return planned + dense_control(bases=[base for own in bases.values() for base in own], **shared)


GRID = Grid(title="Scope of pruning on CIFAR-10", about=__doc__ or "", runs=runs, timings=())
