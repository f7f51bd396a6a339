"""Uniform width: the control that asks whether it matters how much of which layer goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from baselines.l1_filter import L1Filter
from suite.contract import Criterion, Ranking, State, Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class UniformWidth(Criterion):
    """Every set of coupled layers loses the same share of its filters, those of smallest L1 norm."""

    granularity = "filter"
    source = "control"

    ranking: Ranking = "layer"

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Layer -> L1 norm of each filter [O]."""
        return L1Filter().score(model, graph, state, task)
