"""Random filters at another method's rates: is it which filters go that matters, or how many from each layer?"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from baselines._rates import DEVIATIONS, rates_planner
from baselines.random_filter import RandomFilter
from suite.contract import Planner, Pruner, State, Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class RandomRates(Pruner):
    """Removes random filters, from each layer the share that the run it follows removed there."""

    granularity = "filter"
    source = "control"
    deviations = DEVIATIONS
    needs_reference = True

    like: str = ""
    """The method whose run is followed."""

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Knob 0.5 gives the followed run's own rates."""
        return rates_planner(graph, RandomFilter().score(model, graph, state, task), task.reference)
