"""A packed network made as fast as it can be where it will run: every layer's executions are timed there, the fastest is taken.

`tuned` walks through the network on a batch of images. At each convolution, with the residual sum and the ReLU that follow it, it
builds every execution, checks its output, times it on the very tensors that the layer gets, and goes on with the fastest. It
does so in both memory layouts and keeps the faster network. A dense network (an empty plan) is treated alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn

from suite.cudagraph import captured
from suite.pack.choice import PRECISIONS, Choice, Layout
from suite.pack.deploy import deploy
from suite.pack.executions import EXECUTIONS, TILES, Layer, Operands, build, offered, positions
from suite.pack.fuse import Fused, Nodes, fuse, only_user
from suite.pack.layers import PackedConv, PackedShortcut, Spread, Take
from suite.pack.network import PackedNetwork
from suite.pack.operations import Read
from suite.pack.slices import slice_rank
from suite.timing import Run, least_ms

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest error of a layer's output and of the logits, as a share of the largest entry (of 1e-3 at least)."""
TF32_TOLERANCE = 1e-2
"""The same where torch lets convolutions round fp32 to the ten bits of TF32, as it does on a GPU unless it is told not to."""
_ROUNDS = range(3, 17)
_GATHERS_X = 1.05
"""How much faster an execution must be that gathers its input: a copy is memory, and a smaller gain may be chance."""
_SECONDS = 0.5
_GPU_SECONDS, _REPLAYS = 0.05, 5
"""A GPU is steadier. Captured executions are replayed several times, so that waiting for the last is little of the time."""
_IN_ORDER = (Take, PackedShortcut, Spread, nn.BatchNorm2d, nn.Linear)
"""What takes channels by their number in the packed network."""
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@torch.no_grad()
def tuned(
    packed: PackedNetwork, images: Tensor, *, choice: Choice | None = None, forced: str | None = None
) -> tuple[nn.Module, Choice]:
    """The network for batches like `images` [N, C, H, W], and how it is computed; inference only.

    choice  computes it in this way and times nothing; forced  one execution wherever it differs, the layout still timed.
    Raises ValueError when the choice is for another network, and, naming the layer, when an output disagrees with the reference.
    """
    if forced is not None and forced not in EXECUTIONS:
        raise ValueError(
            f"execution {forced!r} is not one of {', '.join(EXECUTIONS)}; leave it out to have the fastest"
        )
    if forced in TILES and not images.is_cuda:
        raise ValueError(f"execution {forced!r} was asked for, and the images are on the CPU; it needs a CUDA device")
    where = images.device.type, PRECISIONS[images.dtype], len(images)
    if choice is not None and choice.where != where:
        raise ValueError(f"the choice of executions is for {choice.where}, and the images are {where}; tune it again")
    body: Any = deploy(packed, "groups").to(images.dtype)
    expected = body(images)
    layouts: tuple[Layout, ...] = (choice.layout,) if choice else get_args(Layout)
    walks = {layout: _Walk(body, images, layout, choice.layers if choice else None, forced) for layout in layouts}
    for walk in walks.values():
        check("the network", walk.network(images), expected)
    runs: dict[str, Run] = {name: lambda w=walk: w.network(images) for name, walk in walks.items()}  # type: ignore[misc]
    layout_ms = choice.layout_ms if choice else fastest_ms(runs, images.device)
    best = layouts[0] if choice else min(layouts, key=layout_ms.__getitem__)
    walk = walks[best]
    made = Choice(
        device=where[0],
        precision=where[1],
        batch=where[2],
        layout=best,
        layers=walk.layers,
        layer_ms=choice.layer_ms if choice else walk.layer_ms,
        layout_ms=layout_ms,
    )
    return walk.network, made


def check(name: str, got: Tensor, expected: Tensor) -> None:
    """Raise ValueError, naming the layer and the largest error, where an output is not what it should be."""
    error = float((got - expected).abs().max()) if got.shape == expected.shape else float("inf")
    allowed = tolerance(expected) * max(1e-3, float(expected.abs().max()))
    if not error <= allowed:
        raise ValueError(
            f"{name} disagrees with its reference: largest error {error:.3g}, allowed {allowed:.3g} for {expected.dtype}; "
            "it is not measured"
        )


def tolerance(expected: Tensor) -> float:
    """What an output like this may be off by, as a share of its largest entry."""
    tf32 = expected.is_cuda and expected.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    return TF32_TOLERANCE if tf32 else TOLERANCE[expected.dtype]


def fastest_ms(runs: Mapping[str, Run], device: torch.device) -> dict[str, float]:
    """Return the least milliseconds of each run over alternating rounds; no time if there is one run only.

    On a GPU each is captured, because a packed network is: launching a small kernel takes longer than running it.
    """
    if len(runs) < 2:
        return dict.fromkeys(runs, float("inf"))
    if device.type == "cuda":
        graphs = {name: captured(run) for name, run in runs.items()}
        return least_ms(graphs, device, _REPLAYS, seconds=_GPU_SECONDS, counts=_ROUNDS)
    return least_ms(runs, device, seconds=_SECONDS, counts=_ROUNDS)


@dataclass
class _Value:
    """A tensor of the deployed network: where it is made, what it is for the images, and which channels it holds."""

    node: fx.Node
    tensor: Tensor
    columns_C: Tensor


class _Layout(nn.Module):
    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.format = _FORMATS[layout]

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=self.format)


class _Walk:
    """Builds the deployed network node by node, on the tensors that the images make of it."""

    def __init__(
        self, body: fx.GraphModule, images: Tensor, layout: Layout, layers: Mapping[str, str] | None, forced: str | None
    ) -> None:
        self.nodes = Nodes(body)
        self.given, self.forced = layers, forced
        self.layers: dict[str, str] = {}
        self.layer_ms: dict[str, dict[str, float]] = {}
        self.out = fx.Graph()
        self.made: dict[str, nn.Module] = {}
        self.value: dict[fx.Node, _Value] = {}
        self.done: set[fx.Node] = set()
        fusions = fuse(self.nodes)
        starts = {(fused.total or fused.conv): fused for fused in fusions}
        later = {node for fused in fusions for node in fused.nodes} - set(starts)
        for node in body.graph.nodes:
            if node in starts:
                self._layer(starts[node])
            elif node not in later:
                self._other(node, images, layout)
            self._drop()
        if layers is not None and set(layers) != set(self.layers):
            unknown = sorted(set(layers) ^ set(self.layers))[0]
            raise ValueError(
                f"the choice of executions is of another network: {unknown} is in one of them only; tune it again"
            )
        self.network = fx.GraphModule(self.made, self.out, "Tuned").requires_grad_(False)

    def _emit(self, name: str, module: nn.Module, *operands: _Value) -> tuple[fx.Node, Tensor]:
        self.made[name] = module
        node = self.out.call_module(name, tuple(operand.node for operand in operands))
        return node, module(*(operand.tensor for operand in operands))

    def _layer(self, fused: Fused) -> None:
        name = str(fused.conv.target)
        operands = self._operands(fused)
        conv = self.nodes.module(fused.conv, PackedConv)
        layer = Layer(
            name=name,
            conv=conv,
            reads_G=[reads.cpu() for reads in conv.reads_G],
            place_O=fused.place_O.cpu(),
            width=fused.width,
            relu=fused.relu is not None,
            rank=self._rank(fused),
        )
        execution = self._execution(layer, operands)
        module, columns_C = build(execution, layer, operands)
        inputs = [self.value[fused.conv.all_input_nodes[0]], *([self.value[fused.other]] if fused.other else [])]
        result = _Value(*self._emit(name, module, *inputs), columns_C)
        self.layers[name] = execution
        for node in fused.nodes:
            self.value[node] = result
        self.done.update(fused.nodes)

    def _operands(self, fused: Fused) -> Operands:
        x = self.value[fused.conv.all_input_nodes[0]]
        if fused.other is None:
            return Operands(x=x.tensor, columns_C=x.columns_C)
        assert fused.other_place_C is not None
        other = self.value[fused.other]
        place = torch.cat([fused.other_place_C.cpu(), torch.tensor([-1])])
        return Operands(
            x=x.tensor,
            columns_C=x.columns_C,
            other=other.tensor,
            other_columns_C=place[other.columns_C],
            in_place=self._is_last(fused.other, fused),
        )

    def _is_last(self, node: fx.Node, fused: Fused) -> bool:
        """Whether what `node` holds may be overwritten by the sum: nothing else reads it, or shares its memory, any more."""
        memory = self.value[node].tensor.untyped_storage().data_ptr()
        if (
            memory == self.images.untyped_storage().data_ptr()
            or self.value[node] is self.value[fused.conv.all_input_nodes[0]]
        ):
            return False
        mine = {node, *(other for other, value in self.value.items() if value is self.value[node])}
        return all(
            value.tensor.untyped_storage().data_ptr() != memory
            for other, value in self.value.items()
            if other not in mine
        ) and all(user in self.done or user in fused.nodes for other in mine for user in other.users)

    def _rank(self, fused: Fused) -> Tensor:
        """The order in which the only reader of a layer likes its channels: each group's in one slice, where that is possible."""
        node = fused.nodes[-1]
        while (user := only_user(node)) is not None and self.nodes.module(user, (nn.ReLU, nn.MaxPool2d, nn.Dropout)):
            node = user
        reader = self.nodes.module(user, PackedConv)
        if reader is None:
            return torch.zeros(fused.width)
        return slice_rank([reads.cpu() for reads in reader.reads_G], fused.width)

    def _execution(self, layer: Layer, operands: Operands) -> str:
        """The one that is given, or forced where it differs, or the fastest (`_GATHERS_X`); each is checked."""
        names = offered(layer, operands)
        if self.given is not None:
            names = (self.given.get(layer.name, names[0]),)
            if names[0] not in EXECUTIONS:
                raise ValueError(f"execution {names[0]!r} of {layer.name} is not one of {', '.join(EXECUTIONS)}")
        elif self.forced is not None:
            names = (self.forced,) if self.forced in names else ("union",) if "union" in names else names[:1]
        expected = _reference(layer, operands)
        runs: dict[str, Run] = {}
        handicap: dict[str, float] = {}
        wanted = torch.arange(layer.width)
        for name in names:
            module, columns_C = build(name, layer, operands)
            inputs = [operands.x] if operands.other is None else [operands.x, operands.other.clone()]
            got = module(*inputs)
            in_order = Read(positions(wanted, columns_C), got.shape[1]).to(got.device)
            check(f"{layer.name} as {name!r}", in_order(got), expected)
            runs[name] = lambda module=module, inputs=inputs: module(*inputs)  # type: ignore[misc]
            handicap[name] = _GATHERS_X if getattr(module, "gathers", False) else 1.0
        if len(names) == 1:
            return names[0]
        milliseconds = self.layer_ms[layer.name] = fastest_ms(runs, operands.x.device)
        return min(names, key=lambda name: milliseconds[name] * handicap[name])

    def _other(self, node: fx.Node, images: Tensor, layout: Layout) -> None:
        """Everything but a convolution with what it computes as well: on channels in the packed network's order."""
        if node.op == "placeholder":
            start = _Value(self.out.placeholder("images"), images, torch.arange(images.shape[1]))
            self.value[node] = _Value(*self._emit("layout", _Layout(layout), start), start.columns_C)
            # Whatever the layout copies here, images that have it already are passed on: they are the caller's.
            self.images = self.value[node].tensor
        elif node.op == "output":
            (result,) = node.all_input_nodes
            self.out.output(self.value[result].node)
        else:
            inputs = [self.value[source] for source in node.all_input_nodes]
            keeps = len(inputs) == 1 and not self.nodes.module(node, _IN_ORDER)
            if not (keeps and inputs[0].tensor.ndim == 4 and "flatten" not in str(node.target)):
                inputs = [self._in_order(node, i, value) for i, value in enumerate(inputs)]
            columns = inputs[0].columns_C
            if node.op == "call_module":
                made, tensor = self._emit(str(node.target), self.nodes.modules[str(node.target)], *inputs)
            else:
                place = dict(zip(node.all_input_nodes, inputs, strict=True))
                made = self.out.node_copy(node, lambda old: place[old].node)
                target: Any = node.target
                arguments = fx.node.map_arg(node.args, lambda old: place[old].tensor)
                tensor = target(*arguments, **node.kwargs)
            if not keeps or tensor.ndim != 4:
                columns = torch.arange(tensor.shape[1])
            self.value[node] = _Value(made, tensor, columns)
        self.done.add(node)

    def _in_order(self, node: fx.Node, index: int, value: _Value) -> _Value:
        """The value with its channels as the packed network has them."""
        wanted = torch.arange(int(value.columns_C.max()) + 1)
        if torch.equal(wanted, value.columns_C):
            return value
        read = Read(positions(wanted, value.columns_C), len(value.columns_C)).to(value.tensor.device)
        return _Value(*self._emit(f"{node.name}_in_order_{index}", read, value), wanted)

    def _drop(self) -> None:
        """Forget what nobody reads any more."""
        for node in [node for node in self.value if all(user in self.done for user in node.users)]:
            del self.value[node]


def _reference(layer: Layer, operands: Operands) -> Tensor:
    """The layer's output as the packed network has it, by one plain convolution per group."""
    conv = layer.conv
    parts = [
        torch.nn.functional.conv2d(
            operands.read(reads)(operands.x), weight, bias, conv.stride, conv.padding, conv.dilation
        )
        for reads, weight, bias in zip(layer.reads_G, conv.weights, layer.bias_O().split(conv.filters_G), strict=True)
    ]
    y = torch.cat(parts, 1)
    read_other = operands.read_other(torch.arange(layer.width))
    total = y.new_zeros(y.shape[0], layer.width, *y.shape[2:]) if read_other is None else read_other(operands.other)
    total = total.index_add(1, layer.place_O.to(y.device), y)
    return total.relu() if layer.relu else total
