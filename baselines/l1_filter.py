"""L1 norm of filters (Pruning Filters for Efficient ConvNets)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from baselines._norms import filter_weights, l1_norms
from suite.contract import Criterion, Ranking, Scope, State, Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class L1Filter(Criterion):
    """Removes the same share of each layer, filters of smallest absolute sums first."""

    granularity = "filter"
    source = (
        "Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, section 3.1; section 3.3 and the released ResNet-56 "
        "prune the first convolution of each block only (scope inner)"
    )
    deviations = "the same rate in every layer, instead of rates by sensitivity; ranking='global' is a variant of ours"
    search: ClassVar = {"ranking": ("layer", "global")}
    implied: ClassVar[Mapping[str, Any]] = {"scope": "coupled", "ranking": "global"}

    ranking: Ranking = "layer"
    scope: Scope = "inner"

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> L1 norm of each filter [O]."""
        return l1_norms(filter_weights(model, graph))
