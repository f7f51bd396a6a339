"""Number of filter groups of DSP, from 1 (channel pruning by group lasso) to 8."""

from __future__ import annotations

from suite.grids._ablation import ablation
from suite.stages import Timing

GRID = ablation(
    title="DSP's number of filter groups on CIFAR-10",
    about=__doc__ or "",
    changes=lambda data, model: [{"groups": groups} for groups in (1, 2, 3, 4, 8)],
    models=("resnet20", "resnet56"),
    timings=(Timing(batch=32, protocol="quick"),),  # more groups cut finer and run slower
)
