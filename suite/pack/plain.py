"""Packed networks of plain modules: nn.Conv2d, indexing and concatenation only."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from suite.graph.layers import Pointwise
from suite.pack.modules import Constant, PackedConv, PackedShortcut, Spread, SumInto, Take
from suite.pack.network import PackedNetwork

PROBES = 3
"""Images of the comparison of the plain and the packed network."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


class Channels(nn.Module):
    """Channels by number, in dimension `axis`."""

    def __init__(self, index: Tensor, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("index", index.clone())
        self.index: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return the channels of `index`."""
        return x.index_select(self.axis, self.index)


class Groups(nn.Module):
    """One nn.Conv2d for each filter group, on the channels that the group reads."""

    def __init__(self, groups: list[nn.Module]) -> None:
        super().__init__()
        self.groups = nn.ModuleList(groups)

    def forward(self, x: Tensor) -> Tensor:
        """Return the filters of all groups."""
        return torch.cat([group(x) for group in self.groups], 1)


class OfMaps(nn.Module):
    """A layer of [N, C, H, W] for maps [N, H, W, C]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's maps [N, H, W, O]."""
        return self.layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@torch.no_grad()
def plain(packed: PackedNetwork, model: nn.Module | None = None) -> nn.Module:
    """Return the packed network with nn.Conv2d layers, which any tool reads.

    model  the dense network. If every packed operator has one of the dense network's, the result is a copy of this network with
           smaller layers: an instance of the same class. Otherwise, and without `model`, the result is an `fx.GraphModule`.

    The class cannot express four cuts: a filter that a residual sum reads without the sum's other filters (scopes "inner" and
    "coupled" make none), a part of a group of a grouped convolution, a channel of a layer or group norm, and channels whose
    number or place the forward method fixes, as in the chunks and shuffles of ShuffleNet.

    A layer of several filter groups is one nn.Conv2d each, with `index_select` and `torch.cat`. The result computes the same
    function in training and inference, and shares no tensor with `packed`.
    """
    body = copy.deepcopy(packed.body)
    for name in {str(node.target) for node in body.graph.nodes if node.op == "call_module"}:
        module = body.get_submodule(name)
        if isinstance(module, PackedConv):
            body.set_submodule(name, _conv(module))
        elif isinstance(module, Take):
            body.set_submodule(name, Channels(module.positions, module.axis))
    for node in list(body.graph.nodes):
        _replace(body, node)
    body.graph.lint()
    body.recompile()
    body.train(packed.training)
    if model is None:
        return body
    return _in_class(packed, body, model) or body


def _conv(packed: PackedConv) -> nn.Module:
    biases: Any = [None] * len(packed.weights) if packed.bias is None else packed.bias.split(packed.filters_G)
    convs = [
        _on_channels(packed, weight, bias, take)
        for weight, bias, take in zip(packed.weights, biases, packed.takes, strict=True)
    ]
    return convs[0] if len(convs) == 1 else Groups(convs)


def _on_channels(packed: PackedConv, weight: Tensor, bias: Tensor | None, take: nn.Module) -> nn.Module:
    filters, channels, *kernel = weight.shape
    settings: Any = {"stride": packed.stride, "padding": packed.padding, "dilation": packed.dilation}
    conv = nn.Conv2d(channels, filters, tuple(kernel), bias=bias is not None, **settings)  # type: ignore[arg-type]
    conv.to(weight.device, weight.dtype).weight.copy_(weight)
    if conv.bias is not None and bias is not None:
        conv.bias.copy_(bias)
    assert isinstance(take, Take)
    return conv if take.everything else nn.Sequential(Channels(take.positions), conv)


def _replace(body: fx.GraphModule, node: fx.Node) -> None:
    """Write scattered sums and shortcuts of a packed network as indexing and concatenation, in place."""
    module = body.get_submodule(str(node.target)) if node.op == "call_module" else None
    if not isinstance(module, SumInto | Spread | PackedShortcut):
        return
    graph, target = body.graph, str(node.target)
    with graph.inserting_before(node):
        if isinstance(module, PackedShortcut):
            body.set_submodule(target, Channels(module.take.positions))
            strided = (slice(None), slice(None), slice(None, None, module.stride), slice(None, None, module.stride))
            every = graph.call_module(target, node.args)
            result = graph.call_function(operator.getitem, (every, strided))
        else:
            addend: Any = node.args[-1]
            like: Any = node.args[0]
            width = module.width if isinstance(module, Spread) else int(like.meta["width"])
            index = torch.full((width,), len(module.positions), device=module.positions.device)
            index[module.positions] = torch.arange(len(module.positions), device=index.device)
            axis = module.axis if isinstance(module, Spread) else 1
            # One channel of zeros behind the others stands for every absent channel.
            first = graph.call_method("narrow", (addend, axis, 0, 1))
            joined = graph.call_function(torch.cat, ([addend, graph.call_function(torch.zeros_like, (first,))], axis))
            body.set_submodule(target, Channels(index, axis))
            result = graph.call_module(target, (joined,))
            if isinstance(module, SumInto):
                result = graph.call_function(operator.add, (like, result))
    result.meta["width"] = node.meta["width"]
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _in_class(packed: PackedNetwork, body: fx.GraphModule, model: nn.Module) -> nn.Module | None:
    """Return a copy of `model` with the layers of `body`, None if it differs."""
    result = copy.deepcopy(model)
    own = dict(model.named_modules())
    for node in body.graph.nodes:
        if node.op == "call_module":
            layer = body.get_submodule(str(node.target))
            if isinstance(layer, nn.modules.dropout._DropoutNd):  # the class may call a function instead
                continue
            if str(node.target) not in own or isinstance(layer, Constant):
                return None
            of_maps = isinstance(own[str(node.target)], nn.Linear | Pointwise) and not isinstance(layer, nn.Linear)
            result.set_submodule(str(node.target), _of_maps(layer) if of_maps else copy.deepcopy(layer))
        elif node.op == "get_attr":
            holder, _, leaf = str(node.target).rpartition(".")
            if str(node.target) not in model.state_dict():
                return None
            value = operator.attrgetter(str(node.target))(body)
            setattr(result.get_submodule(holder), leaf, copy.deepcopy(value))
    used = {str(node.target) for node in body.graph.nodes if node.op in ("call_module", "get_attr")}
    kept = tuple(f"{name}." for name in used)
    for name, module in own.items():
        tensors = {f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)}
        if name not in used and not tensors <= used and not name.startswith(kept):
            return None
    return result if _agree(result, body, packed) else None


def _of_maps(layer: nn.Module) -> nn.Module:
    """Return a copy of the layer for maps [N, H, W, C].

    A 1x1 convolution becomes an nn.Linear.
    """
    if not isinstance(layer, nn.Conv2d):
        return OfMaps(copy.deepcopy(layer))
    linear = nn.Linear(layer.in_channels, layer.out_channels, bias=layer.bias is not None)
    linear.to(layer.weight.device, layer.weight.dtype).weight.copy_(layer.weight.flatten(1))
    if layer.bias is not None:
        linear.bias.copy_(layer.bias)
    return linear


def _agree(one: nn.Module, other: nn.Module, packed: PackedNetwork) -> bool:
    """Return True if both networks compute the same logits in eval mode."""
    like = next(packed.parameters())
    images = torch.randn(PROBES, *packed.input_shape, generator=torch.Generator().manual_seed(0)).to(like)
    modes = one.training, other.training
    try:
        got, expected = one.eval()(images), other.eval()(images)
    except (RuntimeError, IndexError, ValueError, TypeError):  # a width is written in the forward method
        return False
    finally:
        one.train(modes[0])
        other.train(modes[1])
    allowed = TOLERANCE.get(like.dtype, 1e-1) * max(1.0, float(expected.abs().max()))
    return got.shape == expected.shape and bool((got - expected).abs().max() <= allowed)
