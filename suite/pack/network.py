"""Conversion of a network and its plan to a packed network, and back.

The masked network is the full one with weights of 0 outside of the settled plan. The batch norm of a removed filter has scale and
shift 0. `pack` builds a network whose tensors hold live channels only; masked and packed network compute the same function.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from suite.graph import Graph
from suite.models._layers import PaddedShortcut
from suite.pack.modules import ConstantLinear, PackedConv, PackedShortcut, Spread, SumInto, Take
from suite.plan import PruningPlan


@dataclass(frozen=True)
class Slot:
    """Entries of a full tensor that a packed tensor holds: full[rows][:, columns]; None means all."""

    packed: str
    full: str
    rows: Tensor | None = None
    columns: Tensor | None = None

    def read(self, full: Tensor) -> Tensor:
        """Return the packed tensor of a full one."""
        if self.rows is not None:
            full = full[self.rows]
        return full if self.columns is None else full[:, self.columns]

    def write(self, full: Tensor, packed: Tensor | float) -> None:
        """Write the packed tensor to the slot's entries of the full one, in place."""
        if self.rows is not None and self.columns is not None:
            full[self.rows[:, None], self.columns] = packed
        elif self.columns is not None:
            full[:, self.columns] = packed
        elif self.rows is not None:
            full[self.rows] = packed
        else:
            full.copy_(torch.as_tensor(packed))


class PackedNetwork(nn.Module):
    """An ordinary module: images [N, C, H, W] -> logits [N, classes].

    plan   the settled plan of this network
    slots  for each tensor of this network its entries in the full network
    """

    def __init__(self, body: fx.GraphModule, plan: PruningPlan, slots: list[Slot]) -> None:
        super().__init__()
        self.body = body
        self.plan = plan
        self.slots = slots

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)

    def convs(self) -> Iterator[PackedConv]:
        """Return the packed convolutions in the order of execution."""
        return (module for module in self.body.modules() if isinstance(module, PackedConv))


def pack(model: nn.Module, graph: Graph, plan: PruningPlan) -> PackedNetwork:
    """Build the network of live channels with the weights of `model`.

    An empty plan gives the dense network. Raises ValueError if the plan does not fit the network.
    """
    builder = _Builder(model, graph, plan)
    device = next(model.parameters()).device
    packed = PackedNetwork(builder.build(), PruningPlan(builder.live.layers).canonical(), builder.slots)
    packed.to(device).train(model.training)
    load_full(packed, model.state_dict())
    return packed


@torch.no_grad()
def load_full(packed: PackedNetwork, state: Mapping[str, Tensor]) -> None:
    """Copy the tensors of a full network's state to the packed network, in place."""
    own = packed.body.state_dict()
    for slot in packed.slots:
        own[slot.packed].copy_(slot.read(state[slot.full]))


@torch.no_grad()
def unpack(packed: PackedNetwork, model: nn.Module) -> None:
    """Copy the packed weights to `model`, which becomes the masked network, in place."""
    own = packed.body.state_dict()
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            tensor.fill_(1.0 if name.endswith("running_var") else 0.0)
    for slot in packed.slots:
        slot.write(state[slot.full], own[slot.packed].to(state[slot.full].device))


def masks(packed: PackedNetwork, model: nn.Module) -> dict[str, Tensor]:
    """Return parameter name -> bool mask of the entries that the plan keeps."""
    result = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    for slot in packed.slots:
        if slot.full in result:
            slot.write(result[slot.full], True)
    return result


class _Builder:
    """Emits the packed network node by node.

    order   node -> the live channels of its tensor in packed order
    value   node -> the packed node with the same tensor, None without live channels
    """

    def __init__(self, model: nn.Module, graph: Graph, plan: PruningPlan) -> None:
        self.model = model
        self.graph = graph
        self.live = graph.live(plan)
        self.plan = PruningPlan(self.live.layers)
        self.modules: dict[str, nn.Module] = {}
        self.slots: list[Slot] = []
        self.out = fx.Graph()
        self.value: dict[fx.Node, fx.Node | None] = {}
        self.order: dict[fx.Node, Tensor] = {}

    def build(self) -> fx.GraphModule:
        emit = {"conv": self._conv, "bn": self._bn, "shortcut": self._shortcut, "linear": self._linear}
        emit |= {"sum": self._sum, "flatten": self._flatten, "pass": self._pass}
        for node in self.graph.nodes:
            kind = self.graph.kinds[node]
            if kind == "input":
                self.image = self.out.placeholder("images")
                self.value[node], self.order[node] = self.image, torch.arange(self.graph.width[node])
            elif kind == "output":
                result = self.value[node.all_input_nodes[0]]
                assert result is not None, "the output is always live"
                self.out.output(result)
            elif not self.live.channels[node].any():
                self.value[node], self.order[node] = None, torch.empty(0, dtype=torch.int64)
            else:
                emit[kind](node)
        return fx.GraphModule(self.modules, self.out, "Packed")

    # ---- helpers -----------------------------------------------------------------------------------------------------

    def _source(self, node: fx.Node) -> tuple[fx.Node, fx.Node, Tensor]:
        """Return the one operand of `node`, its packed node and the order of its channels."""
        source = node.all_input_nodes[0]
        value = self.value[source]
        assert value is not None, f"{node.name} is live but reads nothing"
        return source, value, self.order[source]

    def _call(self, name: str, module: nn.Module, *arguments: fx.Node) -> fx.Node:
        self.modules[name] = module
        return self.out.call_module(name, arguments)

    def _slot(self, packed: str, full: str, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
        self.slots.append(Slot(packed, full, rows, columns))

    def _positions(self, channels: Tensor, order: Tensor) -> Tensor:
        """Return the index in `order` of each channel."""
        place = torch.full((int(torch.cat([channels, order]).max()) + 1,), -1)
        place[order] = torch.arange(len(order))
        return place[channels]

    # ---- one rule per kind of node -----------------------------------------------------------------------------------

    def _conv(self, node: fx.Node) -> None:
        name = str(node.target)
        like: Any = self.model.get_submodule(name)
        _, value, order = self._source(node)
        groups = self.plan[name].groups
        reads = [self._positions(channels, order) for _, channels in groups]
        conv = PackedConv(like, reads, [len(filters) for filters, _ in groups], len(order))
        self.value[node] = self._call(name, conv, value)
        self.order[node] = torch.cat([filters for filters, _ in groups])
        for g, (filters, channels) in enumerate(groups):
            self._slot(f"{name}.weights.{g}", f"{name}.weight", filters, channels)
        if like.bias is not None:
            self._slot(f"{name}.bias", f"{name}.bias", self.order[node])

    def _bn(self, node: fx.Node) -> None:
        name = str(node.target)
        like: Any = self.model.get_submodule(name)
        _, value, order = self._source(node)
        kept = order[self.live.channels[node][order]]
        if len(kept) < len(order):
            value = self._call(f"{name}_take", Take(self._positions(kept, order), len(order)), value)
        bn = nn.BatchNorm2d(len(kept), like.eps, like.momentum, like.affine, like.track_running_stats)
        self.value[node], self.order[node] = self._call(name, bn.to(like.weight.dtype), value), kept
        for field in ("weight", "bias", "running_mean", "running_var"):
            self._slot(f"{name}.{field}", f"{name}.{field}", kept)
        self._slot(f"{name}.num_batches_tracked", f"{name}.num_batches_tracked")

    def _pass(self, node: fx.Node) -> None:
        _, value, self.order[node] = self._source(node)
        if node.op == "call_module":
            module: Any = copy.deepcopy(self.model.get_submodule(str(node.target)))
            if hasattr(module, "inplace"):
                # Without its residual branch a sum is the shortcut itself, which must not change in place.
                module.inplace = False
            self.value[node] = self._call(str(node.target), module, value)
        else:
            arguments = (value, *node.args[1:])
            kwargs = {key: item for key, item in node.kwargs.items() if key != "inplace"}
            target: Any = node.target
            self.value[node] = self.out.call_function(target, arguments, kwargs)

    def _shortcut(self, node: fx.Node) -> None:
        like = self.model.get_submodule(str(node.target))
        assert isinstance(like, PaddedShortcut)
        _, value, order = self._source(node)
        kept = order[self.live.channels[node][order + like.before]]
        module = PackedShortcut(like.stride, self._positions(kept, order), len(order))
        self.value[node], self.order[node] = self._call(str(node.target), module, value), kept + like.before

    def _sum(self, node: fx.Node) -> None:
        live = self.live.channels[node]
        operands = []
        for index, source in enumerate(node.all_input_nodes):
            value, order = self.value[source], self.order[source]
            kept = order[live[order]]
            if value is None or len(kept) == 0:
                continue
            if len(kept) < len(order):
                take = Take(self._positions(kept, order), len(order))
                value = self._call(f"{node.name}_take_{index}", take, value)
            operands.append((value, kept))
        operands.sort(key=lambda operand: -len(operand[1]))
        total, order = operands[0]
        if len(order) < int(live.sum()):
            every = live.nonzero()[:, 0]
            spread = Spread(self._positions(order, every), len(every))
            total, order = self._call(f"{node.name}_spread", spread, total), every
        for addend, kept in operands[1:]:
            if torch.equal(kept, order):
                total = self.out.call_function(operator.add, (total, addend))
            else:
                total = self._call(f"{node.name}_into", SumInto(self._positions(kept, order)), total, addend)
        self.value[node], self.order[node] = total, order

    def _flatten(self, node: fx.Node) -> None:
        source, value, order = self._source(node)
        pixels = self.graph.width[node] // self.graph.width[source]
        self.value[node] = self.out.call_function(torch.flatten, (value, 1))
        self.order[node] = (order[:, None] * pixels + torch.arange(pixels)).flatten()

    def _linear(self, node: fx.Node) -> None:
        name = str(node.target)
        like: Any = self.model.get_submodule(name)
        value, order = self.value[node.all_input_nodes[0]], self.order[node.all_input_nodes[0]]
        if value is None:
            self.value[node] = self._call(name, ConstantLinear(like), self.image)
        else:
            linear = nn.Linear(len(order), like.out_features, bias=like.bias is not None, dtype=like.weight.dtype)
            self.value[node] = self._call(name, linear, value)
            self._slot(f"{name}.weight", f"{name}.weight", None, order)
        self.order[node] = torch.arange(like.out_features)
        if like.bias is not None:
            self._slot(f"{name}.bias", f"{name}.bias")
