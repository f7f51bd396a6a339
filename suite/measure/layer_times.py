"""Table of layer times on one device, for predicting the time of a plan.

A sweep times every convolution of the network over filters x channels, alone, in the fused form of `suite.pack`. Layers of equal
geometry share a sweep. The time of a layer with several filter groups is the smaller of two: the sum of its groups with the
gathers of their inputs, and one convolution over the union of the channels. The rest of the network (pooling, the linear layer,
residual sums) is the time of the dense network minus its layers, and counts as constant.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from suite import jsonfile, records
from suite.files import write_json
from suite.graph import Graph
from suite.measure.protocol import DTYPES
from suite.pack.choice import FORMATS
from suite.pack.operations import FusedConv
from suite.plan import ConvPlan, PruningPlan, Timing
from suite.timing import Run, cpu_seconds, least_ms

STEPS = 8
"""Widths per axis of a sweep; every time between them is interpolated."""
ROUNDS, REPEATS = range(4, 12), 6
"""Most of the repeats find input and weights in the cache, as layers of a network do."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Times of one layer geometry.

    ms_FC       milliseconds at each number of filters and channels
    gather_ms   milliseconds to gather one channel of the input
    """

    filters: tuple[int, ...]
    channels: tuple[int, ...]
    ms_FC: tuple[tuple[float, ...], ...]
    gather_ms: float

    def ms(self, filters: int, channels: int) -> float:
        """Interpolate between the four nearest points; no filters or channels take no time."""
        if not filters or not channels:
            return 0.0
        at_F = [float(np.interp(channels, self.channels, row)) for row in self.ms_FC]
        return float(np.interp(filters, self.filters, at_F))


@dataclass(frozen=True, kw_only=True)
class LayerTable:
    """Layer times for one device, precision, layout and batch.

    layers      layer -> name of its geometry
    dense_ms    measured time of the dense network
    provenance  where and when the table was measured
    """

    timing: Timing
    threads: int
    layers: dict[str, str]
    sweeps: dict[str, Sweep]
    dense_ms: float
    provenance: dict[str, Any]

    def predict_ms(self, graph: Graph, plan: PruningPlan) -> float:
        """Return the predicted time of the packed network."""
        return self._rest_ms(graph) + self._scale(graph) * self._layers_ms(graph, plan)

    def cut(self, graph: Graph, plan: PruningPlan) -> float:
        """Return the predicted share of the dense network's time that `plan` removes."""
        return 1 - self.predict_ms(graph, plan) / self.dense_ms

    def _layers_ms(self, graph: Graph, plan: PruningPlan) -> float:
        live = graph.live(plan)
        return sum(self.layer_ms(name, layer) for name, layer in live.layers.items())

    def layer_ms(self, name: str, layer: ConvPlan) -> float:
        """Return the time of one layer of a settled plan."""
        sweep, groups = self.sweeps[self.layers[name]], layer.groups
        if not groups:
            return 0.0
        union = len(torch.cat([channels for _, channels in groups]).unique())
        filters = sum(len(rows) for rows, _ in groups)
        merged = sweep.ms(filters, union)
        if len(groups) == 1:
            return merged
        apart = sum(sweep.ms(len(rows), len(channels)) + sweep.gather_ms * len(channels) for rows, channels in groups)
        return min(merged + sweep.gather_ms * (union if union < len(layer.kept_GI[0]) else 0), apart)

    def _dense_layers_ms(self, graph: Graph) -> float:
        return self._layers_ms(graph, PruningPlan({}))

    def _scale(self, graph: Graph) -> float:
        """Return the factor by which all layers fit into the time of the dense network."""
        return min(1.0, self.dense_ms / self._dense_layers_ms(graph))

    def _rest_ms(self, graph: Graph) -> float:
        return max(0.0, self.dense_ms - self._dense_layers_ms(graph))


def measure_table(graph: Graph, timing: Timing, dense: Run) -> LayerTable:
    """Time the sweeps of all layer geometries, with torch's number of threads.

    dense   one run of the dense network under the same conditions. It is timed in the rounds of each sweep, and all times are
            multiples of it, so that a machine whose speed changes between sweeps does not bend the table.
    """
    dense_ms = least_ms({"dense": dense}, timing.device, 2, seconds=2, counts=range(10, 60), **clock(timing.device))[
        "dense"
    ]
    layers, sweeps = geometries(graph), dict[str, Sweep]()
    for name, key in layers.items():
        if key not in sweeps:
            conv = cast(nn.Conv2d, graph.modules[name])
            sweeps[key] = _sweep(conv, _input_size(graph, name), timing, dense, dense_ms)
    return LayerTable(
        timing=timing,
        threads=torch.get_num_threads(),
        layers=layers,
        sweeps=sweeps,
        dense_ms=dense_ms,
        provenance=records.provenance(timing.device),
    )


def geometries(graph: Graph) -> dict[str, str]:
    """Return layer -> its geometry as text; layers of equal text take equal time."""
    texts = {}
    for name in graph.convs:
        conv = cast(nn.Conv2d, graph.modules[name])
        text = f"{conv.out_channels}x{conv.in_channels} kernel {conv.kernel_size} stride {conv.stride} padding {conv.padding}"
        texts[name] = f"{text} dilation {conv.dilation} on {_input_size(graph, name)}"
    return texts


def _input_size(graph: Graph, name: str) -> tuple[int, ...]:
    """Return height and width of a layer's input."""
    return tuple(graph.conv_nodes[name].all_input_nodes[0].meta["value"].shape[2:])


def _widths(most: int) -> tuple[int, ...]:
    """Return 1 and the multiples of an eighth of the width."""
    return tuple(sorted({1, *(max(1, round(most * step / STEPS)) for step in range(1, STEPS + 1))}))


def _sweep(conv: nn.Conv2d, size: tuple[int, ...], timing: Timing, dense: Run, dense_ms: float) -> Sweep:
    filters, channels = _widths(conv.out_channels), _widths(conv.in_channels)
    runs: dict[str, Run] = {"dense": dense}
    for c in channels:
        x = torch.randn(timing.batch, c, *size, device=timing.device, dtype=DTYPES[timing.precision])
        x = x.to(memory_format=FORMATS[timing.layout])
        for f in filters:
            weight = torch.randn(f, c, *conv.kernel_size).to(x)
            fused = FusedConv(cast(Any, conv), weight, torch.zeros(f).to(x), 1, True, x)
            runs[f"{f} {c}"] = functools.partial(fused, x)
    half = torch.arange(0, x.shape[1], 2, device=x.device)
    runs["gather"] = functools.partial(_gather, x, half)
    least = least_ms(runs, timing.device, REPEATS, seconds=2.0, counts=ROUNDS, **clock(timing.device))
    scale = dense_ms / least["dense"]
    return Sweep(
        filters=filters,
        channels=channels,
        ms_FC=tuple(tuple(scale * least[f"{f} {c}"] for c in channels) for f in filters),
        gather_ms=scale * least["gather"] / len(half),
    )


def clock(device: str) -> dict[str, Any]:
    """Return the clock of a table: CPU time with one thread, else the wall clock."""
    return {"clock": cpu_seconds} if device == "cpu" and torch.get_num_threads() == 1 else {}


def _gather(x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(1, index)


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
