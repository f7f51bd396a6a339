"""Random channels of random filter groups: the control that learned groups and their criteria have to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from suite.contract import Planner, Pruner, State, Task
from suite.graph import Graph
from suite.select import channel_planner


@dataclass(frozen=True, kw_only=True)
class RandomGroups(Pruner):
    """Splits the filters of each prunable layer into equal groups and removes random channels of each group."""

    granularity = "intra_channel"
    source = "control"
    control = True
    evidence = "latency"
    lowest: ClassVar = {"groups": 1}

    groups: int = 2
    """Filter groups of a layer."""

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Return a planner that removes the same share of channels from every group, by the run's seed."""
        return random_groups_planner(graph, self.groups, task.seed)


def random_groups_planner(graph: Graph, groups: int, seed: int) -> Planner:
    """Return a planner that removes random channels of `groups` equal random groups in each prunable layer."""
    draw = torch.Generator().manual_seed(seed)
    layers = {name: conv for name, conv in graph.convs.items() if conv.prunable}
    order_GI = {
        name: torch.stack([torch.randperm(conv.channels, generator=draw) for _ in range(groups)])
        for name, conv in layers.items()
    }
    group_O = {name: torch.randperm(conv.filters, generator=draw) % groups for name, conv in layers.items()}
    return channel_planner(order_GI, group_O)
