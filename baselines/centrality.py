"""Graph centrality: filters that resemble all others are redundant."""

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
    """Removes the most central nodes of the filters' similarity graph first."""

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
        """Return layer -> 1 - mean cosine similarity to the layer's other filters [O].

        The score falls as the weighted degree rises.
        """
        scores = {}
        for name in graph.convs:
            direction_OD = directions(model.get_parameter(f"{name}.weight"))
            degree_O = direction_OD @ direction_OD.sum(0) - direction_OD.square().sum(1)
            scores[name] = 1 - degree_O / max(len(direction_OD) - 1, 1)
        return scores
