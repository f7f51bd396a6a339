"""ONNX networks written operator by operator, for networks of `suite.pack.portable`.

torch's exporter takes seconds for a network, and tuning needs hundreds of layers. The names of modules stay in the names of
nodes, where profilers report them. A network with another operator than those below is left to torch's exporter.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from suite.pack.modules import PackedShortcut, Spread, Take
from suite.pack.operations import FusedConv, Read

OPSET, IR = 17, 9
SEPARATOR = "|"
"""Behind the name of a module in the name of a node."""
OUTPUT = "logits"
"""Name of the output of every ONNX network."""
REST = 2**62
"""End of a slice that reaches to the last element."""


class Unsupported(Exception):
    """The network has an operator that is not written here."""


class Writer:
    """An ONNX graph in the making; values are named."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.module = ""

    def constant(self, value: Tensor | Sequence[int]) -> str:
        """Add a constant; return its name."""
        from onnx import numpy_helper

        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.array(value, dtype=np.int64)
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; return the name of its output, which is its own."""
        from onnx import helper

        name = f"{self.module}{SEPARATOR}{len(self.nodes)}"  # ONNX Runtime names some nodes by their output
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def take(self, x: str, take: Take) -> str:
        """Add a slice or a gather of channels."""
        if take.everything:
            return x
        if take.contiguous:
            ends = [take.start], [take.start + take.length], [take.axis]
            return self.add("Slice", x, *map(self.constant, ends))
        return self.add("Gather", x, self.constant(take.positions), axis=take.axis)

    def conv(self, x: str, weight: Tensor, bias: Tensor | None, window: tuple[Any, Any, Any, int]) -> str:
        """Add a convolution; `window` has padding, stride, dilation and groups."""
        padding, stride, dilation = (_pair(value) for value in window[:3])
        operands = [x, self.constant(weight), *([] if bias is None else [self.constant(bias)])]
        places = {"pads": [*padding, *padding], "strides": stride, "dilations": dilation, "group": window[3]}
        return self.add("Conv", *operands, **places)

    def fused(self, x: str, conv: FusedConv, addend: str | None = None) -> str:
        """Add a convolution with its sum and ReLU."""
        y = self.conv(x, conv.weight, conv.bias, conv.window)
        y = y if addend is None else self.add("Add", y, addend)
        return self.add("Relu", y) if conv.relu else y

    def spread(self, x: str, positions: Tensor, width: int, axis: int) -> str:
        """Add a gather whose absent channels are a channel of zeros behind the others."""
        if axis != 1:
            raise Unsupported("channels in another dimension than 1")
        index = torch.full((width,), len(positions))
        index[positions.cpu()] = torch.arange(len(positions))
        wider = self.add("Concat", x, self.zero(x), axis=1)
        return self.add("Gather", wider, self.constant(index), axis=1)

    def zero(self, x: str) -> str:
        """Add a channel of zeros of the size of `x`."""
        first = self.add("Slice", x, *map(self.constant, ([0], [1], [1])))
        return self.add("Mul", first, self.constant(torch.zeros(())))


def _pair(value: Any) -> list[int]:
    if isinstance(value, str):
        raise Unsupported(f"padding {value!r}")
    return [value, value] if isinstance(value, int) else list(value)


def _max_pool(out: Writer, pool: nn.MaxPool2d, x: str) -> str:
    if pool.return_indices:
        raise Unsupported("indices of a pooling layer")
    padding = _pair(pool.padding)
    places = {"kernel_shape": _pair(pool.kernel_size), "strides": _pair(pool.stride), "dilations": _pair(pool.dilation)}
    return out.add("MaxPool", x, **places, pads=[*padding, *padding], ceil_mode=int(pool.ceil_mode))


def _average(out: Writer, pool: nn.AdaptiveAvgPool2d, x: str) -> str:
    if pool.output_size not in (1, (1, 1)):
        raise Unsupported("a pooling layer to several pixels")
    return out.add("GlobalAveragePool", x)


def _flatten(out: Writer, module: nn.Flatten, x: str) -> str:
    if (module.start_dim, module.end_dim) != (1, -1):
        raise Unsupported("a flattening of some dimensions")
    return out.add("Flatten", x, axis=1)


def _linear(out: Writer, layer: nn.Linear, x: str) -> str:
    bias = [] if layer.bias is None else [out.constant(layer.bias)]
    return out.add("Gemm", x, out.constant(layer.weight), *bias, transB=1)


def _batch_norm(out: Writer, bn: nn.BatchNorm2d, x: str) -> str:
    if bn.running_mean is None or bn.running_var is None or not bn.affine:
        raise Unsupported("a batch norm without statistics")
    values = (bn.weight, bn.bias, bn.running_mean, bn.running_var)
    return out.add("BatchNormalization", x, *map(out.constant, values), epsilon=bn.eps)


def _sum(out: Writer, x: str | int, y: str | int) -> str:
    if isinstance(x, int) or isinstance(y, int):
        raise Unsupported("a sum with a number")
    return out.add("Add", x, y)


def _shortcut(out: Writer, shortcut: PackedShortcut, x: str) -> str:
    x, steps = out.take(x, shortcut.take), [shortcut.stride] * 2
    return out.add("Slice", x, *map(out.constant, ([0, 0], [REST, REST], [2, 3], steps)))


def _read(out: Writer, read: Read, x: str) -> str:
    if len(read.missing):
        raise Unsupported("a reader of absent channels")
    return out.take(x, read.take)


MODULES: dict[type[nn.Module], Callable[..., str]] = {
    nn.Conv2d: lambda out, conv, x: out.conv(
        x, conv.weight, conv.bias, (conv.padding, conv.stride, conv.dilation, conv.groups)
    ),
    nn.ReLU: lambda out, _, x: out.add("Relu", x),
    nn.Identity: lambda out, _, x: x,
    nn.Dropout: lambda out, _, x: x,
    nn.MaxPool2d: _max_pool,
    nn.AdaptiveAvgPool2d: _average,
    nn.Flatten: _flatten,
    nn.Linear: _linear,
    nn.BatchNorm2d: _batch_norm,
    PackedShortcut: _shortcut,
    Read: _read,
    Spread: lambda out, spread, x: out.spread(x, spread.positions, spread.width, spread.axis),
}
"""Class of a module -> function of writer, module and names of its inputs. `suite.pack.portable` adds its own."""
FUNCTIONS: Mapping[Any, Callable[..., str]] = MappingProxyType(
    {
        operator.add: _sum,
        operator.iadd: _sum,
        torch.relu: lambda out, x: out.add("Relu", x),
        F.relu: lambda out, x, inplace=False: out.add("Relu", x),
        torch.flatten: lambda out, x, start_dim=0: _flatten(out, nn.Flatten(start_dim), x),
    }
)


@torch.no_grad()
def write(network: fx.GraphModule, inputs: Sequence[Tensor]) -> Any:
    """Return the network as an ONNX model for inputs of these shapes and any batch.

    Raises Unsupported naming an operator that is not written here.
    """
    from onnx import TensorProto, helper

    out, names, places = Writer(), dict[fx.Node, str](), []
    modules = dict(network.named_modules())
    for node in network.graph.nodes:
        out.module = str(node.target) if node.op == "call_module" else ""
        if node.op == "placeholder":
            names[node] = str(node.target)
            places.append(str(node.target))
        elif node.op == "output":
            (last,) = node.all_input_nodes
            out.nodes.append(helper.make_node("Identity", [names[last]], [OUTPUT], name=OUTPUT))
        else:
            names[node] = _written(out, node, modules, names)
    shapes = [["batch", *tensor.shape[1:]] for tensor in inputs]
    takes = [
        helper.make_tensor_value_info(*one)
        for one in zip(places, [TensorProto.FLOAT] * len(places), shapes, strict=True)
    ]
    result = network(*(tensor[:1] for tensor in inputs))  # readers of ONNX require the shape of an output
    gives = [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", *result.shape[1:]])]
    graph = helper.make_graph(out.nodes, "network", takes, gives, out.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)


def _written(out: Writer, node: fx.Node, modules: Mapping[str, nn.Module], names: Mapping[fx.Node, str]) -> str:
    """Add the ONNX nodes of a node; return the name of its value."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: names[source])
    if node.op == "call_module":
        module = modules[str(node.target)]
        if type(module) in MODULES:
            return MODULES[type(module)](out, module, *args, **kwargs)
        raise Unsupported(f"{type(module).__name__} {node.target}")
    if node.op == "call_function" and node.target in FUNCTIONS and all(isinstance(arg, str | int) for arg in args):
        return FUNCTIONS[node.target](out, *args, **kwargs)
    raise Unsupported(f"{node.op} {node.target}")
