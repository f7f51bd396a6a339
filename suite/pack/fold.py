"""Plain inference form of a packed network.

It is the reference of all executions and the input of exports and compilers.
"""

from __future__ import annotations

import copy

import torch
from torch import fx, nn

from suite.graph.modes import without_switches
from suite.pack.modules import GroupedConv, PackedConv
from suite.pack.network import PackedNetwork


@torch.no_grad()
def per_group(packed: PackedNetwork, *, fold: bool = True) -> fx.GraphModule:
    """Return a copy in eval mode with one plain convolution per filter group.

    Operators of train mode alone are left out.

    fold   fold every batch norm that alone reads a convolution into that convolution

    The result computes the same function, to rounding.
    """
    body = copy.deepcopy(packed.body).eval()
    without_switches(body.graph, body)
    _split_calls(body)
    for name, module in list(body.named_modules()):
        if isinstance(module, PackedConv):
            body.set_submodule(name, GroupedConv(module))
    if fold:
        _fold_batch_norms(body)
    body.recompile()
    return body.requires_grad_(False)


def _split_calls(body: fx.GraphModule) -> None:
    """Call a copy of a module for each further call, as folding differs by call."""
    called: set[str] = set()
    for node in body.graph.nodes:
        if node.op == "call_module":
            name = str(node.target)
            if name in called:
                node.target = f"{name}_{node.name}"
                body.set_submodule(node.target, copy.deepcopy(body.get_submodule(name)))
            called.add(str(node.target))


def _fold_batch_norms(body: fx.GraphModule) -> None:
    modules = dict(body.named_modules())
    for node in list(body.graph.nodes):
        bn = modules.get(str(node.target))
        if node.op != "call_module" or not isinstance(bn, nn.BatchNorm2d):
            continue
        source = node.all_input_nodes[0]
        conv = modules.get(str(source.target))
        if isinstance(conv, GroupedConv | nn.Conv2d) and len(source.users) == 1 and _is_fixed(bn):
            _fold(conv, bn)
            node.replace_all_uses_with(source)
            body.graph.erase_node(node)
            body.delete_submodule(str(node.target))


def _is_fixed(bn: nn.BatchNorm2d) -> bool:
    """Return True if the batch norm has weights, and statistics of its own."""
    return bn.affine and bn.running_var is not None


def _fold(conv: GroupedConv | nn.Conv2d, bn: nn.BatchNorm2d) -> None:
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    shift = bn.bias - bn.running_mean * scale
    weights = [conv.weight] if isinstance(conv, nn.Conv2d) else list(conv.weights)
    for weight, part in zip(weights, scale.split([len(weight) for weight in weights]), strict=True):
        weight.mul_(part[:, None, None, None])
    conv.bias = nn.Parameter(shift if conv.bias is None else shift + conv.bias * scale)
