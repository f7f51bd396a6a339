"""A packed network made ready for inference: batch norm folded into the convolutions, weights fixed."""

from __future__ import annotations

import copy

import torch
from torch import nn

from suite.pack.layers import Execution, PackedConv
from suite.pack.network import PackedNetwork


@torch.no_grad()
def deploy(packed: PackedNetwork, execution: Execution | None = None) -> nn.Module:
    """A copy of `packed` in eval mode with every batch norm that follows a convolution folded into it.

    `execution` None keeps each layer's own. The result computes the same function, to rounding.
    """
    body = copy.deepcopy(packed.body).eval()
    modules = dict(body.named_modules())
    for node in list(body.graph.nodes):
        bn = modules.get(str(node.target))
        if node.op != "call_module" or not isinstance(bn, nn.BatchNorm2d):
            continue
        source = node.all_input_nodes[0]
        conv = modules.get(str(source.target))
        if isinstance(conv, PackedConv) and len(source.users) == 1:
            _fold(conv, bn)
            node.replace_all_uses_with(source)
            body.graph.erase_node(node)
            body.delete_submodule(str(node.target))
    body.recompile()
    for module in body.modules():
        if isinstance(module, PackedConv):
            if execution is not None and len(module.weights) > 1:
                module.execution = execution
            module.freeze()
    return body.requires_grad_(False)


def _fold(conv: PackedConv, bn: nn.BatchNorm2d) -> None:
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    shift = bn.bias - bn.running_mean * scale
    for weight, part in zip(conv.weights, scale.split(conv.filters_G), strict=True):
        weight.mul_(part[:, None, None, None])
    conv.bias = nn.Parameter(shift if conv.bias is None else shift + conv.bias * scale)
