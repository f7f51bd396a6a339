"""L2 norm: filters of little energy matter little."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from baselines._norms import filter_weights, l2_norms
from suite.contract import Criterion, State, Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class L2Filter(Criterion):
    """Euclidean norm of the weights of each filter."""

    granularity = "filter"
    source = "He et al., Soft Filter Pruning for Accelerating Deep CNNs, IJCAI 2018, section 3.2, equation 2 with p = 2"
    deviations = (
        "pruned once after training, not softly in every epoch; one order over the network (norms divided by their layer's "
        "mean) instead of one rate for all layers; residual streams are pruned too, tied filters by the mean of their scores"
    )
    search: ClassVar = {"ranking": ("global", "layer")}

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Layer -> L2 norm of each filter [O]."""
        return l2_norms(filter_weights(model, graph))
