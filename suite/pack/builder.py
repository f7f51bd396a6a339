"""Construction of a packed network, node by node.

Shapes: C channels of one tensor.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from suite.graph import Graph
from suite.graph.copying import copied
from suite.graph.names import named
from suite.graph.operators import Grouped, Kind
from suite.graph.operators import Take as TakeRule
from suite.graph.table import constant_dim, shape
from suite.models._layers import PaddedShortcut
from suite.pack.modules import Constant, PackedConv, PackedShortcut, Spread, SumInto, Take
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
        for dim, entries in enumerate((self.rows, self.columns)):
            if entries is not None:
                full = full.index_select(dim, entries.to(full.device))  # several times faster than full[entries]
        return full

    def write(self, full: Tensor, packed: Tensor | float) -> None:
        """Write the packed tensor to the slot's entries of the full one, in place."""
        if isinstance(packed, Tensor):
            packed = packed.reshape(packed.shape[: full.ndim])  # of a `Pointwise` layer, whose state has no kernel
        if self.rows is not None and self.columns is not None:
            full[self.rows[:, None], self.columns] = packed
        elif self.columns is not None:
            full[:, self.columns] = packed
        elif self.rows is not None:
            full[self.rows] = packed
        else:
            full.copy_(torch.as_tensor(packed))


class Builder:
    """Emits the packed network node by node.

    order   node -> the channels of its tensor in packed order
    value   node -> the packed node with the same tensor, None without live channels
    whole   node -> the packed node with all channels, for nodes of which they were read
    """

    def __init__(self, model: nn.Module, graph: Graph, plan: PruningPlan) -> None:
        self.model = model
        self.graph = graph
        self.layers: dict[fx.Node, Any] = {n: graph.layer(n, model) for n in graph.nodes if n.op == "call_module"}
        self.live = graph.live(plan)
        self.plan = PruningPlan(self.live.layers)
        self.paths = {
            f"{name}.{child}": f"{name}_{child}"
            for name in graph.trace.functions
            for child, _ in model.get_submodule(name).named_children()
        }
        """Names of modules inside of a layer -> names beside the layer, as the packed layer has no such modules."""
        self.modules: dict[str, Any] = {}
        self.slots: list[Slot] = []
        self.out = fx.Graph()
        self.value: dict[fx.Node, fx.Node | None] = {}
        self.order: dict[fx.Node, Tensor] = {}
        self.whole: dict[fx.Node, fx.Node] = {}

    def build(self) -> fx.GraphModule:
        """Return the packed network; `slots` then has the origin of its tensors."""
        for node, rule in self.graph.operators.items():
            if rule.kind in ("constant", "pending"):
                continue
            if rule.kind == "input":
                self.image = self.out.placeholder("images")
                self._set(node, self.image, torch.arange(rule.width))
            elif rule.kind == "output":
                self.out.output(fx.node.map_arg(node.args[0], self._full))
            elif not self.live.channels[node].any():
                self.value[node], self.order[node] = None, torch.empty(0, dtype=torch.int64)
            else:
                EMIT[rule.kind](self, node)
        return fx.GraphModule(self.modules, self.out, "Packed")

    # ---- helpers -----------------------------------------------------------------------------------------------------

    def _set(self, node: fx.Node, value: fx.Node, order: Tensor) -> None:
        value.meta["width"] = len(order)
        self.value[node], self.order[node] = value, order

    def _source(self, node: fx.Node) -> tuple[fx.Node, fx.Node, Tensor]:
        """Return the one operand of `node`, its packed node and the order of its channels."""
        (source,) = self.graph.operators[node].sources
        value = self.value[source]
        assert value is not None, f"{node.name} is live but reads nothing"
        return source, value, self.order[source]

    def _input(self, node: fx.Node, read: Tensor) -> tuple[fx.Node, Tensor]:
        """Return the packed input of a layer and the order of its channels.

        The calls of a repeated layer have one order: the channels of `read`, absent ones zero.
        """
        if node not in self.graph.repeated:
            return self._source(node)[1:]
        order = read.nonzero()[:, 0]
        return self._aligned(self.graph.operators[node].sources[0], order, node.name), order

    def _path(self, name: str) -> str:
        """Return the packed name of a module or tensor."""
        for inside, beside in self.paths.items():
            if name == inside or name.startswith(f"{inside}."):
                return beside + name.removeprefix(inside)
        return name

    def _call(self, name: str, module: nn.Module, *arguments: fx.Node) -> fx.Node:
        self.modules[self._path(name)] = module
        return self.out.call_module(self._path(name), arguments)

    def _part(
        self, tensor: Tensor, packed: str, full: str, rows: Tensor | None = None, columns: Tensor | None = None
    ) -> Tensor:
        """Return a copy of a tensor's entries for the packed network, and add its slot."""
        slot = Slot(self._path(packed), full, rows, columns)
        self.slots.append(slot)
        part = slot.read(tensor.detach()).contiguous()
        return part.clone() if rows is None and columns is None else part

    def _positions(self, channels: Tensor, order: Tensor) -> Tensor:
        """Return the index in `order` of each channel."""
        place = torch.full((int(torch.cat([channels, order]).max()) + 1,), -1)
        place[order] = torch.arange(len(order))
        return place[channels]

    def _aligned(self, source: fx.Node, order: Tensor, name: str) -> fx.Node:
        """Return the packed node with the channels of `order`, absent ones zero."""
        value, own = self.value[source], self.order[source]
        if value is not None and torch.equal(own, order):
            return value
        axis = self.graph.operators[source].axis
        if value is None or (len(order) and not bool(torch.isin(own, order).any())):
            sizes = list(shape(source)[1:])
            sizes[axis - 1] = len(order)
            value = self._call(f"{name}_zeros", Constant(None, sizes), self.image)
        else:
            kept = own[torch.isin(own, order)] if len(own) > len(order) else order[torch.isin(order, own)]
            if len(own) > len(kept) or len(kept) == len(order):
                kept = order[torch.isin(order, own)]
                value = self._call(f"{name}_take", Take(self._positions(kept, own), len(own), axis), value)
                own = kept
            if len(own) < len(order):
                value = self._call(f"{name}_spread", Spread(self._positions(own, order), len(order), axis), value)
        value.meta["width"] = len(order)
        return value

    def _full(self, source: fx.Node) -> fx.Node:
        """Return the packed node with all channels."""
        if not shape(source) and self.value[source] is not None:
            return self.value[source]  # type: ignore[return-value]
        if source not in self.whole:
            every = torch.arange(self.graph.width[source])
            self.whole[source] = self._aligned(source, every, f"{source.name}_whole")
        return self.whole[source]

    def _live_order(self, node: fx.Node) -> Tensor:
        """Return the live channels, in the order of the first operand that has channels."""
        live = self.live.channels[node]
        for source in self.graph.operators[node].sources:
            order = self.order[source]
            if self.value[source] is not None and len(order):
                first = order[live[order]]
                rest = live.clone()
                rest[first] = False
                return torch.cat([first, rest.nonzero()[:, 0]])
        return live.nonzero()[:, 0]

    def _constant(self, node: fx.Node, user: fx.Node, channels: Tensor | None) -> fx.Node:
        """Return the packed parameter, buffer or view, cut to the channels of `user`."""
        base: Any = node
        while base.op != "get_attr":
            base = base.args[0]
        name = str(base.target)
        full = self.graph.trace.tensor(name, self.model)
        made = name in self.graph.trace.constants
        if not made and name not in self.model.state_dict():
            raise ValueError(
                f"{name} of {type(self.model).__name__} is neither parameter nor buffer: register it as one"
            )
        rows: Tensor | None = None
        columns: Tensor | None = None
        if channels is not None:
            (source,) = self.graph.operators[user].sources
            dim = constant_dim(shape(node), self.graph.operators[source], len(shape(source)))
            viewed = node is not base and dim in (0, 1)
            rows, columns = channels if dim == 0 or viewed else None, channels if dim == 1 and not viewed else None
        packed = self._path(name)
        packed = f"{packed}_{node.name}" if packed in self.modules else packed
        part = Slot("", "", rows, columns).read(full).clone() if made else self._part(full, packed, name, rows, columns)
        self.modules[packed] = nn.Parameter(part) if isinstance(full, nn.Parameter) else part
        part_node = self.out.get_attr(packed)
        if node is base:
            return part_node
        return self.out.call_method("reshape", (part_node, *(1 if size == 1 else -1 for size in shape(node))))

    def _again(self, node: fx.Node, operand: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """Emit the same operator on other operands; functions do not change their input in place."""
        if node.op == "call_module":
            return self._call(str(node.target), self._copied(node), *(operand(n) for n in node.all_input_nodes))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), operand)
        kwargs = {key: item for key, item in kwargs.items() if key != "inplace"}
        make = self.out.call_method if node.op == "call_method" else self.out.call_function
        return make(node.target, args, kwargs)  # type: ignore[arg-type]

    def _copied(self, node: fx.Node, rows: Tensor | None = None, columns: Tensor | None = None, **fields: Any) -> Any:
        """Return a copy of the module without hooks, cut to the live channels.

        rows     entries of the tensors that have one entry a channel
        columns  entries of the weight in its second dimension
        fields   attributes that differ
        """
        name, width = str(node.target), self.graph.width[node]
        like = self.layers[node]
        parts: dict[int, Any] = {}
        for key, tensor in [*like.named_parameters(), *like.named_buffers()]:
            own = rows if tensor.shape[:1] == (width,) and width > 1 else None
            part = self._part(tensor, f"{name}.{key}", f"{name}.{key}", own, columns if key == "weight" else None)
            parts[id(tensor)] = nn.Parameter(part) if isinstance(tensor, nn.Parameter) else part
        module = copied(like, parts)
        for attribute, hooks in vars(module).items():
            if attribute.endswith("_hooks"):
                hooks.clear()
        if hasattr(module, "inplace"):
            # Without its residual branch a sum is the shortcut itself, which must not change in place.
            module.inplace = False
        for field in ("num_features", "num_parameters"):
            if rows is not None and getattr(module, field, 1) == width > 1:
                setattr(module, field, len(rows))
        vars(module).update(fields)
        return module

    # ---- one rule per kind of node -----------------------------------------------------------------------------------

    def _conv(self, node: fx.Node) -> None:
        name = str(node.target)
        like = self.layers[node]
        value, order = self._input(node, self.plan[name].read_I)
        value, padding = self._padded(like, value)
        groups = self.plan[name].groups
        order_O = torch.cat([filters for filters, _ in groups])
        if self._path(name) in self.modules:
            self._set(node, self.out.call_module(self._path(name), (value,)), order_O)
            return
        reads = [self._positions(channels, order) for _, channels in groups]
        conv = PackedConv(like, reads, [len(filters) for filters, _ in groups], len(order), padding)
        self._set(node, self._call(name, conv, value), order_O)
        for g, (filters, channels) in enumerate(groups):
            conv.weights[g].data = self._part(like.weight, f"{name}.weights.{g}", f"{name}.weight", filters, channels)
        if conv.bias is not None:
            conv.bias.data = self._part(like.bias, f"{name}.bias", f"{name}.bias", order_O)

    def _padded(self, like: nn.Conv2d, value: fx.Node) -> tuple[fx.Node, Any]:
        """Return input and numeric padding of a convolution.

        The input itself is padded if the padding is asymmetric, or other than zeros.
        """
        amounts = list(like._reversed_padding_repeated_twice)
        symmetric = amounts[0::2] == amounts[1::2]
        if like.padding_mode == "zeros" and symmetric:
            return value, tuple(amounts[0::2][::-1])
        mode = "constant" if like.padding_mode == "zeros" else like.padding_mode
        width = value.meta["width"]
        value = self.out.call_function(nn.functional.pad, (value, amounts), {"mode": mode})
        value.meta |= {"width": width, "alike": True}
        return value, (0, 0)

    def _grouped(self, node: fx.Node) -> None:
        name = str(node.target)
        like = self.layers[node]
        rule = self.graph.operators[node]
        assert isinstance(rule, Grouped)
        live_G = rule.by_group(self.live.channels[node])
        (source,) = rule.sources
        inputs, filters = self.graph.width[source] // rule.groups, rule.width // rule.groups
        order = self.order[source]
        depthwise = inputs == filters == 1  # any order will do
        kept_G = order[live_G[order]] if depthwise else live_G.nonzero()[:, 0]
        reads = (kept_G[:, None] * inputs + torch.arange(inputs)).flatten()
        rows = (kept_G[:, None] * filters + torch.arange(filters)).flatten()
        value = self._aligned(source, reads, name.replace(".", "_"))
        value, padding = self._padded(like, value)
        conv = self._copied(node, rows, **_conv_fields(len(reads), len(rows), padding, len(kept_G)))
        self._set(node, self._call(name, conv, value), rows)

    def _bn(self, node: fx.Node) -> None:
        name = str(node.target)
        value, order = self._input(node, self.live.channels[node])
        kept = order[self.live.channels[node][order]]
        if self._path(name) in self.modules:
            self._set(node, self.out.call_module(self._path(name), (value,)), kept)
            return
        if len(kept) < len(order):
            value = self._call(f"{name}_take", Take(self._positions(kept, order), len(order)), value)
            value.meta["width"] = len(kept)
        self._set(node, self._call(name, self._copied(node, kept), value), kept)

    def _alike(self, node: fx.Node) -> None:
        """Emit a channel-wise operator on live channels, zero before it if without a filter."""
        (source,) = self.graph.operators[node].sources
        value, order = self.value[source], self.order[source]
        constants = [operand for operand in node.all_input_nodes if operand is not source]
        owned = node.op == "call_module" and any(True for _ in self.layers[node].parameters())
        if self.graph.kinds[node] == "shift" or owned or constants:
            order = self._live_order(node)
            value = self._aligned(source, order, node.name)
        assert value is not None, f"{node.name} is live but reads nothing"
        if node.op == "call_module":
            module = self._copied(node, order)
            result = self._call(str(node.target), module, value)
        else:
            result = self._again(
                node, lambda operand: value if operand is source else self._constant(operand, node, order)
            )
        self._set(node, result, order)
        is_map = len(shape(source)) == len(shape(node)) == 4 and self.graph.operators[node].axis == 1
        result.meta["alike"] = is_map and not owned and not constants

    def _whole(self, node: fx.Node) -> None:
        """Emit an operator on all channels of its operands."""

        def operand(source: fx.Node) -> fx.Node:
            is_constant = self.graph.kinds[source] == "constant"
            return self._constant(source, node, None) if is_constant else self._full(source)

        self._set(node, self._again(node, operand), torch.arange(self.graph.width[node]))

    def _shortcut(self, node: fx.Node) -> None:
        like = self.model.get_submodule(str(node.target))
        assert isinstance(like, PaddedShortcut)
        _, value, order = self._source(node)
        kept = order[self.live.channels[node][order + like.before]]
        module = PackedShortcut(like.stride, self._positions(kept, order), len(order))
        result = self._call(str(node.target), module, value)
        self._set(node, result, kept + like.before)
        result.meta["alike"] = module.take.everything

    def _sum(self, node: fx.Node) -> None:
        sources = self.graph.operators[node].sources
        plain = node.target in (operator.add, torch.add, "add") and not node.kwargs and len(node.args) == 2
        of_maps = len(shape(node)) == 4 and self.graph.operators[node].axis == 1
        if not plain or not of_maps or shape(sources[0]) != shape(sources[1]) or len(sources) != 2:
            self._aligned_operands(node)
            return
        live = self.live.channels[node]
        operands = []
        for index, source in enumerate(sources):
            value, order = self.value[source], self.order[source]
            kept = order[live[order]]
            if value is None or len(kept) == 0:
                continue
            if len(kept) < len(order):
                take = Take(self._positions(kept, order), len(order))
                value = self._call(f"{node.name}_take_{index}", take, value)
                value.meta["width"] = len(kept)
            operands.append((value, kept))
        operands.sort(key=lambda operand: -len(operand[1]))
        total, order = operands[0]
        if len(order) < int(live.sum()):
            every = live.nonzero()[:, 0]
            spread = Spread(self._positions(order, every), len(every))
            total, order = self._call(f"{node.name}_spread", spread, total), every
            total.meta["width"] = len(every)
        for addend, kept in operands[1:]:
            if torch.equal(kept, order):
                total = self.out.call_function(operator.add, (total, addend))
            else:
                total = self._call(f"{node.name}_into", SumInto(self._positions(kept, order)), total, addend)
                total.meta["width"] = len(order)
        self._set(node, total, order)

    def _aligned_operands(self, node: fx.Node) -> None:
        """Emit an operator of two tensors on the live channels of both."""
        order = self._live_order(node)
        made: dict[fx.Node, fx.Node] = {}
        for index, source in enumerate(dict.fromkeys(self.graph.operators[node].sources)):
            made[source] = self._aligned(source, order, f"{node.name}_{index}")
        if node.target is operator.add:  # `suite.pack.fuse` takes this one for a residual sum of tensors of one shape
            self._set(node, self.out.call_function(torch.add, fx.node.map_arg(node.args, made.__getitem__)), order)
        else:
            self._set(node, self._again(node, made.__getitem__), order)

    def _concat(self, node: fx.Node) -> None:
        rule = self.graph.operators[node]
        live, start = self.live.channels[node], 0
        parts, orders = [], []
        for index, source in enumerate(rule.sources):
            order, width = self.order[source], self.graph.width[source]
            kept = order[live[start + order]] if len(order) else order
            if len(kept):
                parts.append(self._aligned(source, kept, f"{node.name}_{index}"))
                orders.append(kept + start)
            start += width
        value = parts[0] if len(parts) == 1 else self.out.call_function(torch.cat, (parts, rule.axis))
        self._set(node, value, torch.cat(orders))

    def _take(self, node: fx.Node) -> None:
        rule = self.graph.operators[node]
        assert isinstance(rule, TakeRule)
        _, value, order = self._source(node)
        channels = self.live.channels[node].nonzero()[:, 0]
        reads = self._positions(rule.index[channels], order)
        if len(set(reads.tolist())) == len(reads):  # in the order of the operand, so that it may need no copy
            channels, reads = channels[reads.argsort()], reads.sort().values
        if torch.equal(reads, torch.arange(len(order))):
            self._set(node, value, channels)
        else:
            take = Take(reads, len(order), rule.axis)
            self._set(node, self._call(f"{node.name}_take", take, value), channels)

    def _view(self, node: fx.Node) -> None:
        rule = self.graph.operators[node]
        source, value, order = self._source(node)
        name = named(node, self.graph.modules)
        if name in _UNSIZED:
            result = self._again(
                node, lambda operand: value if operand is source else self._constant(operand, node, None)
            )
        else:
            sizes = list(shape(node))
            sizes[0], sizes[rule.axis] = -1, len(order)
            result = self.out.call_method("expand" if name == "expand" else "reshape", (value, *sizes))
        self._set(node, result, order)

    def _flatten(self, node: fx.Node) -> None:
        source, value, order = self._source(node)
        pixels = self.graph.width[node] // self.graph.width[source]
        result = self.out.call_function(torch.flatten, (value, 1))
        self._set(node, result, (order[:, None] * pixels + torch.arange(pixels)).flatten())

    def _linear(self, node: fx.Node) -> None:
        name = str(node.target)
        like = self.layers[node]
        (source,) = self.graph.operators[node].sources
        value, order = self.value[source], self.order[source]
        live = self.live.channels[node].nonzero()[:, 0]
        rows = None if len(live) == self.graph.width[node] else live
        if value is None:
            sizes = list(shape(node)[1:])
            sizes[self.graph.operators[node].axis - 1] = len(live)
            bias = None if like.bias is None else self._part(like.bias, f"{name}.bias", f"{name}.bias", rows)
            result = self._call(name, Constant(bias, sizes, self.graph.operators[node].axis), self.image)
        else:
            fields: dict[str, Any] = {"in_features": len(order), "out_features": len(live)}
            if isinstance(like, nn.Conv2d):
                value, padding = self._padded(like, value)
                fields = _conv_fields(len(order), len(live), padding)
            result = self._call(name, self._copied(node, rows, order, **fields), value)
        self._set(node, result, live)


_UNSIZED = {"permute", "transpose", "swapaxes", "movedim", "getitem", "flip", "roll", "narrow", "indexselect"}
"""Views that do not depend on the number of channels; a `squeeze` may remove the dimension of a single one."""


def _conv_fields(channels: int, filters: int, padding: tuple[int, ...], groups: int = 1) -> dict[str, Any]:
    """Return the attributes of a packed convolution that differ from those of the full one."""
    twice = [amount for amount in reversed(padding) for _ in range(2)]
    fields = {"in_channels": channels, "out_channels": filters, "groups": groups}
    return fields | {"padding": padding, "padding_mode": "zeros", "_reversed_padding_repeated_twice": twice}


EMIT: Mapping[Kind, Callable[[Builder, fx.Node], None]] = {
    "conv": Builder._conv,
    "grouped": Builder._grouped,
    "bn": Builder._bn,
    "shortcut": Builder._shortcut,
    "linear": Builder._linear,
    "sum": Builder._sum,
    "switch": Builder._aligned_operands,
    "product": Builder._aligned_operands,
    "concat": Builder._concat,
    "take": Builder._take,
    "view": Builder._view,
    "flatten": Builder._flatten,
    "pass": Builder._alike,
    "shift": Builder._alike,
    "whole": Builder._whole,
    "fixed": Builder._whole,
}
