"""Lambda of DSP, from a quarter of the recipe's value to four times it."""

from __future__ import annotations

from suite import methods
from suite.grids._ablation import FACTORS, Changes, ablation


def _changes(data: str, model: str) -> Changes:
    recipe = methods.get("dsp").for_task(data, model)
    return [{"lam": recipe.lam * factor} for factor in FACTORS]  # type: ignore[attr-defined]


GRID = ablation(title="DSP's lambda on CIFAR-10", about=__doc__ or "", changes=_changes)
