"""Filters with the smallest L1 norms at another method's rates: what does the method's choice of filters add?"""

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
    """Removes the filters with the smallest L1 norms, from each layer the share that the run it follows removed there."""

    source = "control; norms as Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, section 3.1"

    def scores(self, model: nn.Module, graph: Graph, task: Task) -> Mapping[str, Tensor]:
        """The filters' L1 norms."""
        return l1_norms(filter_weights(model, graph))
