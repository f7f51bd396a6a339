"""Norms of filters, for criteria and penalties that rank by magnitude.

Shapes: O filters, I input channels, k kernel size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from suite.contract import Criterion, Ranking, State, Task
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


@dataclass(frozen=True, kw_only=True)
class NormFilter(Criterion):
    """Removes the same share of each layer, filters of the smallest norms first."""

    granularity = "filter"
    power: ClassVar[int]
    """Of the norm: 1 or 2."""
    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {"ranking": ("layer", "global")}
    implied: ClassVar[Mapping[str, Any]] = {"scope": "coupled", "ranking": "global"}

    ranking: Ranking = "layer"

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> norm of each filter [O]."""
        return (l1_norms if self.power == 1 else l2_norms)(filter_weights(model, graph))
