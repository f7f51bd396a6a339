"""How soft DSP's groups should be while they are learned: a quarter of the published temperature, 0.5, to four times it."""

from __future__ import annotations

from suite.grids._ablation import FACTORS, ablation

PUBLISHED = 0.5

GRID = ablation(
    title="DSP's temperature on CIFAR-10",
    about=__doc__ or "",
    changes=lambda data, model: [{"temperature": PUBLISHED * factor} for factor in FACTORS],
)
