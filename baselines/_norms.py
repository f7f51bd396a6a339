"""Norms of filters, for criteria and penalties that rank by magnitude.

Shapes: O filters, I input channels, k kernel size.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from suite.graph import Graph


def filter_weights(model: nn.Module, graph: Graph) -> dict[str, Tensor]:
    """Return layer -> weight [O, I, k, k] of every convolution, detached, sharing memory."""
    return {name: model.get_parameter(f"{name}.weight").detach() for name in graph.convs}


def l1_norms(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return layer -> sum of absolute weights of each filter [O]."""
    return {name: w.detach().abs().sum((1, 2, 3)) for name, w in weights.items()}


def l2_norms(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return layer -> Euclidean norm of each filter [O]."""
    return {name: w.detach().flatten(1).norm(dim=1) for name, w in weights.items()}
