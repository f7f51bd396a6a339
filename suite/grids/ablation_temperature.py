"""Temperature of DSP's groups, from a quarter of the published value to four times it."""

from __future__ import annotations

from suite.grids._ablation import FACTORS, ablation

PUBLISHED = 0.5

GRID = ablation(
    title="DSP's temperature on CIFAR-10",
    about=__doc__ or "",
    changes=lambda data, model: [{"temperature": PUBLISHED * factor} for factor in FACTORS],
)
