"""Penalty of DSP weighted by the input size of a layer, as released, or not."""

from __future__ import annotations

from suite.grids._ablation import ablation

GRID = ablation(
    title="DSP's penalty scaling on CIFAR-10",
    about=__doc__ or "",
    changes=lambda data, model: [{"penalty_scale": scale} for scale in ("activations", "size")],
)
