"""Random filters: the control that every criterion has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from suite.contract import Criterion, Scope, State, Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class RandomFilter(Criterion):
    """A uniform random number for each filter, from the run's seed."""

    granularity = "filter"
    source = "control"
    control = True

    scope: Scope = "untied"

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> uniform random numbers [O]."""
        generator = torch.Generator().manual_seed(task.seed)
        return {name: torch.rand(conv.filters, generator=generator) for name, conv in graph.convs.items()}
