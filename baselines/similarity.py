"""Similarity: of two filters with the same direction one is redundant.

Shapes: O filters, M sampled columns, D entries of a direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from baselines._directions import directions
from suite.contract import Criterion, Ranking, Scope, State, Task
from suite.graph import Graph

DECIMALS = 5
"""Distances are rounded to these, so that pairs as close as each other stay so whatever the order of additions."""


@dataclass(frozen=True, kw_only=True)
class Similarity(Criterion):
    """Removes one filter of each pair of mutually closest filters, closest pairs first."""

    granularity = "filter"
    source = (
        "Singh and Plumbley, A Passive Similarity based CNN Filter Pruning, Interspeech 2022, section 2; with `columns`: "
        "Efficient Similarity-based Passive Filter Pruning, ICASSP 2023, section 3"
    )
    deviations = (
        "the paper removes one set of redundant filters; to meet any budget, they go by the distance of their pair, over "
        "the network, and the pairing is repeated on the filters that are left; 1x1 filters, which the paper has none of, "
        "are compared by all their weights; the paper has no residual sums, scope inner is our choice"
    )
    search: ClassVar = {"columns": (None, 8), "ranking": ("raw", "layer")}

    ranking: Ranking = "raw"
    scope: Scope = "inner"
    columns: int | None = None
    """Columns of the similarity matrix, the first ones, from which the Nystrom method completes it; None: it is exact."""

    def __post_init__(self) -> None:
        if self.columns is not None and self.columns < 1:
            raise ValueError(
                f"similarity's columns must be at least 1, or None for the exact matrix, got {self.columns}"
            )

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> round of a filter's pairing + half its pair's cosine distance [O]."""
        scores = {}
        for name in graph.convs:
            similar_OO = similarities(directions(model.get_parameter(f"{name}.weight")), self.columns)
            distance_OO = (1 - (similar_OO + similar_OO.T) / 2).clamp(0, 2).round(decimals=DECIMALS)
            distance_OO.fill_diagonal_(torch.inf)
            score_O = distance_OO.new_zeros(len(distance_OO))
            left, turn = torch.arange(len(distance_OO), device=distance_OO.device), 0
            while len(left) > 1:
                nearest, partner = distance_OO[left][:, left].min(1)
                place = torch.arange(len(left), device=left.device)
                goes = (partner[partner] == place) & (partner < place)
                score_O[left[goes]] = turn + nearest[goes] / 2
                left, turn = left[~goes], turn + 1
            score_O[left] = turn
            scores[name] = score_O
        return scores


def similarities(direction_OD: Tensor, columns: int | None) -> Tensor:
    """Return cosine similarities [O, O], completed from the first `columns` if given.

    S = C W+ C' with C [O, M] the columns and W [M, M] their first rows: exact once the M directions span all of them.
    """
    if columns is None:
        return direction_OD @ direction_OD.T
    part_OM = direction_OD @ direction_OD[:columns].T
    return part_OM @ torch.linalg.pinv(part_OM[:columns], rtol=1e-10, hermitian=True) @ part_OM.T
