"""The table of operators: the rule of each node of a trace.

An operator is known by its name, which is the same for module, function and method (`tracing.named`): `nn.ReLU`, `F.relu`,
`torch.relu` and `x.relu()` are "relu". An operator of one name is one entry in a set below or in `RULES`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from suite.graph import operators as ops
from suite.graph.modes import Switch
from suite.graph.names import described, named
from suite.graph.operators import Operator
from suite.models._layers import PaddedShortcut

Rule = Callable[["Reader", fx.Node], Operator]


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


ZERO = _names(
    "relu relu6 gelu silu leakyrelu elu selu celu prelu hardswish tanh mish softsign rrelu hardshrink "
    "softshrink tanhshrink identity dropout dropout1d dropout2d dropout3d featuredropout stochasticdepth "
    "droppath abs neg clone detach sign sqrt float double half to contiguous sin"
)
"""Channel-wise operators that map zero to zero, in training too."""
ONE = _names(
    "sigmoid hardsigmoid softplus logsigmoid exp cos threshold clamp clampmin clampmax clip alphadropout "
    "featurealphadropout rsqrt reciprocal gt ge lt le eq ne isnan isfinite logicalnot"
)
"""Channel-wise operators that map zero to another number, or may do so."""
POOLS = _names(
    "maxpool2d avgpool2d adaptiveavgpool2d adaptivemaxpool2d lppool2d interpolate upsample upsamplingnearest2d "
    "upsamplingbilinear2d zeropad2d reflectionpad2d replicationpad2d circularpad2d"
)
"""Operators on the positions of [N, C, H, W] that map zero to zero."""
REDUCTIONS = _names("mean sum amax amin")
MOVES = _names(
    "view reshape flatten unflatten permute transpose swapaxes movedim squeeze unsqueeze getitem chunk split "
    "tensorsplit narrow roll flip expand indexselect channelshuffle pixelshuffle pixelunshuffle unbind t "
    "contiguous"
)
"""Operators that only move numbers. Their rule is found by running them on the positions of the numbers."""
PERMUTATIONS = _names("permute transpose swapaxes movedim t")
"""Moves of whole dimensions, whose rule needs no positions."""
VIEWS = _names("view reshape unsqueeze getitem")
"""Operators that a parameter or buffer of one number a channel may pass."""
MIXES = _names(
    "layernorm groupnorm instancenorm1d instancenorm2d localresponsenorm normalize softmax logsoftmax "
    "softmax2d softmin glu std var norm cumsum stack cat concat maximum minimum max min topk where rsub pow "
    "pad pixelshuffle square argmax cosinesimilarity randlike randnlike"
)
"""Operators that read all channels; they are computed on all of them."""


@dataclass(frozen=True)
class Reader:
    """The trace as far as it is read.

    model      the network's name, for messages
    modules    name -> module, without storage
    operators  node -> rule, of the nodes before
    pending    node -> (base, positions): the numbers of an unfinished move, by position in the base tensor
    constants  name -> tensor that the network makes, such as an index
    """

    model: str
    modules: dict[str, nn.Module]
    operators: dict[fx.Node, Operator]
    pending: dict[fx.Node, tuple[fx.Node, Any]]
    constants: Mapping[str, Tensor]

    def operator(self, node: fx.Node) -> Operator:
        """Return the rule of a node.

        Raises ValueError with operator, module and the way to write it.
        """
        if node.op == "placeholder":
            return ops.Input(sources=[], width=shape(node)[1])
        if node.op == "output":
            for source in node.all_input_nodes:
                if self.operators[source].kind == "constant":
                    raise ValueError(
                        f"{self.model} returns {str(source.target)!r}, a parameter or constant; "
                        "return only what is computed from the images"
                    )
                self._build(source)
            return ops.Output(sources=list(node.all_input_nodes))
        if node.op == "get_attr":
            return ops.Constant(sources=[], width=1)
        name = named(node, self.modules)
        module = self.module(node)
        if all(self.operators[source].kind == "constant" for source in node.all_input_nodes):
            if name in VIEWS and _is_vector(node):
                return ops.Constant(sources=[], width=1)
            raise self.refusal(node, "it computes on parameters and buffers alone; register its result as a buffer")
        if name in MOVES and (move := _move(self, node)) is not None:
            return move
        for source in node.all_input_nodes:
            self._build(source)
        for kind, rule in MODULES.items():
            if isinstance(module, kind):
                return rule(self, node)
        if name == "frozenbatchnorm2d":
            return _norm(self, node)
        sources = [source for source in node.all_input_nodes if self.operators[source].kind != "constant"]
        if name in RULES and (result := RULES[name](self, node)) is not None:
            return result
        if len(sources) == 1 and (name in ZERO or name in ONE) and not _has_vector(node, sources[0]):
            return self.alike(node, ops.Shift if name in ONE else ops.Pass)
        if len(sources) == 1 and name in POOLS and len(shape(node)) == 4 and self.axis(node) == 1:
            return self.alike(node, ops.Pass)
        if len(sources) == 1 and name in REDUCTIONS and (axis := self._reduced(node)) is not None:
            return self.alike(node, ops.Pass, axis=axis)
        if name in MIXES | MOVES | POOLS | REDUCTIONS | ZERO | ONE | RULES.keys():
            return self.whole(node)
        parameter = next((source for source in node.all_input_nodes if self.operators[source].kind == "constant"), None)
        reason = "it has no rule"
        if parameter is not None:
            reason = f"it is no call of a whole layer with its own settings, but a function of {parameter.target}"
        raise self.refusal(node, reason)

    def refusal(self, node: fx.Node, reason: str) -> ValueError:
        """Return the error for an operator whose channels cannot be followed."""
        return ValueError(
            f"channels of {self.model} cannot be followed through {described(node, self.modules)}: {reason}; write it with "
            "nn.Conv2d, batch norm, activations, pooling, sums, products, torch.cat, slices and nn.Linear, or add its rule "
            "to suite/graph/table.py"
        )

    def _build(self, node: fx.Node) -> None:
        """Let an unfinished move, and those before, be computed on all channels."""
        if self.operators[node].kind == "pending":
            for source in node.all_input_nodes:
                self._build(source)
            self.operators[node] = self.whole(node)

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def axis(self, node: fx.Node) -> int:
        """Return the dimension of the channels of the node's first operand."""
        return self.operators[self.first(node)].axis

    def first(self, node: fx.Node) -> fx.Node:
        """Return the first operand that is no parameter or buffer."""
        return next(source for source in node.all_input_nodes if self.operators[source].kind != "constant")

    def alike(self, node: fx.Node, kind: type[Operator], **fields: Any) -> Operator:
        """Return a rule of one operand, with the operand's channels."""
        source = self.first(node)
        like = self.operators[source]
        axis = fields.pop("axis", like.axis)
        if shape(node)[axis] != like.width:
            return self.whole(node)
        return kind(sources=[source], axis=axis, width=like.width, **fields)

    def whole(self, node: fx.Node) -> Operator:
        """Return the rule of an operator that reads all channels."""
        sources = [source for source in node.all_input_nodes if self.operators[source].kind != "constant"]
        value = node.meta["value"]
        if not isinstance(value, Tensor):
            return ops.Whole(sources=sources, axis=self.axis(node), width=1)
        axis = self.axis(node)
        if value.ndim <= axis:
            axis = min(1, value.ndim - 1)
        return ops.Whole(sources=sources, axis=axis, width=value.shape[axis] if value.ndim else 1)

    def fixed(self, node: fx.Node) -> ops.Fixed:
        """Return the rule of a layer that is computed on all channels."""
        rule, module = self.whole(node), self.module(node)
        macs = 0
        if isinstance(module, nn.Conv2d | nn.Linear):
            macs = module.weight.numel() * math.prod(shape(node)[1:]) // rule.width
        return ops.Fixed(sources=rule.sources, axis=rule.axis, width=rule.width, full_macs=macs)

    def _reduced(self, node: fx.Node) -> int | None:
        """Return the channel axis after a reduction over positions, None if it reduces more."""
        arguments = dict(enumerate(node.args[1:3]))
        dims = node.kwargs.get("dim", arguments.get(0))
        keep = node.kwargs.get("keepdim", arguments.get(1, False))
        if dims is None:
            return None
        source = node.args[0]
        assert isinstance(source, fx.Node)
        before = len(shape(source))
        reduced = {int(dim) % before for dim in (dims if isinstance(dims, tuple | list) else (dims,))}
        axis = self.axis(node)
        if axis in reduced or 0 in reduced:
            return None
        return axis if keep else axis - sum(dim < axis for dim in reduced)


def _is_vector(node: fx.Node) -> bool:
    """Return True for a view of a parameter [C], such as [1, C, 1, 1]."""
    base = node
    while base.op != "get_attr":
        if len(base.all_input_nodes) != 1 or not isinstance(base.args[0], fx.Node):
            return False
        base = base.args[0]
    return len(shape(base)) == 1 and sorted(shape(node))[-1:] == list(shape(base)) == [math.prod(shape(node))]


def _has_vector(node: fx.Node, source: fx.Node) -> bool:
    """Return True if an operand other than `source` has several numbers: slopes of `F.prelu`."""
    return any(math.prod(shape(operand)) > 1 for operand in node.all_input_nodes if operand is not source)


def shape(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of a node's tensor, () for other values."""
    value = node.meta["value"]
    return tuple(value.shape) if isinstance(value, Tensor) else ()


# ---- modules with weights --------------------------------------------------------------------------------------------


def _conv(reader: Reader, node: fx.Node) -> Operator:
    module: Any = reader.module(node)
    source = reader.first(node)
    if reader.axis(node) != 1 or len(shape(source)) != 4:
        raise reader.refusal(node, "its input is not [N, C, H, W], or that of an nn.Linear not [N, H, W, C]")
    if module.groups == 1:
        return ops.Conv(sources=[source], width=module.out_channels)
    positions = math.prod(shape(node)[2:])
    return ops.Grouped(
        sources=[source],
        width=module.out_channels,
        groups=module.groups,
        macs_per_weight=positions * math.prod(module.kernel_size),
    )


def _linear(reader: Reader, node: fx.Node) -> Operator:
    source = reader.first(node)
    last = len(shape(source)) - 1
    if reader.axis(node) != last:
        raise reader.refusal(node, "its input does not have the channels in the last dimension")
    positions = math.prod(shape(node)[1:-1])
    return ops.Linear(sources=[source], axis=last, width=shape(node)[-1], macs_per_weight=positions)


def _norm(reader: Reader, node: fx.Node) -> Operator:
    module: Any = reader.module(node)
    if reader.axis(node) != 1:
        raise reader.refusal(node, "its input is not [N, C, ...]")
    return reader.alike(node, ops.Norm if module.weight is not None else ops.Shift)


def _shortcut(reader: Reader, node: fx.Node) -> Operator:
    module = reader.module(node)
    assert isinstance(module, PaddedShortcut)
    width = shape(reader.first(node))[1]
    index = nn.functional.pad(torch.arange(width), (module.before, module.after), value=-1)
    return ops.Shortcut(sources=[reader.first(node)], width=len(index), index=index)


def _switch(reader: Reader, node: fx.Node) -> Operator:
    return _arithmetic(reader, node, ops.Switch, ops.Shift) or reader.whole(node)


def _unpruned(reader: Reader, node: fx.Node) -> Operator:
    """Return the rule of a transposed, 1-D or 3-D convolution, computed on all channels."""
    module: Any = reader.module(node)
    positions = shape(reader.first(node) if module.transposed else node)[2:]
    return dataclasses.replace(reader.fixed(node), full_macs=module.weight.numel() * math.prod(positions))


def _refused(reader: Reader, node: fx.Node) -> Operator:
    raise reader.refusal(node, "it has weights and no rule")


MODULES: Mapping[Any, Rule] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.modules.batchnorm._BatchNorm: _norm,
    PaddedShortcut: _shortcut,
    Switch: _switch,
    nn.modules.conv._ConvNd: _unpruned,
    nn.RNNBase: _refused,
    nn.Bilinear: _refused,
    nn.Embedding: _refused,
}


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def _arithmetic(reader: Reader, node: fx.Node, kind: type[Operator], scalar: type[Operator]) -> Operator | None:
    """Return the rule of an operator of two operands.

    scalar  the rule if one operand is a number, a parameter or a buffer
    """
    tensors = [source for source in node.all_input_nodes if reader.operators[source].kind != "constant"]
    if len(tensors) == 1:
        if len(node.all_input_nodes) == 2 and not _fits(reader, node, tensors[0]):
            return None
        return reader.alike(node, scalar) if len(node.args) >= 2 and shape(node) == shape(tensors[0]) else None
    first, second = (reader.operators[source] for source in tensors)
    if first.axis != second.axis or len(shape(tensors[0])) != len(shape(tensors[1])):
        return None
    if first.width != second.width or shape(node)[first.axis] != first.width:
        return None
    return kind(sources=tensors, axis=first.axis, width=first.width)


def _fits(reader: Reader, node: fx.Node, source: fx.Node) -> bool:
    """Return True if the constant operand has one number, or one of each channel."""
    constant = next(other for other in node.all_input_nodes if other is not source)
    return constant_dim(shape(constant), reader.operators[source], len(shape(source))) is not None


def constant_dim(constant: tuple[int, ...], operand: Operator, ndim: int) -> int | None:
    """Return the dimension of a constant's channels.

    -1 if it has one number for all channels, None if it has neither one nor one of each.
    """
    dim = operand.axis - (ndim - len(constant))
    if dim < 0 or constant[dim] == 1:
        return -1
    return dim if dim < 2 and constant[dim] == operand.width else None


def _sum(reader: Reader, node: fx.Node) -> Operator | None:
    return _arithmetic(reader, node, ops.Sum, ops.Shift)


def _product(reader: Reader, node: fx.Node) -> Operator | None:
    return _arithmetic(reader, node, ops.Product, ops.Pass)


def _quotient(reader: Reader, node: fx.Node) -> Operator | None:
    """Return the rule of a quotient by a number or constant."""
    numerator = node.args[0]
    if not isinstance(numerator, fx.Node) or reader.operators[numerator].kind == "constant":
        return None
    tensors = [source for source in node.all_input_nodes if reader.operators[source].kind != "constant"]
    return _arithmetic(reader, node, ops.Product, ops.Pass) if len(tensors) == 1 else None


def _power(reader: Reader, node: fx.Node) -> Operator | None:
    exponent = node.args[1] if len(node.args) == 2 else None
    positive = isinstance(exponent, int | float) and exponent > 0
    return reader.alike(node, ops.Pass) if positive else None


def _hardtanh(reader: Reader, node: fx.Node) -> Operator:
    """Return the rule of a clamp, which shifts zero if its range excludes zero."""
    return reader.alike(node, ops.Shift if bool(_moved(reader, node, torch.zeros(1)).any()) else ops.Pass)


def _concat(reader: Reader, node: fx.Node) -> Operator | None:
    parts: Any = node.args[0] if node.args else node.kwargs["tensors"]
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    if any(reader.operators[part].kind == "constant" for part in parts):
        return None
    axes = {reader.operators[part].axis for part in parts}
    if axes != {dim % len(shape(node))}:
        return None
    return ops.Concat(sources=list(parts), axis=axes.pop(), width=sum(reader.operators[part].width for part in parts))


def _pad(reader: Reader, node: fx.Node) -> Operator | None:
    """Return the rule of padding by zeros or reflection of positions, or by zero channels."""
    amounts: Any = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
    mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")
    value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else 0)
    source = reader.first(node)
    place = 2 * (len(shape(source)) - 1 - reader.axis(node))
    before, after = (*amounts[place : place + 2], 0, 0)[:2]
    if value or (before, after) == (0, 0):
        return reader.alike(node, ops.Shift if value else ops.Pass)
    if mode != "constant" or any((*amounts[:place], *amounts[place + 2 :])):
        return None
    index = nn.functional.pad(torch.arange(reader.operators[source].width), (before, after), value=-1)
    return ops.Take(sources=[source], axis=reader.axis(node), width=len(index), index=index)


def _where(reader: Reader, node: fx.Node) -> Operator | None:
    """Return the rule of a choice between two tensors, or between a tensor and zero."""
    if len(node.args) != 3 or not all(isinstance(a, fx.Node) or a == 0 for a in node.args[1:]):
        return None
    tensors: list[Any] = [argument for argument in node.args if isinstance(argument, fx.Node)]
    rules = [reader.operators[source] for source in tensors]
    if any(rule.kind == "constant" for rule in rules) or len({shape(source) for source in (node, *tensors)}) != 1:
        return None
    if len({rule.axis for rule in rules}) != 1:
        return None
    return ops.Where(sources=tensors, axis=rules[0].axis, width=rules[0].width)


def _zeros(reader: Reader, node: fx.Node) -> Operator | None:
    """Return the rule of a tensor of zeros: channels without a filter."""
    axis = reader.axis(node)
    if len(shape(node)) != len(shape(reader.first(node))):
        return None
    index = torch.full((shape(node)[axis],), -1)
    return ops.Take(sources=[reader.first(node)], axis=axis, width=len(index), index=index)


RULES: Mapping[str, Callable[[Reader, fx.Node], Operator | None]] = {
    "add": _sum,
    "sub": _sum,
    "mul": _product,
    "div": _quotient,
    "pow": _power,
    "hardtanh": _hardtanh,
    "maximum": _sum,
    "minimum": _sum,
    "cat": _concat,
    "concat": _concat,
    "concatenate": _concat,
    "pad": _pad,
    "where": _where,
    "zeroslike": _zeros,
    "newzeros": _zeros,
}


# ---- moves -----------------------------------------------------------------------------------------------------------


def _move(reader: Reader, node: fx.Node) -> Operator | None:
    """Return the rule of an operator that only moves numbers, found on their positions.

    None if it also moves numbers of one channel apart, and needs the whole tensor.
    """
    first = node.args[0]
    if not isinstance(first, fx.Node) or (reader.operators[first].kind == "whole" and not shape(first)):
        return None
    if any(source is not first and source.target not in reader.constants for source in node.all_input_nodes):
        return None
    if first in reader.pending:
        base, place = reader.pending[first]
    else:
        base = first
        if named(node, reader.modules) in PERMUTATIONS and shape(base):
            of_sizes = _moved(reader, node, torch.empty(tuple(range(1, len(shape(base)) + 1)), device="meta"))
            axis = list(of_sizes.shape).index(reader.operators[base].axis + 1)
            if of_sizes.shape[0] == 1:
                return ops.View(sources=[base], axis=axis, width=reader.operators[base].width)
        place = torch.arange(math.prod(shape(base)[1:])).view(1, *shape(base)[1:])
    moved = _moved(reader, node, place)
    if not isinstance(moved, Tensor):
        reader.pending[node] = base, moved
        return ops.Pending(sources=[base])
    like = reader.operators[base]
    if moved.ndim == 0 or moved.shape[0] != 1:
        return None
    one_step = base is first
    if (
        like.axis == 1
        and moved.ndim == 2
        and len(shape(base)) > 2
        and torch.equal(moved[0], torch.arange(moved.numel()))
    ):
        index = torch.arange(like.width).repeat_interleave(moved.numel() // like.width)
        return ops.Flatten(sources=[base], width=len(index), index=index)
    before = shape(base)[1:]
    inner = math.prod(before[like.axis :])
    channel = moved // inner % like.width
    rest = moved // (inner * like.width) * inner + moved % inner
    for axis in sorted(range(1, moved.ndim), key=lambda axis: axis != like.axis):
        rows_CP = channel.movedim(axis, 0).flatten(1) if moved.ndim > 1 else channel.flatten()[:, None]
        places_CP = rest.movedim(axis, 0).flatten(1)
        if not bool((rows_CP == rows_CP[:, :1]).all() and (places_CP == places_CP[:1]).all()):
            continue
        index = rows_CP[:, 0]
        sizes = [size for dim, size in enumerate(moved.shape) if dim not in (0, axis)]
        same = axis == like.axis and sizes == [s for dim, s in enumerate(before, 1) if dim != like.axis]
        if same and torch.equal(places_CP[0], torch.arange(places_CP.shape[1])):
            return ops.Take(sources=[base], axis=axis, width=len(index), index=index)
        if one_step and torch.equal(index, torch.arange(like.width)) and not _rolls(reader, node, like.axis):
            return ops.View(sources=[base], axis=axis, width=like.width)
    reader.pending[node] = base, moved
    return ops.Pending(sources=[base])


def _rolls(reader: Reader, node: fx.Node, axis: int) -> bool:
    """Return True for a roll of channels, by a multiple of their number here.

    It would move the channels that a plan leaves.
    """
    if named(node, reader.modules) != "roll":
        return False
    dims: Any = node.kwargs.get("dims", node.args[2] if len(node.args) > 2 else None)
    every = dims if isinstance(dims, tuple | list) else (dims,)
    return dims is None or axis in [dim % len(shape(node)) for dim in every]


def _moved(reader: Reader, node: fx.Node, place: Any) -> Any:
    moved = (place, *node.args[1:]), dict(node.kwargs)
    operands: Any = fx.node.map_arg(moved, lambda source: reader.constants[str(source.target)])
    args, kwargs = operands
    target: Any = node.target
    if node.op == "call_module":
        return reader.modules[target](*args, **kwargs)
    return getattr(args[0], target)(*args[1:], **kwargs) if node.op == "call_method" else target(*args, **kwargs)


def can_repeat(rule: Operator) -> bool:
    """Return True if the rule holds for all calls of a module together."""
    return isinstance(rule, ops.Conv | ops.Norm)


def followers(operators: Mapping[fx.Node, Operator]) -> list[fx.Node]:
    """Return the convolutions that make the network's result or a gate; they are not scored."""
    return [node for node, rule in operators.items() if rule.kind == "conv" and _is_follower(node, operators)]


_FOLLOWED = _names("bn pass shift sum switch product concat take view flatten shortcut pending")
"""Kinds of operators that keep the channels of a convolution apart."""
_Path = Literal["plain", "shifted", "mixed"]
"""How the operators behind a convolution map zero: to zero, to another number, or with other channels mixed in."""


def _is_follower(conv: fx.Node, operators: Mapping[fx.Node, Operator]) -> bool:
    todo: list[tuple[fx.Node, _Path]] = [(conv, "plain")]
    seen, gates = set(todo), []
    while todo:
        node, path = todo.pop()
        for user in node.users:
            kind = operators[user].kind
            if kind == "output":
                return True
            if kind == "product" and path == "shifted":
                gates.append((user, node))
                continue
            if kind == "whole":
                path_behind: _Path = "mixed"
            elif kind not in _FOLLOWED:
                continue
            elif path == "mixed":
                path_behind = "mixed"
            elif kind in ("sum", "concat"):
                path_behind = "plain"
            else:
                path_behind = "shifted" if kind == "shift" else path
            if (user, path_behind) not in seen:
                seen.add((user, path_behind))
                todo.append((user, path_behind))
    for gate, node in gates:  # y * sigmoid(y) is an activation: it is zero where y is
        if not any((source, "plain") in seen for source in operators[gate].sources if source is not node):
            return True
    return False


def as_linear(node: fx.Node, operators: Mapping[fx.Node, Operator], module: nn.Module | None) -> Operator:
    """Return the rule of a convolution that is not scored."""
    rule, conv = operators[node], module
    assert isinstance(conv, nn.Conv2d)
    macs = math.prod(shape(node)[2:]) * math.prod(conv.kernel_size)
    return ops.Linear(**{f.name: getattr(rule, f.name) for f in dataclasses.fields(rule)}, macs_per_weight=macs)
