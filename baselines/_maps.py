"""Means over images of statistics of feature maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from suite.contract import Task
from suite.graph import Graph

CHUNK = 32
"""Images per forward pass; at 224x224 their largest maps take 0.1 GB in a ResNet-50."""


class _Sums(fx.Interpreter):
    """Run the traced network and sum a statistic of the maps at some nodes."""

    def __init__(
        self, model: nn.Module, graph: Graph, nodes: set[fx.Node], statistic: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__(graph.bound(model))
        self.nodes = nodes
        self.statistic = statistic
        self.total: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Return the node's value; add its statistic, summed over the images, to `total`."""
        value = super().run_node(n)
        if n in self.nodes:
            self.total[n] = self.total.get(n, 0) + self.statistic(value).sum(0)
        return value


@torch.no_grad()
def mean_over_images(
    model: nn.Module, graph: Graph, task: Task, images: int, statistic: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return layer -> mean over images of a statistic of each filter's maps, float64 [O].

    statistic   maps [B, O, H, W] -> [B, O]
    The maps are those after batch norm, residual sum and activation, where a layer has them.
    """
    maps = {name: _map_of(graph, node) for name, node in graph.conv_nodes.items()}
    sums = _Sums(model, graph, set(maps.values()), statistic)
    pictures = task.samples(images)[0]
    for x in pictures.split(CHUNK):
        sums.run(x)
    return {name: sums.total[node].double() / len(pictures) for name, node in maps.items()}


def _map_of(graph: Graph, conv: fx.Node) -> fx.Node:
    """Return the activation behind a convolution, past its batch norm and residual sum.

    Without an activation, returns the last of these nodes.
    """
    node = conv
    while graph.kinds[node] != "pass" and graph.kinds[user := next(iter(node.users))] in ("bn", "sum", "pass"):
        node = user
    return node
