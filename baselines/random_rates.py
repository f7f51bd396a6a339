"""Random filters at another method's rates: isolates the rates from the choice of filters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from baselines._rates import Rates
from baselines.random_filter import RandomFilter
from suite.contract import Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class RandomRates(Rates):
    """Removes random filters, from each layer the share that the run it follows removed there."""

    source = "control"

    def scores(self, model: nn.Module, graph: Graph, task: Task) -> Mapping[str, Tensor]:
        """Random, by the run's seed."""
        return RandomFilter().score(model, graph, {}, task)
