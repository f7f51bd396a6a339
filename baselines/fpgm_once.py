"""FPGM in one shot: filters nearest to the layer's geometric median are removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from baselines._medians import distance_sums
from suite.contract import Criterion, Ranking, Scope, State, Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class FPGMOnce(Criterion):
    """Removes the filters with the smallest sums of distances to all filters of their layer."""

    granularity = "filter"
    source = (
        "He et al., Filter Pruning via Geometric Median, CVPR 2019, equations 6-7; the released code masks each convolution "
        "on its own (scope untied)"
    )
    deviations = "pruned once after training, not softly after every epoch (`fpgm`)"
    formerly = "fpgm"
    search: ClassVar = {"ranking": ("layer", "global")}
    implied: ClassVar[Mapping[str, Any]] = {"scope": "coupled", "ranking": "global"}

    ranking: Ranking = "layer"
    scope: Scope = "untied"

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> sum of Euclidean distances to the layer's filters [O]."""
        return distance_sums(model, graph)
