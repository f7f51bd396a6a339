"""Live channels of a network under a plan, by fixed points.

"Always zero" propagates forward, then "never read" backward. Without modules that are called several times, one pass each reaches
the fixed point: a filter dropped in the backward pass has no readers, so that no other tensor becomes zero. Otherwise passes
repeat until the masks of these modules, which all calls share, stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from suite.plan import ConvPlan, PruningPlan

if TYPE_CHECKING:
    from suite.graph.channels import Graph

Masks = dict[fx.Node, Tensor]
"""Node -> bool [C]."""
Layers = dict[str, ConvPlan]


@dataclass(frozen=True)
class Live:
    """Live part of a network under a plan.

    layers    the settled plan of each layer
    nonzero   node -> bool [C], False for channels that are always zero
    read      node -> bool [C], True for channels that have a reader

    The masks of a convolution or batch norm that is called several times are those of all calls together.
    """

    layers: Mapping[str, ConvPlan]
    nonzero: Mapping[fx.Node, Tensor]
    read: Mapping[fx.Node, Tensor]

    @functools.cached_property
    def channels(self) -> Mapping[fx.Node, Tensor]:
        """Node -> bool [C], True for channels that are nonzero and read."""
        return {node: mask & self.read[node] for node, mask in self.nonzero.items()}


def live(graph: Graph, plan: PruningPlan) -> Live:
    """Return the live layers and channels under a plan that fits the graph."""
    layers = {name: plan.get(name, full) for name, full in graph.full.items()}
    layers, nonzero = _stable(lambda shared: _forward(graph, layers, shared))
    left, read = _stable(lambda shared: _backward(graph, layers, nonzero, shared))
    return Live(left, nonzero, read)


def _stable(step: Callable[[dict[str, Tensor]], tuple[Layers, Masks]]) -> tuple[Layers, Masks]:
    """Repeat a pass that updates the masks of repeated modules, until none changes."""
    shared: dict[str, Tensor] = {}
    while True:
        before = dict(shared)
        result = step(shared)
        if before.keys() == shared.keys() and all(torch.equal(mask, shared[name]) for name, mask in before.items()):
            return result


def _union(shared: dict[str, Tensor], name: str | None, mask: Tensor) -> Tensor:
    """Return the union of a module's masks so far; `mask` itself without a name."""
    if name is None:
        return mask
    shared[name] = shared[name] | mask if name in shared else mask
    return shared[name]


def _forward(graph: Graph, layers: Layers, shared: dict[str, Tensor]) -> tuple[Layers, Masks]:
    """Return the layers without channels that are always zero, and the masks of nonzero channels.

    shared   name of a repeated module -> channels of its inputs that are not always zero
    """
    left = dict(layers)
    nonzero: Masks = {}
    for node, rule in graph.operators.items():
        if node in graph.passing:
            nonzero[node] = nonzero[rule.sources[0]]
        elif rule.kind == "conv":
            name = str(node.target)
            inputs = _union(shared, graph.repeated.get(node), nonzero[rule.sources[0]])
            left[name] = layers[name].with_inputs(inputs)
            nonzero[node] = left[name].kept_O
        else:
            result = rule.nonzero([nonzero[source] for source in rule.sources])
            nonzero[node] = _union(shared, graph.repeated.get(node), result) if rule.kind == "bn" else result
    return left, nonzero


def _backward(graph: Graph, layers: Layers, nonzero: Masks, shared: dict[str, Tensor]) -> tuple[Layers, Masks]:
    """Return the layers without unread filters, and the masks of read channels.

    shared   name of a repeated module -> its channels that are read
    """
    left = dict(layers)
    read: Masks = {}
    for node in reversed(graph.nodes):
        rule = graph.operators[node]
        result = read[node] if node in read else rule.every(False)
        if rule.kind in ("conv", "bn"):
            result = _union(shared, graph.repeated.get(node), result)
        read[node] = result
        if node in graph.passing:
            masks = [result]
        elif rule.kind == "conv":
            name = str(node.target)
            left[name] = layers[name].with_readers(result)
            masks = [left[name].read_I]
        else:
            masks = rule.read(result, [nonzero[source] for source in rule.sources])
        for source, mask in zip(rule.sources, masks, strict=True):
            read[source] = read[source] | mask if source in read else mask
    return left, read
