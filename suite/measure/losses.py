"""Time that layers of a packed network lose beside their MACs, and the causes.

On a CPU. A layer with a share of the dense layer's MACs is due the same share of its time; time beyond that is lost. Both
networks are timed layer by layer in their place, in one runtime. The convolutions of the packed layer are timed again alone: as
they are, with widths rounded up to whole vectors, and with one channel and filter on few pixels. A copy of as many bytes as the
layer moves is timed too.

A layer whose fastest form multiplies zeros (`union` or `whole`) loses time because `groups`, the form without zeros, is no
faster. Its cause is that of `groups`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from suite import pack as packing
from suite.graph import Graph
from suite.measure.bounds import Peak, layer_bounds
from suite.measure.executions import COMPILED, random_images, runtime
from suite.measure.layer_times import VECTOR, convolutions, node_profile
from suite.measure.networks import Network, graph_and_plan
from suite.pack.choice import FORMATS, Layout
from suite.pack.operations import FusedConv
from suite.pack.portable import NEIGHBOUR, between
from suite.pack.runtimes import Profile, compiled
from suite.plan import PruningPlan, Runtime, Timing
from suite.timing import Run, least_ms, steady_clock

GROUPS = "groups"
"""Execution without multiplications by zero."""
ZEROS_X = 1.05
"""MACs that a form computes / those of the plan, from which on the form multiplies zeros."""
NEAR = 0.8
"""Share of a layer's time from which on a part takes as long as the layer."""
LEAST_SHARE = 0.1
"""Loss, as a share of the layer's time, below which there is none."""
ALONE_S, ROUNDS = 0.1, range(5, 200)
"""Seconds and rounds in which convolutions are timed alone."""
REST = "(all else)"
"""Name of the line of all that is no convolution."""
CAUSES = {
    "launch": "starting operations (one without work takes as long)",
    "moves": "gathers, copies and sums outside of the convolutions",
    "memory": "memory bandwidth (a copy of as many bytes takes as long)",
    "vectors": "widths that fill no vectors (wider convolutions take as long)",
    "no convolution": "pooling, linear layers and single operations",
    "other": "causes that are not measured here",
}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Measured milliseconds of a packed layer, and of what bounds it.

    ms          the layer in its place
    moves_ms    its operations outside of convolutions
    launch_ms   its convolutions without work
    memory_ms   a copy of as many bytes as the layer moves
    vectors_ms  time in its convolutions for vectors that are not full
    """

    ms: float
    moves_ms: float
    launch_ms: float
    memory_ms: float
    vectors_ms: float

    def cause(self, due_ms: float) -> str:
        """Return the cause of most of the time beyond `due_ms`, "" without such time."""
        lost_ms, conv_ms = self.ms - due_ms, self.ms - self.moves_ms
        if lost_ms <= LEAST_SHARE * self.ms:
            return ""
        is_launch = self.launch_ms >= NEAR * conv_ms
        is_memory = self.memory_ms >= NEAR * conv_ms and not is_launch
        explained = {
            "launch": self.launch_ms,
            "moves": self.moves_ms,
            "memory": conv_ms if is_memory else 0.0,
            "vectors": 0.0 if is_memory or is_launch else self.vectors_ms,
        }
        name = max(explained, key=explained.__getitem__)
        return name if explained[name] >= lost_ms / 2 else "other"


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A layer of both networks; `form` is the packed execution.

    macs_left, time_left  shares of the dense layer's
    parts                 of the form in which the cause is measured; None if the layer is not there
    """

    layer: str
    form: str
    macs_left: float
    time_left: float
    dense_ms: float
    packed_ms: float
    lost_ms: float
    cause: str
    parts: Parts | None


@dataclass(frozen=True, kw_only=True)
class _Call:
    """Calls of a convolution in one pass.

    shape   of the first call's input; the last part of a batch may be smaller
    pixels  of the outputs of all calls
    """

    shape: tuple[int, ...]
    pixels: int
    count: int


@dataclass(frozen=True, kw_only=True)
class _Network:
    """A network with its run, its profile and the calls of its convolutions by layer."""

    run: Run
    profile: Profile
    choice: packing.Choice
    calls: dict[str, list[tuple[FusedConv, _Call]]]

    def macs(self, layer: str) -> int:
        """Return the MACs that the layer computes for the batch, those by zero included."""
        return sum(call.pixels * conv.weight.shape.numel() for conv, call in self.calls[layer])


How = packing.Choice | str
"""Executions of the layers as chosen earlier, or the name of one for all layers."""


@torch.inference_mode()
def losses(
    graph: Graph,
    plan: PruningPlan,
    networks: tuple[packing.PackedNetwork, packing.PackedNetwork],
    how: tuple[How, How],
    images: Tensor,
    timing: Timing,
) -> list[Loss]:
    """Return a line for each layer and one for the rest, most lost time first.

    networks   the dense and the packed network
    how        their executions in `timing.runtime`
    Raises ValueError on a GPU, and if the runtime does not run here or has no profiler.
    """
    if timing.device != "cpu":
        raise ValueError(f"the time that layers lose is measured on the CPU, and the device is {timing.device}")
    built = [_network(network, one, images, timing) for network, one in zip(networks, how, strict=True)]
    alike = dataclasses.replace(timing, layout=built[1].choice.layout)  # as the packed network
    dense, packed, groups = _scaled([*built, _network(networks[1], GROUPS, images, alike)])
    macs, left = (graph.layer_macs(graph.live(one)) for one in (PruningPlan({}), plan))
    unit = Peak(macs_per_s=1, bytes_per_s=1)
    moved = {one.name: one.bytes for one in layer_bounds(graph, plan, unit, batch=len(images), dtype=images.dtype)}
    alone, lines = _Alone(timing, packed.choice.layout, images.dtype), []
    for name in graph.convs:
        parts = None
        if name in packed.calls:
            zeros = packed.macs(name) > ZEROS_X * len(images) * left[name]
            parts = alone.parts(groups if zeros else packed, name, moved[name])
        times_ms = [network.profile.module_ms.get(name, 0.0) for network in (dense, packed)]
        lines.append(_line(name, packed.choice.layers.get(name, ""), left[name] / macs[name], times_ms, parts))
    rest_ms = [
        sum(ms for name, ms in network.profile.module_ms.items() if name not in graph.convs)
        for network in (dense, packed)
    ]
    lines.append(_line(REST, "", sum(left.values()) / sum(macs.values()), rest_ms, None))
    return sorted(lines, key=lambda line: -line.lost_ms)


def _line(layer: str, form: str, macs_left: float, times_ms: Sequence[float], parts: Parts | None) -> Loss:
    dense_ms, packed_ms = times_ms
    lost_ms = packed_ms - macs_left * dense_ms
    cause = "no convolution" if parts is None else parts.cause(macs_left * dense_ms)
    return Loss(
        layer=layer,
        form=form,
        macs_left=macs_left,
        time_left=packed_ms / dense_ms if dense_ms else 0.0,
        dense_ms=dense_ms,
        packed_ms=packed_ms,
        lost_ms=lost_ms,
        cause=cause if lost_ms > LEAST_SHARE * packed_ms else "",
        parts=parts,
    )


def _network(packed: packing.PackedNetwork, how: How, images: Tensor, timing: Timing) -> _Network:
    """Build a network in the runtime, and profile it."""
    choice, execution = (None, how) if isinstance(how, str) else (how, None)
    if timing.runtime == "torch":
        layout = timing.layout if choice is None else None
        built, made = packing.tuned(packed, images, choice=choice, execution=execution, layout=layout)
        network, values = cast(fx.GraphModule, built), images
        run: Run = functools.partial(network, images)
        profile = node_profile(network, images, timing.device)
    else:
        network, made = packing.tuned_for(packed, images, timing.runtime, choice=choice, execution=execution)
        values = images.contiguous().float()
        in_runtime = compiled(network, [values], timing.runtime, timing.precision)
        run, profile = in_runtime.run, in_runtime.profile()
    if not profile.module_ms:
        raise ValueError(f"{timing.runtime} has no profile of layers here")
    return _Network(run=run, profile=profile, choice=made, calls=_calls(network, values, made.layers))


def _calls(network: fx.GraphModule, images: Tensor, layers: Iterable[str]) -> dict[str, list[tuple[FusedConv, _Call]]]:
    """Return layer -> its convolutions with their calls in a pass."""
    calls: dict[nn.Module, list[tuple[tuple[int, ...], int]]] = defaultdict(list)
    convs = {name: convolutions(network, name) for name in layers}

    def called(conv: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[conv].append((tuple(inputs[0].shape), output.shape[0] * output.shape[2:].numel()))

    hooks = [conv.register_forward_hook(called) for parts in convs.values() for conv in parts]
    network(images)
    for hook in hooks:
        hook.remove()
    made = {
        conv: _Call(shape=parts[0][0], pixels=sum(pixels for _, pixels in parts), count=len(parts))
        for conv, parts in calls.items()
    }
    return {name: [(conv, made[conv]) for conv in parts] for name, parts in convs.items()}


def _scaled(networks: Sequence[_Network]) -> list[_Network]:
    """Scale the profiles to the times of whole runs, which no profiler slows."""
    runs = {str(number): network.run for number, network in enumerate(networks)}
    run_ms = least_ms(runs, "cpu", seconds=2, counts=range(5, 60), **steady_clock("cpu"))
    result = []
    for network, ms in zip(networks, run_ms.values(), strict=True):
        factor = ms / sum(network.profile.module_ms.values())
        module_ms, conv_ms = (
            {name: factor * one for name, one in times.items()}
            for times in (network.profile.module_ms, network.profile.conv_ms)
        )
        result.append(dataclasses.replace(network, profile=Profile(module_ms=module_ms, conv_ms=conv_ms)))
    return result


class _Alone:
    """Times of convolutions alone in a runtime; equal ones are timed once."""

    def __init__(self, timing: Timing, layout: Layout, dtype: torch.dtype) -> None:
        self.timing, self.layout, self.dtype = timing, layout, dtype
        self.times_ms: dict[Any, tuple[float, ...]] = {}

    def parts(self, network: _Network, layer: str, moved: int) -> Parts:
        """Return what bounds the layer, which moves so many bytes."""
        ms = network.profile.module_ms[layer]
        conv_ms = network.profile.conv_ms.get(layer, 0.0)
        total_ms = launch_ms = unfilled_ms = 0.0
        for conv, call in network.calls[layer]:
            own_ms, wider_ms, empty_ms = self._times(conv, call)
            total_ms += call.count * own_ms
            launch_ms += call.count * min(empty_ms, own_ms)
            work_ms, more = max(own_ms - empty_ms, 0.0), _rounded_macs(conv) / conv.weight.shape.numel()
            unfilled_ms += call.count * max(0.0, work_ms - max(wider_ms - empty_ms, 0.0) / more)
        share = conv_ms / total_ms if total_ms else 0.0
        return Parts(
            ms=ms,
            moves_ms=ms - conv_ms,
            launch_ms=share * launch_ms,
            memory_ms=self._copy_ms(moved),
            vectors_ms=share * unfilled_ms,
        )

    def _times(self, conv: FusedConv, call: _Call) -> tuple[float, ...]:
        """Return the milliseconds of the convolution, of a wider one, and of one without work."""
        filters, channels, *kernel = conv.weight.shape
        padding, stride, dilation, groups = conv.window
        window: Any = stride, padding, dilation, groups
        key = (tuple(conv.weight.shape), str(conv.window), call.shape)
        if key not in self.times_ms:
            images, _, *pixels = call.shape
            least = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
            per_group = filters // groups
            sizes = [
                (per_group, channels, images, pixels),
                (_up(per_group), _up(channels), images, pixels),
                (1, 1, 1, least),
            ]
            cases = []
            for some_filters, some_channels, batch, map_size in sizes:
                widths = some_channels * groups, some_filters * groups
                module = nn.Conv2d(*widths, cast(Any, tuple(kernel)), *window)
                cases.append((module, torch.randn(batch, widths[0], *map_size)))
            self.times_ms[key] = self._in_torch(cases) if self.timing.runtime == "torch" else self._in_runtime(cases)
        return self.times_ms[key]

    def _in_torch(self, cases: Sequence[tuple[nn.Conv2d, Tensor]]) -> tuple[float, ...]:
        runs = {}
        for number, (conv, values) in enumerate(cases):
            x = values.to(self.dtype, memory_format=FORMATS[self.layout])
            weight, bias = (cast(Tensor, one).detach().to(self.dtype) for one in (conv.weight, conv.bias))
            runs[str(number)] = functools.partial(FusedConv(conv, weight, bias, conv.groups, True, x), x)
        ms = least_ms(runs, "cpu", seconds=ALONE_S, counts=ROUNDS, **steady_clock("cpu"))
        return tuple(ms.values())

    def _in_runtime(self, cases: Sequence[tuple[nn.Conv2d, Tensor]]) -> tuple[float, ...]:
        """Time between two convolutions, as in `suite.pack.tuned_for`."""
        times = []
        for conv, x in cases:
            outside = torch.randn(len(x), NEIGHBOUR, *x.shape[2:])
            made = compiled(between(conv, [x]), [outside], self.timing.runtime, self.timing.precision)
            times.append(made.profile().module_ms["layer"])
        return tuple(times)

    def _copy_ms(self, moved: int) -> float:
        """Return the milliseconds of a copy that reads and writes `moved` bytes in all."""
        source = torch.ones(max(1, moved // 8))
        target = torch.empty_like(source)
        run = functools.partial(target.copy_, source)
        return least_ms({"copy": run}, "cpu", seconds=ALONE_S / 3, counts=ROUNDS, **steady_clock("cpu"))["copy"]


def _up(width: int) -> int:
    """Return the width rounded up to whole vectors."""
    return -(-width // VECTOR) * VECTOR


def _rounded_macs(conv: FusedConv) -> int:
    """Return the weights of the convolution with widths of whole vectors."""
    filters, channels, *kernel = conv.weight.shape
    groups = conv.window[3]
    return groups * _up(filters // groups) * _up(channels) * math.prod(kernel)


def columns(
    networks: tuple[Network, Network],
    names: tuple[str, str],
    choices: Sequence[Mapping[str, packing.Choice]],
    timing: Timing,
) -> dict[str, Any]:
    """Return the lines of all layers and their summary in words, or {"missing": reason}.

    networks   dense and packed; names: their executions in the measurement; choices: those of their layers
    """
    dense, packed = (network.packed for network in networks)
    if dense is None or packed is None:
        return {"missing": "only packed networks have layers to compare"}
    in_runtime = {runtime(name) for name in names}
    if len(in_runtime) > 1:
        return {"missing": "the networks run in two runtimes"}
    if COMPILED in in_runtime:
        return {"missing": "torch.compile has no profile of layers here"}
    try:
        timing = dataclasses.replace(timing, runtime=cast(Runtime, in_runtime.pop()))
        how = tuple(by_name.get(name, name) for name, by_name in zip(names, choices, strict=True))
        graph, plan = graph_and_plan(networks[1])
        images = random_images(timing, graph.input_shape)
        lines = losses(graph, plan, (dense, packed), cast(tuple[How, How], how), images, timing)
    except ValueError as reason:
        return {"missing": str(reason)}
    return {"text": text(lines), "layers": [dataclasses.asdict(line) for line in lines]}


def text(lines: Sequence[Loss]) -> str:
    """Return in words where the time of the packed network goes."""
    dense_ms, packed_ms = (sum(getattr(line, name) for line in lines) for name in ("dense_ms", "packed_ms"))
    lost = [line for line in lines if line.cause]
    total_ms = sum(line.lost_ms for line in lost)
    macs_left = next(line.macs_left for line in lines if line.layer == REST)
    start = f"{macs_left:.0%} of the MACs and {packed_ms / dense_ms:.0%} of the time are left"
    if not lost:
        return f"{start}: no layer takes more than its share of the MACs"
    by_cause: dict[str, list[Loss]] = defaultdict(list)
    for line in lost:
        by_cause[line.cause].append(line)
    ranked = sorted(by_cause.items(), key=lambda item: -sum(line.lost_ms for line in item[1]))
    parts = []
    for cause, members in ranked:
        most = max(members, key=lambda line: line.lost_ms)
        where = "" if most.layer == REST else f", most in {most.layer}"
        parts.append(f"{sum(line.lost_ms for line in members) / total_ms:.0%} {CAUSES[cause]}{where}")
    return f"{start}; {total_ms:.3g} of {packed_ms:.3g} ms are beyond the share of MACs: {'; '.join(parts)}"
