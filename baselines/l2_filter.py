"""L2 norm of filters, pruned once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from baselines._norms import filter_weights, l2_norms
from suite.contract import Criterion, Ranking, Scope, State, Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class L2Filter(Criterion):
    """Removes the filters with the smallest Euclidean norms, from each layer the same share."""

    granularity = "filter"
    source = (
        "He et al., Soft Filter Pruning for Accelerating Deep CNNs, IJCAI 2018, section 3.2, equation 2 with p = 2; the released "
        "code zeroes the filters of each convolution on its own (scope untied)"
    )
    deviations = "pruned once after training, not softly after every epoch (`sfp`)"
    search: ClassVar = {"ranking": ("layer", "global")}
    implied: ClassVar[Mapping[str, Any]] = {"scope": "coupled", "ranking": "global"}

    ranking: Ranking = "layer"
    scope: Scope = "untied"

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> L2 norm of each filter [O]."""
        return l2_norms(filter_weights(model, graph))
