"""Filters with the smallest L1 norms at another method's rates: what does the method's choice of filters add?"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from baselines._rates import DEVIATIONS, rates_planner
from baselines.l1_filter import L1Filter
from suite.contract import Planner, Pruner, State, Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class L1Rates(Pruner):
    """Removes the filters with the smallest L1 norms, from each layer the share that the run it follows removed there."""

    granularity = "filter"
    source = "control; norms as Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, section 3.1"
    deviations = DEVIATIONS
    needs_reference = True

    like: str = ""
    """The method whose run is followed."""

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Knob 0.5 gives the followed run's own rates."""
        return rates_planner(graph, L1Filter().score(model, graph, state, task), task.reference)
