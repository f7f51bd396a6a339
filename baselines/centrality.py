"""Graph centrality: a filter that resembles all others holds what they have in common, and can be replaced by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from baselines._directions import directions
from suite.contract import Criterion, Ranking, Scope, State, Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class Centrality(Criterion):
    """Filters are the nodes of a graph, joined by the similarity of their directions; the most central ones go first."""

    granularity = "filter"
    source = (
        "King, Singh, Plumbley, Compressing Audio CNNs with Graph Centrality Based Filter Pruning, WASPAA 2023, section 3, "
        "weighted degree centrality"
    )
    deviations = (
        "betweenness centrality, the paper's other variant, is left out; 1x1 filters, which the paper has none of, are "
        "compared by all their weights; the paper has no residual sums, scope inner is our choice"
    )
    search: ClassVar = {"ranking": ("layer", "global")}

    ranking: Ranking = "layer"
    scope: Scope = "inner"

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Layer -> 1 - mean cosine similarity to the layer's other filters [O]: falls as the weighted degree rises."""
        found = {}
        for name in graph.convs:
            direction_OD = directions(model.get_parameter(f"{name}.weight"))
            degree_O = direction_OD @ direction_OD.sum(0) - direction_OD.square().sum(1)
            found[name] = 1 - degree_O / max(len(direction_OD) - 1, 1)
        return found
