"""L1 norm: filters with small weights matter little."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from baselines._norms import filter_weights, l1_norms
from suite.contract import Criterion, State, Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class L1Filter(Criterion):
    """Sum of absolute weights of each filter."""

    granularity = "filter"
    source = "Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, section 3.1"
    deviations = (
        "one order over the network (norms divided by their layer's mean) instead of hand-set rates per layer; residual "
        "streams are pruned too, tied filters by the mean of their scores"
    )
    search: ClassVar = {"ranking": ("global", "layer")}

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Layer -> L1 norm of each filter [O]."""
        return l1_norms(filter_weights(model, graph))
