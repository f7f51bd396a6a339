"""Uniform width: the control that asks whether it matters how much of which layer goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from baselines._norms import filter_weights, l1_norms
from suite.contract import Criterion, Ranking, State, Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class UniformWidth(Criterion):
    """Every set of coupled layers loses the same share of its filters, those of smallest L1 norm."""

    granularity = "filter"
    source = "control"
    control = True

    ranking: Ranking = "layer"

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Layer -> L1 norm of each filter [O]."""
        return l1_norms(filter_weights(model, graph))
