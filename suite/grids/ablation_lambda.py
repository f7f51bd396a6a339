"""How much DSP's lambda matters: a quarter of the recipe's to four times it, with the released schedules."""

from __future__ import annotations

from suite import methods
from suite.grids._ablation import FACTORS, Changes, ablation


def _changes(data: str, model: str) -> Changes:
    recipe = methods.get("dsp").for_task(data, model)
    return [{"lam": recipe.lam * factor} for factor in FACTORS]  # type: ignore[attr-defined]


GRID = ablation(title="DSP's lambda on CIFAR-10", about=__doc__ or "", changes=_changes)
