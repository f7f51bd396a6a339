"""Fusions of a convolution with its residual sum and the ReLU that follows.

Shapes: C channels of a tensor, O filters.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from suite.pack.modules import GroupedConv, Spread, SumInto


@dataclass(frozen=True, kw_only=True)
class Fused:
    """A convolution with the sum and the ReLU that are computed with it.

    addend                   the other operand of the sum
    spread                   the module that spreads one operand over the channels of a sum that neither operand covers
    place_O, addend_place_C  positions of its filters, and of the addend's channels, in the sum of `width` channels
    """

    conv: fx.Node
    total: fx.Node | None
    relu: fx.Node | None
    place_O: Tensor
    width: int
    spread: fx.Node | None = None
    addend: fx.Node | None = None
    addend_place_C: Tensor | None = None

    @property
    def nodes(self) -> list[fx.Node]:
        """The fused nodes in order."""
        return [node for node in (self.conv, self.spread, self.total, self.relu) if node is not None]


class Nodes:
    """Nodes of a packed network, batch norm folded, and the modules that they call."""

    def __init__(self, body: fx.GraphModule) -> None:
        self.body = body
        self.graph = body.graph
        self.modules = dict(body.named_modules())

    def module(self, node: fx.Node | None, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> Any:
        """Return the module that a node calls, None if it is of another kind."""
        module = self.modules.get(str(node.target)) if node is not None and node.op == "call_module" else None
        return module if isinstance(module, kind) else None

    def is_sum(self, node: fx.Node | None) -> bool:
        """Return True for a residual sum of two different tensors."""
        if node is None or len(node.all_input_nodes) != 2:
            return False
        return node.target is operator.add or self.module(node, SumInto) is not None

    def is_spread(self, node: fx.Node) -> bool:
        """Return True for channels that are spread for a sum with further channels."""
        spread = self.module(node, Spread)
        return spread is not None and spread.axis == 1 and self.module(only_user(node), SumInto) is not None

    def relu_of(self, node: fx.Node) -> fx.Node | None:
        """Return the ReLU that is the only reader of a node."""
        user = only_user(node)
        if user is None:
            return None
        is_relu = user.target in (torch.relu, nn.functional.relu) or self.module(user, nn.ReLU) is not None
        return user if is_relu else None

    def width(self, node: fx.Node) -> int:
        """Return the channel count of a node."""
        return int(node.meta["width"])


def fuse(nodes: Nodes) -> list[Fused]:
    """Return the fusion of every convolution.

    A sum of two convolutions belongs to the one with fewer groups, because the order of its filters is free; else to the last.
    """
    maker: dict[fx.Node, fx.Node] = {}
    convs = [node for node in nodes.graph.nodes if nodes.module(node, GroupedConv) is not None]
    for conv in convs:
        total = only_user(conv)
        if total is not None and nodes.is_spread(total):
            total = only_user(total)
        if total is None or not nodes.is_sum(total):
            continue
        rival = maker.get(total)
        if rival is None or _groups(nodes, conv) <= _groups(nodes, rival):
            maker[total] = conv
    sums = {conv: total for total, conv in maker.items()}
    return [_with_sum(nodes, conv, sums[conv]) if conv in sums else _alone(nodes, conv) for conv in convs]


def _groups(nodes: Nodes, conv: fx.Node) -> int:
    return len(nodes.module(conv, GroupedConv).filters_G)


def _alone(nodes: Nodes, conv: fx.Node) -> Fused:
    width = nodes.width(conv)
    return Fused(conv=conv, total=None, relu=nodes.relu_of(conv), place_O=torch.arange(width), width=width)


def _with_sum(nodes: Nodes, conv: fx.Node, total: fx.Node) -> Fused:
    wide, narrow = total.all_input_nodes
    width = nodes.width(wide)
    into = nodes.module(total, SumInto)
    wide_C = torch.arange(width)
    narrow_C = wide_C if into is None else into.positions
    spread = wide if nodes.is_spread(wide) else None
    if spread is not None:
        wide_C, (wide,) = nodes.module(spread, Spread).positions, spread.all_input_nodes
    return Fused(
        conv=conv,
        total=total,
        relu=nodes.relu_of(total),
        place_O=wide_C if conv is wide else narrow_C,
        width=width,
        spread=spread,
        addend=narrow if conv is wide else wide,
        addend_place_C=narrow_C if conv is wide else wide_C,
    )


def only_user(node: fx.Node) -> fx.Node | None:
    """Return the only reader of a node, None if it has several or none."""
    users = list(node.users)
    return users[0] if len(users) == 1 else None
