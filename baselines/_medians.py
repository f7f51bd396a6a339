"""Distances between filters, for FPGM and its one-shot variant.

Shapes: O filters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baselines._norms import filter_weights
from suite.graph import Graph


def distance_sums(model: nn.Module, graph: Graph) -> dict[str, Tensor]:
    """Return layer -> sum of Euclidean distances from each filter to the layer's filters [O]."""
    filters = {name: w.flatten(1) for name, w in filter_weights(model, graph).items()}
    return {name: torch.cdist(w, w, compute_mode="donot_use_mm_for_euclid_dist").sum(1) for name, w in filters.items()}
