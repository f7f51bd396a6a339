"""Inference form of a packed network: the fastest execution of every layer.

`tuned` builds the network node by node on a batch of images. At each convolution, with the residual sum and the ReLU that follow,
it builds every execution, checks the output, times it on the layer's real input, and continues with the fastest. Both memory
layouts are built, and the faster network is returned. A dense network (an empty plan) is treated alike.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn

from suite.pack import trial
from suite.pack.choice import FORMATS, PRECISIONS, Choice, Layout, check_images
from suite.pack.executions import EXECUTIONS, build, offered
from suite.pack.fold import per_group
from suite.pack.fuse import Fused, Nodes, fuse, only_user
from suite.pack.layer import TILES, Built, Layer, Operands, positions
from suite.pack.modules import GroupedConv
from suite.pack.network import PackedNetwork
from suite.pack.operations import PIECES, Memory, Read
from suite.pack.slices import slice_rank
from suite.schedule import check_choice
from suite.timing import Run


@torch.no_grad()
def tuned(
    packed: PackedNetwork,
    images: Tensor,
    *,
    choice: Choice | None = None,
    execution: str | None = None,
    layout: Layout | None = None,
    memory: Memory = "any",
) -> tuple[nn.Module, Choice]:
    """Return the inference network for batches like `images`, and its choice of executions.

    images     [N, C, H, W] of the final batch size, device and precision
    choice     use these executions; nothing is timed
    execution  use this one in every layer that offers it, `union` or `whole` elsewhere; layers are not timed
    layout     use this memory layout; None times both
    memory     "least": read gathered and sliced channels in smaller parts of a batch on a CPU, at some loss of time

    The network is on the device and in the precision of `images`; `packed` is not changed.
    Raises ValueError if the choice is for another network, device, precision or batch, if the images or a setting do not fit,
    and, naming the layer, if an output disagrees with the reference.
    """
    check_images(images, packed.input_shape[0])
    check_choice("layout", layout, (*get_args(Layout), None))
    check_choice("memory", memory, tuple(PIECES))
    if execution is not None and execution not in EXECUTIONS:
        raise ValueError(
            f"execution {execution!r} is not one of {', '.join(EXECUTIONS)}; leave it out to have the fastest"
        )
    if execution in TILES and not images.is_cuda:
        raise ValueError(f"execution {execution!r} needs a CUDA device, and the images are on the CPU")
    conditions = images.device.type, PRECISIONS[images.dtype], len(images), "torch"
    if choice is not None and choice.where != conditions:
        raise ValueError(
            f"the choice of executions is for {choice.where}, and the images are {conditions}; tune it again"
        )
    body = per_group(packed).to(images.device, images.dtype)
    expected = body(images)
    layouts = (choice.layout,) if choice else (layout,) if layout else get_args(Layout)
    layers, piece = choice.layers if choice else None, PIECES[memory]
    walks = {name: Walk(body, images, name, layers, execution, piece) for name in layouts}
    for walk in walks.values():
        trial.check("the network", walk.network(images), expected)
    runs: dict[str, Run] = {name: lambda walk=walk: walk.network(images) for name, walk in walks.items()}  # type: ignore[misc]
    layout_ms = choice.layout_ms if choice else trial.fastest_ms(runs, images.device)
    best: Layout = min(layouts, key=lambda name: layout_ms.get(name, 0))
    walk = walks[best]
    made = Choice(
        device=conditions[0],
        precision=conditions[1],
        batch=conditions[2],
        layout=best,
        layers=walk.layers,
        layer_ms=choice.layer_ms if choice else walk.layer_ms,
        layout_ms=layout_ms,
    )
    return walk.network, made


@dataclass
class _Value:
    """A tensor of the network: node, value for the images, packed channels."""

    node: fx.Node
    tensor: Tensor
    columns_C: Tensor


class InLayout(nn.Module):
    """Images in a memory layout."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.format = FORMATS[layout]

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=self.format)


class Walk:
    """Builds the network in one layout, node by node, on the tensors of the images.

    choices    layer -> execution, None to choose here
    execution  the one execution of all layers that offer it
    piece      elements that a layer gathers or slices per step
    block      channels of a block, see `Operands`
    """

    def __init__(
        self,
        body: fx.GraphModule,
        images: Tensor,
        layout: Layout,
        choices: Mapping[str, str] | None,
        execution: str | None,
        piece: int = PIECES["any"],
        block: int = 1,
    ) -> None:
        self.nodes, self.piece, self.block = Nodes(body), piece, block
        self.choices, self.execution = choices, execution
        self.layers: dict[str, str] = {}
        self.layer_ms: dict[str, dict[str, float]] = {}
        self.out = fx.Graph()
        self.modules: dict[str, Any] = {}
        self.value: dict[fx.Node, _Value] = {}
        self.done: set[fx.Node] = set()
        fusions = fuse(self.nodes)
        starts = {(fused.total or fused.conv): fused for fused in fusions}
        later = {node for fused in fusions for node in fused.nodes} - set(starts)
        for node in body.graph.nodes:
            if node in starts:
                self._layer(starts[node])
            elif node not in later:
                self._node(node, images, layout)
            self._free()
        if choices is not None and set(choices) != set(self.layers):
            unknown = sorted(set(choices) ^ set(self.layers))[0]
            raise ValueError(
                f"the choice of executions is of another network: {unknown} is in one of them only; tune it again"
            )
        self.network: nn.Module = fx.GraphModule(self.modules, self.out, "Tuned").eval().requires_grad_(False)

    def _emit(self, name: str, module: nn.Module, *operands: _Value) -> tuple[fx.Node, Tensor]:
        self.modules[name] = module
        node = self.out.call_module(name, tuple(operand.node for operand in operands))
        return node, module(*(operand.tensor for operand in operands))

    def _layer(self, fused: Fused) -> None:
        name = str(fused.conv.target)
        operands = self._operands(fused)
        conv = self.nodes.module(fused.conv, GroupedConv)
        layer = Layer(
            name=name,
            conv=conv,
            reads_G=[reads.cpu() for reads in conv.reads_G],
            place_O=fused.place_O.cpu(),
            width=fused.width,
            relu=fused.relu is not None,
            rank=self._rank(fused),
        )
        self.layers[name] = self._choose(layer, operands)
        module, columns_C = self.built(self.layers[name], layer, operands)
        inputs = [self.value[fused.conv.all_input_nodes[0]], *([self.value[fused.addend]] if fused.addend else [])]
        result = _Value(*self._emit(name, module, *inputs), columns_C)
        for node in fused.nodes:
            self.value[node] = result
        self.done.update(fused.nodes)

    def _choose(self, layer: Layer, operands: Operands) -> str:
        """Return the execution of a layer; several are checked and timed."""
        names = offered(layer, operands)
        if self.choices is not None:
            names = (self.choices.get(layer.name, names[0]),)
            if names[0] not in EXECUTIONS:
                raise ValueError(f"execution {names[0]!r} of {layer.name} is not one of {', '.join(EXECUTIONS)}")
        elif self.execution is not None:
            names = next((name,) for name in (self.execution, "union", "whole") if name in names)
        name, milliseconds = self.fastest(names, layer, operands)
        if milliseconds:
            self.layer_ms[layer.name] = milliseconds
        return name

    def built(self, execution: str, layer: Layer, operands: Operands) -> Built:
        """Build an execution of a layer."""
        return build(execution, layer, operands)

    def fastest(self, names: tuple[str, ...], layer: Layer, operands: Operands) -> tuple[str, dict[str, float]]:
        """Return the fastest execution and the milliseconds of all, {} for one name."""
        return trial.choose(names, layer, operands)

    def _operands(self, fused: Fused) -> Operands:
        x = self.value[fused.conv.all_input_nodes[0]]
        if fused.addend is None:
            return Operands(x=x.tensor, columns_C=x.columns_C, piece=self.piece, block=self.block)
        assert fused.addend_place_C is not None
        addend = self.value[fused.addend]
        place = torch.cat([fused.addend_place_C.cpu(), torch.tensor([-1])])
        return Operands(
            x=x.tensor,
            columns_C=x.columns_C,
            addend=addend.tensor,
            addend_columns_C=place[addend.columns_C],
            in_place=self._is_last(fused.addend, fused),
            piece=self.piece,
            block=self.block,
        )

    def _is_last(self, node: fx.Node, fused: Fused) -> bool:
        """Return True if the sum is the last reader of the node's memory."""
        value = self.value[node]
        memory = value.tensor.untyped_storage().data_ptr()
        if memory == self.images.untyped_storage().data_ptr() or value is self.value[fused.conv.all_input_nodes[0]]:
            return False
        aliases = {node, *(alias for alias, tensor in self.value.items() if tensor is value)}
        shared = any(
            isinstance(value.tensor, Tensor) and value.tensor.untyped_storage().data_ptr() == memory
            for other, value in self.value.items()
            if other not in aliases
        )
        return not shared and all(user in self.done or user in fused.nodes for alias in aliases for user in alias.users)

    def _rank(self, fused: Fused) -> Tensor:
        """Return the sort key by which the layer's only reader reads slices."""
        node = fused.nodes[-1]
        while (user := only_user(node)) is not None and self.nodes.module(user, (nn.ReLU, nn.MaxPool2d, nn.Dropout)):
            node = user
        reader = self.nodes.module(user, GroupedConv)
        if reader is None:
            return torch.zeros(fused.width)
        return slice_rank([reads.cpu() for reads in reader.reads_G], fused.width)

    def _node(self, node: fx.Node, images: Tensor, layout: Layout) -> None:
        """Emit a node that is not part of a layer."""
        if node.op == "placeholder":
            start = _Value(self.out.placeholder("images"), images, torch.arange(images.shape[1]))
            self.value[node] = _Value(*self._emit("layout", InLayout(layout), start), start.columns_C)
            # The layout may return the caller's images themselves, which no sum may overwrite.
            self.images = self.value[node].tensor
        elif node.op == "output":
            (result,) = node.all_input_nodes
            self.out.output(self.value[result].node)
        else:
            self.value[node] = self._other(node)
        self.done.add(node)

    def _other(self, node: fx.Node) -> _Value:
        """Emit an operator between layers, on channels by number unless all are treated alike."""
        inputs = [self.value[source] for source in node.all_input_nodes]
        alike = bool(node.meta.get("alike"))
        if not alike:
            inputs = [self._in_order(node, index, value) for index, value in enumerate(inputs)]
        if node.op == "call_module":
            made, tensor = self._emit(str(node.target), self.nodes.modules[str(node.target)], *inputs)
        else:
            value = dict(zip(node.all_input_nodes, inputs, strict=True))
            made = self.out.node_copy(node, lambda source: value[source].node)
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: value[source].tensor)
            target: Any = node.target
            if node.op == "get_attr":
                tensor = self.modules[target] = operator.attrgetter(target)(self.nodes.body)
            elif node.op == "call_method":
                tensor = getattr(args[0], target)(*args[1:], **kwargs)
            else:
                tensor = target(*args, **kwargs)
        if alike:
            return _Value(made, tensor, inputs[0].columns_C)
        channels = tensor.shape[1] if isinstance(tensor, Tensor) and tensor.ndim > 1 else 1
        return _Value(made, tensor, torch.arange(channels))

    def _in_order(self, node: fx.Node, index: int, value: _Value) -> _Value:
        """Return the value with its channels in the packed order."""
        order = torch.arange(int(value.columns_C.max()) + 1)
        if torch.equal(order, value.columns_C):
            return value
        read = Read(positions(order, value.columns_C), len(value.columns_C)).to(value.tensor.device).eval()
        return _Value(*self._emit(f"{node.name}_in_order_{index}", read, value), order)

    def _free(self) -> None:
        """Drop the values without a reader to come."""
        for node in [node for node in self.value if all(user in self.done for user in node.users)]:
            del self.value[node]
