"""Layer times on one device, for predicting the time of a plan.

Random plans are packed and run; every layer is timed in its place in the network. For each geometry the time is fitted by a
few terms: convolutions, their filters and channels, multiply-accumulates, the same in whole vectors, channels gathered or
sliced, filters copied into place, filters added to a residual sum, channels of a sum that change their order. All else (pooling,
the linear layer) counts as constant.

Shapes: T terms, N layers in networks.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from suite import jsonfile, records
from suite import pack as packing
from suite.files import write_json
from suite.graph import Graph, Live
from suite.measure.executions import random_images
from suite.measure.networks import flush_denormals
from suite.pack.operations import PIECES, FusedConv
from suite.pack.runtimes import Compiled, Profile, compiled
from suite.plan import ConvPlan, PruningPlan, Timing
from suite.select import same_layers, sets_of_scope, without_sets
from suite.timing import least_ms, steady_clock

TERMS = (
    *("convolutions", "filters", "channels", "macs", "vector_macs"),
    *("gathered", "sliced", "written", "summed", "moved"),
)
"""Quantities of a layer to which its time is proportional; MACs are those of one output pixel and kernel element."""
VECTOR = 16
"""Floats of an AVX-512 register, in which oneDNN blocks channels; the halves of two tensor-core steps."""
EXECUTIONS = ("groups", "union")
PLANS = 64
"""Random plans that are measured."""
ROUNDS = 3
"""Fits of a geometry's costs, each weighted by the one before."""
REPEATS = 6
"""Passes in which layers are timed; the least time counts."""


@dataclass(frozen=True, kw_only=True)
class LayerTable:
    """Layer times for one device, runtime, precision, layout and batch.

    layers      layer -> name of its geometry
    costs       geometry -> milliseconds of each of `TERMS`
    dense_ms    measured time of the dense network
    rest_ms     time of all but the convolutions
    provenance  where and when the table was measured
    """

    timing: Timing
    threads: int
    layers: dict[str, str]
    costs: dict[str, tuple[float, ...]]
    dense_ms: float
    rest_ms: float
    provenance: dict[str, Any]

    def predict_ms(self, graph: Graph, plan: PruningPlan) -> float:
        """Return the predicted time of the packed network in its fastest execution.

        The dense network has its measured time.
        """
        live = graph.live(plan)
        if all(bool(layer.mask_OI.all()) for layer in live.layers.values()):
            return self.dense_ms
        times = [[self._layer_ms(graph, live, name, each) for name in self.layers] for each in EXECUTIONS]
        if self.timing.protocol == "full":  # every layer has its own execution
            return self.rest_ms + sum(map(min, *times))
        return self.rest_ms + min(map(sum, times))

    def cut(self, graph: Graph, plan: PruningPlan) -> float:
        """Return the predicted share of the dense network's time that `plan` removes."""
        return 1 - self.predict_ms(graph, plan) / self.dense_ms

    def _layer_ms(self, graph: Graph, live: Live, name: str, execution: str) -> float:
        counts = terms(graph, live, name, execution, in_parts(self.timing))
        return float(counts @ np.array(self.costs[self.layers[name]]))


def terms(graph: Graph, live: Live, name: str, execution: str, batch: int = 0) -> np.ndarray:
    """Return `TERMS` of a layer in a live network [T].

    All are 0 for a removed layer.
    execution   "union" merges the filter groups, "groups" has a convolution for each
    batch       images that torch convolves in parts on a CPU, if it gathers or slices channels; 0: in one part
    """
    groups = live.layers[name].groups
    if not groups:
        return np.zeros(len(TERMS))
    source = graph.conv_nodes[name].all_input_nodes[0]
    width = int(live.channels[source].sum())
    filters, union = sum(len(rows) for rows, _ in groups), len(torch.cat([reads for _, reads in groups]).unique())
    is_stream = len(source.users) > 1  # a producer with one reader orders its channels so that two groups read slices
    total, addend = _sum_widths(graph, live, name)
    if len(groups) == 1 or execution == "union":  # the convolution writes all channels of a sum, by filters of 0
        parts, written, summed, moved = [(total or filters, union)], 0, 0, total if addend < total else 0
    else:  # the sum gets the order of the groups, then ReLU in a pass of its own
        parts = [(len(rows), len(reads)) for rows, reads in groups]
        written, summed, moved = 0 if total else filters, filters if total else 0, total
    partial = [reads for _, reads in parts if reads < width]
    gathers = is_stream or len(parts) > 2
    pixels = math.prod(source.meta["value"].shape[2:])
    steps = -(-batch // max(1, PIECES["any"] // (max(partial) * pixels))) if partial and batch else 1
    if steps > 1 and not total:
        written = sum(f for f, _ in parts)
    macs, vector_macs = sum(f * c for f, c in parts), sum(-f // VECTOR * (-c // VECTOR) for f, c in parts) * VECTOR**2
    counts = {
        "convolutions": steps * len(parts),
        "filters": sum(f for f, _ in parts),
        "channels": sum(c for _, c in parts),
        "macs": macs,
        "vector_macs": vector_macs,
        "gathered": sum(partial) if gathers else 0,
        "sliced": 0 if gathers else sum(partial),
        "written": written,
        "summed": summed,
        "moved": moved,
    }
    return np.array([counts[name] for name in TERMS], dtype=float)


def in_parts(timing: Timing) -> int:
    """Return the images of a batch if torch convolves it in parts, else 0 (`terms`)."""
    return timing.batch if timing.device == "cpu" and timing.runtime == "torch" else 0


def _sum_widths(graph: Graph, live: Live, name: str) -> tuple[int, int]:
    """Return the widths of a layer's residual sum and of the sum's other operand.

    Both are 0 if no sum is computed with the layer. Of two convolutions the one with fewer groups computes the sum, else the last
    (`suite.pack.fuse`).
    """
    own = _sum_behind(graph, name)
    if own is None:
        return 0, 0
    (total,) = own.users
    behind = {conv: _sum_behind(graph, conv) for conv, layer in live.layers.items() if layer.groups}
    rivals = [conv for conv, operand in behind.items() if operand is not None and total in operand.users]
    addends = [int(live.channels[operand].sum()) for operand in total.all_input_nodes if operand is not own]
    if min(reversed(rivals), key=lambda conv: len(live.layers[conv].groups)) != name or not any(addends):
        return 0, 0
    return int(live.channels[total].sum()), addends[0]


def _sum_behind(graph: Graph, name: str) -> fx.Node | None:
    """Return the convolution or its batch norm if only a residual sum reads it."""
    node = graph.conv_nodes[name]
    while len(node.users) == 1:
        (user,) = node.users
        if graph.kinds[user] != "bn":
            return node if graph.kinds[user] == "sum" else None
        node = user
    return None


def measure_table(model: nn.Module, graph: Graph, timing: Timing) -> LayerTable:
    """Time random plans of a network in eval mode, and fit the terms.

    The number of threads is torch's. Each plan is timed beside the dense network, and its layers' times are shares of its
    time. All times are multiples of the dense one, so that a machine whose speed changes meanwhile does not bend the table.
    Layers' shares are those of torch's nodes, or of the profiler of another runtime.
    Raises ValueError if the runtime does not run here or has no profiler.
    """
    images, layers = random_images(timing, cast(Any, graph.input_shape)), geometries(graph)
    dense = prepared(model, graph, PruningPlan({}), images, timing, "groups")
    device = timing.device
    how = steady_clock(device)
    dense_ms = least_ms({"dense": dense.run}, device, 2, seconds=1, counts=range(6, 60), **how)["dense"]
    samples: dict[str, list[tuple[np.ndarray, float]]] = defaultdict(list)
    rests = []
    generator = torch.Generator().manual_seed(0)
    for number in range(PLANS):
        plan = random_plan(graph, generator, number) if number else PruningPlan({})
        live = graph.live(plan)
        names = EXECUTIONS if any(len(layer.groups) > 1 for layer in live.layers.values()) else EXECUTIONS[:1]
        networks = {name: prepared(model, graph, plan, images, timing, name) for name in names}
        runs = {name: network.run for name, network in {"dense": dense, **networks}.items()}
        whole_ms = least_ms(runs, device, seconds=0.15, counts=range(4, 24), **how)
        for name, network in networks.items():
            node_ms = network.profile().module_ms
            if not node_ms:
                raise ValueError(f"{timing.runtime} has no profile of layers here: plan for another runtime")
            factor = dense_ms * whole_ms[name] / whole_ms["dense"] / sum(node_ms.values())
            rests.append(factor * sum(ms for node, ms in node_ms.items() if node not in layers))
            for layer, geometry in layers.items():
                if layer in node_ms:
                    counts = terms(graph, live, layer, name, in_parts(timing))
                    samples[geometry].append((counts, factor * node_ms[layer]))
    return LayerTable(
        timing=timing,
        threads=torch.get_num_threads(),
        layers=layers,
        costs={geometry: _fitted(samples[geometry]) for geometry in dict.fromkeys(layers.values())},
        dense_ms=dense_ms,
        rest_ms=float(np.median(rests)),
        provenance=records.provenance(timing.device),
    )


def _fitted(samples: list[tuple[np.ndarray, float]]) -> tuple[float, ...]:
    """Return the costs of the terms, none negative, of least squared relative error.

    Errors are relative to predictions of the round before: relative to noisy measurements, long times count too little, and
    costs are too low.
    """
    from scipy.optimize import nnls  # a fifth of a second that a dry run need not pay

    terms_NT, ms_N = np.array([one for one, _ in samples]), np.array([ms for _, ms in samples])
    scale_N = ms_N
    for _ in range(ROUNDS):
        costs_T = nnls(terms_NT / scale_N[:, None], ms_N / scale_N)[0]
        scale_N = np.maximum(terms_NT @ costs_T, 1e-3 * ms_N)
    return tuple(costs_T.tolist())


def prepared(
    model: nn.Module, graph: Graph, plan: PruningPlan, images: Tensor, timing: Timing, execution: str
) -> Compiled:
    """Return the packed network in the timing's runtime, with one execution for all layers."""
    packed = packing.pack(model, graph, plan).eval()
    flush_denormals(packed)
    if timing.runtime == "torch":
        network = cast(fx.GraphModule, packing.tuned(packed, images, execution=execution, layout=timing.layout)[0])
        profile = functools.partial(node_profile, network, images, timing.device)
        return Compiled(run=functools.partial(network, images), profile=profile)
    network, _ = packing.tuned_for(packed, images, timing.runtime, execution=execution)
    values = images.contiguous().to(torch.float32 if timing.device == "cpu" else images.dtype)
    return compiled(network, [values], timing.runtime, timing.precision)


class _NodeTimes(fx.Interpreter):
    """Run with pairs of marks, seconds or CUDA events, of nodes and of their convolutions."""

    def __init__(self, network: fx.GraphModule, mark: Callable[[], Any]) -> None:
        super().__init__(network)
        self.mark = mark
        self.marks: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
        self.convs: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    def run_node(self, n: fx.Node) -> Any:
        """Run the node between two marks."""
        started = self.mark()
        result = super().run_node(n)
        self.marks[str(n.target)].append((started, self.mark()))
        return result

    def watch(self, layer: str, conv: nn.Module) -> list[Any]:
        """Mark each call of a convolution of a layer; return the hooks."""
        starts: list[Any] = []

        def ended(*_: Any) -> None:
            self.convs[layer].append((starts.pop(), self.mark()))

        return [
            conv.register_forward_pre_hook(lambda *_: starts.append(self.mark())),
            conv.register_forward_hook(ended),
        ]


def node_profile(network: fx.GraphModule, images: Tensor, device: str) -> Profile:
    """Return the least milliseconds over `REPEATS` passes by target, each node in its place.

    Nodes with one target, such as the calls of a repeated layer, count together.
    """
    least, least_conv = dict[str, float](), dict[str, float]()
    times = _NodeTimes(
        network, _event if device == "cuda" else time.process_time if steady_clock(device) else time.perf_counter
    )
    layers = [str(node.target) for node in network.graph.nodes if node.op == "call_module"]
    hooks = [hook for name in layers for conv in convolutions(network, name) for hook in times.watch(name, conv)]
    with torch.inference_mode():
        for _ in range(REPEATS):
            times.marks.clear()
            times.convs.clear()
            times.run(images)
            if device == "cuda":
                torch.cuda.synchronize()
            for result, marks in ((least, times.marks), (least_conv, times.convs)):
                for name, pairs in marks.items():
                    result[name] = min(sum(_ms(*pair) for pair in pairs), result.get(name, float("inf")))
    for hook in hooks:
        hook.remove()
    return Profile(module_ms=least, conv_ms=least_conv)


def convolutions(network: nn.Module, layer: str) -> list[FusedConv]:
    """Return the convolutions of a layer of a tuned network."""
    return [part for part in network.get_submodule(layer).modules() if isinstance(part, FusedConv)]


def _ms(started: Any, ended: Any) -> float:
    """Return the milliseconds between two marks."""
    on_gpu = isinstance(started, torch.cuda.Event)
    return float(started.elapsed_time(ended) if on_gpu else 1e3 * (ended - started))


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def random_plan(graph: Graph, generator: torch.Generator, number: int) -> PruningPlan:
    """Return a random plan of one of four kinds, by turns.

    The kinds are filters of tied layers, two filter groups, up to four groups where closing layers lose filters, and filters of
    each layer alone, which leave residual streams wide. Every second plan of tied filters has widths in multiples of half a
    vector.
    """
    kind = number % 4
    if kind in (0, 3):
        sets = graph.filter_sets if kind == 0 else sets_of_scope(graph, "untied")
        kept_S = torch.zeros(1 + max(int(ids.max()) for ids in sets.values()), dtype=torch.bool)
        for family in same_layers(sets):
            count = _share(len(family), generator, VECTOR // 2 if number % 8 == 4 else 1)
            kept_S[family[torch.randperm(len(family), generator=generator)[:count]]] = True
        return without_sets(graph, sets, kept_S)
    layers = {}
    for name, conv in graph.convs.items():
        if conv.prunable:
            groups = 2 if kind == 1 else int(torch.randint(2, 5, (), generator=generator))
            count = _share(conv.channels, generator, 1)
            rank_GI = torch.rand(groups, conv.channels, generator=generator).argsort(dim=1).argsort(dim=1)
            kept_O = torch.ones(conv.filters, dtype=torch.bool)
            if kind == 2 and conv.role == "closing":
                kept_O = torch.randperm(conv.filters, generator=generator) < _share(conv.filters, generator, 1)
            group_O = torch.randperm(conv.filters, generator=generator) % groups
            layers[name] = ConvPlan(group_O, rank_GI < count, kept_O)
    return PruningPlan(layers)


def _share(width: int, generator: torch.Generator, multiple: int) -> int:
    """Return a random part of a width, rounded up to a multiple."""
    share = 0.1 + 0.9 * float(torch.rand((), generator=generator))
    return min(width, -(-max(1, round(share * width)) // multiple) * multiple)


def geometries(graph: Graph) -> dict[str, str]:
    """Return layer -> its geometry as text; layers of equal text have equal costs."""
    texts = {}
    for name in graph.convs:
        conv = cast(nn.Conv2d, graph.modules[name])
        size = tuple(graph.conv_nodes[name].all_input_nodes[0].meta["value"].shape[2:])
        text = f"{conv.out_channels}x{conv.in_channels} kernel {conv.kernel_size} stride {conv.stride} padding {conv.padding}"
        texts[name] = f"{text} dilation {conv.dilation} on {size}"
    return texts


def save(table: LayerTable, path: Path) -> None:
    """Write the table as JSON, atomically."""
    write_json(path, dataclasses.asdict(table))


def load(path: Path) -> LayerTable:
    """Read a table. Raises FileNotFoundError, or ValueError if `save` did not write the file."""
    try:
        return jsonfile.read(path, LayerTable)
    except ValueError as error:
        raise ValueError(
            f"{path} holds no table of layer times ({error}); delete it to have it measured again"
        ) from error
