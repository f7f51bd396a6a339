"""Control of learned groups: random channels of random filter groups."""

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
    """Splits each layer's filters into equal random groups and removes random channels."""

    granularity = "intra_channel"
    source = "control"
    control = True
    evidence = "latency"
    lowest: ClassVar = {"groups": 1}

    groups: int = 2
    """Filter groups of a layer."""

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Return a planner that removes the same random share of every group."""
        return random_groups_planner(graph, self.groups, task.seed)


def random_groups_planner(graph: Graph, groups: int, seed: int) -> Planner:
    """Return a planner of random channels in `groups` equal random groups a layer."""
    draw = torch.Generator().manual_seed(seed)
    layers = {name: conv for name, conv in graph.convs.items() if conv.prunable}
    order_GI = {
        name: torch.stack([torch.randperm(conv.channels, generator=draw) for _ in range(groups)])
        for name, conv in layers.items()
    }
    group_O = {name: torch.randperm(conv.filters, generator=draw) % groups for name, conv in layers.items()}
    return channel_planner(order_GI, group_O)
