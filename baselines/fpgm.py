"""FPGM: filters near the geometric median of their layer can be replaced by the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from suite.contract import Criterion, State, Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class FPGM(Criterion):
    """Sum of the distances from each filter to all filters of its layer."""

    granularity = "filter"
    source = "He et al., Filter Pruning via Geometric Median, CVPR 2019, equations 6-7"
    deviations = (
        "pruned once after training, not softly in every epoch; one order over the network (scores divided by their "
        "layer's mean) instead of one rate for all layers; residual streams are pruned too, tied filters by their mean score"
    )
    search: ClassVar = {"ranking": ("global", "layer")}

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Layer -> sum of Euclidean distances to the layer's filters [O]."""
        filters = {name: model.get_parameter(f"{name}.weight").flatten(1) for name in graph.convs}
        return {
            name: torch.cdist(w, w, compute_mode="donot_use_mm_for_euclid_dist").sum(1) for name, w in filters.items()
        }
