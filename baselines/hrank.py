"""HRank: filters whose feature maps have low rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from suite.contract import Criterion, OptOut, Ranking, Recipe, Scope, State, Task
from suite.graph import Graph

CHUNK = 32
"""Images that pass through the network at once; at 224x224 their largest maps take 0.1 GB in a ResNet-50."""


class _Ranks(fx.Interpreter):
    """Runs the traced network; sums the ranks of the feature maps of some nodes."""

    def __init__(self, model: nn.Module, graph: Graph, nodes: set[fx.Node]) -> None:
        super().__init__(graph.bound(model))
        self.nodes = nodes
        self.total: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and add the ranks of its maps to `total`."""
        value = super().run_node(n)
        if n in self.nodes:
            self.total[n] = self.total.get(n, 0) + torch.linalg.matrix_rank(value).sum(0)
        return value


@dataclass(frozen=True, kw_only=True)
class HRank(Criterion):
    """Removes the filters whose feature maps, after the activation, have the smallest mean rank."""

    granularity = "filter"
    source = (
        "Lin et al., HRank: Filter Pruning using High-Rank Feature Map, CVPR 2020, section 3.2; the released code prunes each "
        "convolution on its own (scope untied)"
    )
    deviations = (
        "one rate for all layers, not one per layer by hand; all layers are pruned at once, not one by one with fine-tuning "
        "between; the map of the last convolution of a block is taken after the sum and its activation"
    )
    recipes: ClassVar[Mapping[tuple[str, str], Recipe | OptOut]] = {
        ("imagenet", "*"): Recipe(
            settings={"images": 128}, source="ours; the paper takes 500 and finds the mean rank hardly depends on them"
        ),
    }
    search: ClassVar = {"ranking": ("layer", "global")}
    implied: ClassVar[Mapping[str, Any]] = {"scope": "coupled", "ranking": "global"}
    lowest: ClassVar = {"images": 1}

    ranking: Ranking = "layer"
    scope: Scope = "untied"
    images: int = 500
    """Training images over which the rank is averaged."""

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> mean rank of the feature maps [O].

        Costs a forward pass and the singular values of each image's maps: for a ResNet-50 at 224x224, 0.8 s an image on one
        CPU core.
        """
        maps = {name: _map_of(graph, node) for name, node in graph.conv_nodes.items()}
        ranks = _Ranks(model, graph, set(maps.values()))
        with torch.no_grad():
            images = task.samples(self.images)[0]
            for x in images.split(CHUNK):
                ranks.run(x)
        return {name: ranks.total[node].double() / len(images) for name, node in maps.items()}


def _map_of(graph: Graph, conv: fx.Node) -> fx.Node:
    """Return the activation after a convolution, batch norm and sum, or the last node."""
    node = conv
    while graph.kinds[node] != "pass" and graph.kinds[user := next(iter(node.users))] in ("bn", "sum", "pass"):
        node = user
    return node
