"""Forms of a packed network in plain operators, tuned for a runtime.

The network is built in float64, whose executions have no operators of torch's own libraries. A layer is timed between two 1x1
convolutions, because a runtime keeps the tensors between its convolutions in a layout of its own, and slices and gathers may
have to leave that layout.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn

from suite import arithmetic
from suite.pack import onnx_writer, trial
from suite.pack.choice import PRECISIONS, Choice, check_images
from suite.pack.executions import EXECUTIONS
from suite.pack.fold import per_group
from suite.pack.layer import TILES, Built, Layer, Operands
from suite.pack.network import PackedNetwork
from suite.pack.onnx_writer import Writer
from suite.pack.operations import PerGroup, Read, Reorder, Whole
from suite.pack.runtimes import compiled, why_not
from suite.pack.tune import InLayout, Walk
from suite.plan import Runtime
from suite.schedule import check_choice

UNIFORM = ("whole", "union", "groups")
"""Executions that are tried for all layers alike, beside the fastest of each layer."""
IMAGES = 2
"""Images on which the network is built and checked."""
NEIGHBOUR = 16
"""Channels of the tensors before and after a layer that is timed."""
BLOCKS: Mapping[Runtime, int] = {"onnxruntime": 16}
"""Runtime -> channels of a block of its tensors on a CPU with AVX-512. ONNX Runtime convolves in blocks only if a convolution
reads whole ones. On other CPUs, and in int8, padding was not measured; other CPUs have none."""


@torch.no_grad()
def tuned_for(
    packed: PackedNetwork,
    images: Tensor,
    runtime: Runtime,
    *,
    choice: Choice | None = None,
    execution: str | None = None,
) -> tuple[fx.GraphModule, Choice]:
    """Return the packed network in plain operators, with the fastest executions in a runtime.

    images     [N, C, H, W] of the final batch size, device and precision
    choice     use these executions; nothing is timed
    execution  use this one in every layer that offers it, `union` or `whole` elsewhere; nothing is timed

    The network is fp32 on a CPU, whose runtimes convert it themselves; on a GPU it has the precision of the images.
    Raises ValueError if the runtime is unknown or does not run here, if the images do not fit, if the choice is for other
    conditions, or if an output disagrees.
    """
    check_choice("runtime", runtime, get_args(Runtime))
    check_images(images, packed.input_shape[0])
    device, precision = images.device.type, PRECISIONS[images.dtype]
    if reason := why_not(runtime, device, precision):
        raise ValueError(f"{runtime} {reason}: nothing can be tuned for it here")
    if execution is not None and (execution not in EXECUTIONS or execution in TILES):
        offered = ", ".join(name for name in EXECUTIONS if name not in TILES)
        raise ValueError(f"execution {execution!r} is not one that every runtime has: {offered}")
    conditions = device, precision, len(images), runtime
    if choice is not None and choice.where != conditions:
        raise ValueError(
            f"the choice of executions is for {choice.where}, and the network for {conditions}; tune it again"
        )
    body, few = per_group(packed).to(images.device, torch.float64), images[:IMAGES].double()
    setting = _Setting(images, runtime, precision)
    try:
        if choice is not None:
            walks = {"": _Walk(body, few, setting, choice.layers, None)}
        elif execution is not None:
            walks = {execution: _Walk(body, few, setting, None, execution)}
        else:
            walks = _candidates(body, few, setting)
        expected = body(few)
    except RuntimeError as error:  # float64 here, fp32 after a cast in the network
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"no form of this network for {runtime} can be built: {reason}") from error
    for walk in walks.values():
        trial.check("the network", walk.network(few), expected)
    networks_ms = choice.layout_ms if choice else setting.networks_ms(walks)
    walk = walks[min(walks, key=lambda name: networks_ms.get(name, 0))]
    made = Choice(
        device=device,
        precision=precision,
        batch=len(images),
        layout="contiguous",
        layers=walk.layers,
        layer_ms=choice.layer_ms if choice else next(iter(walks.values())).layer_ms,
        layout_ms=networks_ms,
        runtime=runtime,
    )
    return setting.lowered(walk.network), made


def _candidates(body: fx.GraphModule, few: Tensor, setting: _Setting) -> dict[str, _Walk]:
    """Return the network of each layer's fastest execution, and those of one execution."""
    walks = {"fastest": _Walk(body, few, setting, None, None)}
    if walks["fastest"].layer_ms:
        for name in UNIFORM:
            walk = _Walk(body, few, setting, None, name)
            if walk.layers not in [other.layers for other in walks.values()]:
                walks[name] = walk
    return walks


class _Setting:
    """Conditions under which candidates are timed."""

    def __init__(self, images: Tensor, runtime: Runtime, precision: str) -> None:
        self.runtime: Runtime = runtime
        self.precision, self.batch, self.device = precision, len(images), images.device
        self.dtype = torch.float32 if images.device.type == "cpu" else images.dtype
        self.images = images.to(self.dtype).contiguous()

    def lowered(self, module: nn.Module) -> fx.GraphModule:
        """Return a copy in the type of the runtime's inputs."""
        return copy.deepcopy(module).to(self.dtype).eval()  # type: ignore[return-value]

    def networks_ms(self, walks: Mapping[str, _Walk]) -> dict[str, float]:
        """Return milliseconds of each network, {} for one."""
        if len(walks) < 2:
            return {}
        runs = {name: self._run(self.lowered(walk.network), [self.images]) for name, walk in walks.items()}
        return trial.fastest_ms(runs, self.device)

    def between(self, module: nn.Module, inputs: Sequence[Tensor]) -> Callable[[], Tensor]:
        """Return a run of a layer between two convolutions, at the final batch size.

        Raises ValueError if the runtime's output disagrees with torch's.
        """
        around = between(module, inputs).to(self.device, self.dtype)
        generator = torch.Generator().manual_seed(0)
        shapes = [(self.batch, NEIGHBOUR, *tensor.shape[2:]) for tensor in inputs]
        batches = [torch.randn(shape, generator=generator).to(self.device, self.dtype) for shape in shapes]
        run = self._run(around, batches)
        kind = next(dtype for dtype, name in PRECISIONS.items() if name == self.precision)
        trial.check(f"a layer in {self.runtime}", run().to(kind), around(*batches).to(kind))
        return run

    def _run(self, module: nn.Module, inputs: Sequence[Tensor]) -> Callable[[], Tensor]:
        return compiled(module, inputs, self.runtime, self.precision).run


class _Walk(Walk):
    """Builds the network in plain operators; executions are timed in the runtime."""

    def __init__(
        self,
        body: fx.GraphModule,
        few: Tensor,
        setting: _Setting,
        choices: Mapping[str, str] | None,
        execution: str | None,
    ) -> None:
        self.setting = setting
        block = BLOCKS.get(setting.runtime, 1) if "avx512f" in arithmetic.cpu_flags() else 1
        super().__init__(body, few, "contiguous", choices, execution, block=block)

    def built(self, execution: str, layer: Layer, operands: Operands) -> Built:
        """Build the execution in plain operators."""
        module, columns_C = super().built(execution, layer, operands)
        return Portable(module), columns_C

    def fastest(self, names: tuple[str, ...], layer: Layer, operands: Operands) -> tuple[str, dict[str, float]]:
        """Return the fastest execution in the runtime, and the milliseconds of all."""
        return trial.choose(names, layer, operands, build=self.built, prepare=self.setting.between)


class Portable(nn.Module):
    """An execution of a layer in operators of every runtime.

    They are slice, gather, convolution, concatenation, sum and ReLU.
    """

    def __init__(self, execution: nn.Module) -> None:
        super().__init__()
        assert isinstance(execution, Whole | PerGroup)
        parts: Any = execution
        is_whole = isinstance(execution, Whole)
        self.convs = nn.ModuleList([parts.conv] if is_whole else parts.convs)
        self.reads = nn.ModuleList(map(Channels, [parts.read] if is_whole else parts.reads))
        addend = parts.read_addend
        self.read_addend = None if addend is None else Channels(addend.read if isinstance(addend, Reorder) else addend)
        self.relu = not is_whole and parts.relu
        self.width = 0 if self.read_addend is None else self.read_addend.take.length
        self.gathers = parts.gathers

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        if self.read_addend is not None:
            addend = self.read_addend(addend)
        if len(self.convs) == 1:
            return self.convs[0](self.reads[0](x), addend)
        y = torch.cat([conv(read(x)) for conv, read in zip(self.convs, self.reads, strict=True)], 1)
        if addend is not None and y.shape[1] < addend.shape[1]:  # the last channels of the sum have no filter
            filters = y.shape[1]
            y = torch.cat([y + addend[:, :filters], addend[:, filters:]], 1)
        elif addend is not None:
            y = y + addend
        return y.relu() if self.relu else y


class Channels(nn.Module):
    """Channels of `read`; absent ones are multiplied by 0."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self.take = read.take
        self.present: Tensor | None
        present = torch.ones(1, read.take.length, 1, 1, device=read.missing.device)
        present[:, read.missing] = 0
        self.register_buffer("present", present if len(read.missing) else None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.take(x)
        return x if self.present is None else x * self.present


def _write(out: Writer, layer: Portable, x: str, addend: str | None = None) -> str:
    """Write a layer as ONNX nodes, as `Portable.forward` computes it."""

    def channels(read: Channels, source: str) -> str:
        y = out.take(source, read.take)
        return y if read.present is None else out.add("Mul", y, out.constant(read.present))

    if layer.read_addend is not None:
        assert addend is not None
        addend = channels(layer.read_addend, addend)
    pairs: Any = list(zip(layer.convs, layer.reads, strict=True))
    if len(pairs) == 1:
        return out.fused(channels(pairs[0][1], x), pairs[0][0], addend)
    y = out.add("Concat", *(out.fused(channels(read, x), conv) for conv, read in pairs), axis=1)
    if addend is not None:
        filters = sum(len(conv.bias) for conv, _ in pairs)
        if filters < layer.width:
            with_sum, rest = ([0], [filters], [1]), ([filters], [layer.width], [1])
            first = out.add("Add", y, out.add("Slice", addend, *map(out.constant, with_sum)))
            y = out.add("Concat", first, out.add("Slice", addend, *map(out.constant, rest)), axis=1)
        else:
            y = out.add("Add", y, addend)
    return out.add("Relu", y) if layer.relu else y


onnx_writer.MODULES.update({Portable: _write, InLayout: lambda out, _, x: x})


def between(layer: nn.Module, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Return a network of the layer between 1x1 convolutions."""
    graph, modules = fx.Graph(), dict[str, nn.Module]({"layer": copy.deepcopy(layer)})
    operands = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for number, tensor in enumerate(inputs):
            modules[f"before_{number}"] = nn.Conv2d(NEIGHBOUR, tensor.shape[1], 1)
            operands.append(graph.call_module(f"before_{number}", (graph.placeholder(f"x_{number}"),)))
        modules["after"] = nn.Conv2d(layer(*inputs).shape[1], NEIGHBOUR, 1)
    graph.output(graph.call_module("after", (graph.call_module("layer", tuple(operands)),)))
    return fx.GraphModule(modules, graph, "Between")
