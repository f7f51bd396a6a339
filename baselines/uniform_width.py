"""Uniform width: the control of rates that differ between layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from baselines._norms import filter_weights, l1_norms
from suite.contract import Criterion, Ranking, State, Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class UniformWidth(Criterion):
    """Removes the same share of every set of coupled layers, smallest L1 norms first."""

    granularity = "filter"
    source = "control"
    control = True

    ranking: Ranking = "layer"

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Layer -> L1 norm of each filter [O]."""
        return l1_norms(filter_weights(model, graph))
