"""L1 norms at another method's rates: isolates that method's choice of filters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from baselines._norms import filter_weights, l1_norms
from baselines._rates import Rates
from suite.contract import Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class L1Rates(Rates):
    """Removes filters with the smallest L1 norms, at the rates of the followed run."""

    source = "control; norms as Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, section 3.1"

    def scores(self, model: nn.Module, graph: Graph, task: Task) -> Mapping[str, Tensor]:
        """Return the filters' L1 norms."""
        return l1_norms(filter_weights(model, graph))
