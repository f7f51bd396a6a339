"""Layers that give a channel a constant value, though its filters are removed.

Shapes: C channels of a layer, S filter sets.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from suite.graph import Graph


class LayersBehind:
    """Grouped convolutions, and batch norms that are not right behind a convolution (`Graph.channel_sets`)."""

    def __init__(self, model: nn.Module, graph: Graph) -> None:
        self.parts = [
            (parameter, ids.to(parameter.device))
            for name, ids in graph.channel_sets.items()
            for parameter in model.get_submodule(name).parameters(recurse=False)
        ]

    @torch.no_grad()
    def mask(self, mask_S: Tensor) -> None:
        """Multiply each channel's entries by the mask of its filter set; channels without one stay."""
        mask = torch.cat([mask_S, mask_S.new_ones(1)])  # the last one is that of set -1
        for parameter, ids_C in self.parts:
            parameter.mul_(mask[ids_C].view(-1, *[1] * (parameter.dim() - 1)))
