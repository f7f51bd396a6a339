"""Least time of a packed network on paper, by arithmetic and memory traffic per layer.

A layer must do its MACs, no faster than a large matrix product does them, and must read its live input channels and its
weights and write its output once each, no faster than a large copy moves bytes. A layer that is called several times reads its
weights once. The larger of the two is its bound; the network's is their sum. Batch norm, activations and residual sums count as
free. On a CPU, tensors that stay in the cache can be faster than the copy, so a layer bound by memory may beat its bound there.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from suite.graph import Graph, Live
from suite.graph.operators import Grouped
from suite.graph.table import shape
from suite.plan import PruningPlan
from suite.timing import Run, least_ms

KINDS = ("conv", "grouped", "linear", "fixed")
"""Kinds of operators with multiply-accumulates."""


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Measured peak rates of this machine."""

    macs_per_s: float
    bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class LayerBound:
    """Work of all calls of one layer for a batch, and their least time."""

    name: str
    macs: int
    bytes: int
    arithmetic_ms: float
    memory_ms: float

    @property
    def bound_ms(self) -> float:
        """The larger of arithmetic and memory time."""
        return max(self.arithmetic_ms, self.memory_ms)


def layer_bounds(graph: Graph, plan: PruningPlan, peak: Peak, *, batch: int, dtype: torch.dtype) -> list[LayerBound]:
    """Return the bounds of the layers (convolution, linear) that `plan` leaves.

    They are in the order of their first calls. Their MACs sum to `graph.macs(plan).total` for each image of the batch.
    """
    live = graph.live(plan)
    macs = {name: count for name, count in graph.layer_macs(live).items() if count}
    weights, moved, positions = dict[str, int](), defaultdict[str, int](int), defaultdict[str, int](int)
    for node, rule in graph.operators.items():
        name = str(node.target)
        if rule.kind not in KINDS or name not in macs or not bool(live.channels[node].any()):
            continue
        layer: Any = graph.modules[name]
        read, written = _channels(graph, live, node)
        kernel = math.prod(getattr(layer, "kernel_size", ()))
        pixels = min(_pixels(graph, rule.sources[0]), _pixels(graph, node) * kernel)  # a stride may skip some
        moved[name] += read * pixels + written * _pixels(graph, node)
        positions[name] += _pixels(graph, node)
        weights[name] = layer.weight.numel() if rule.kind == "fixed" else macs[name] // positions[name]
    return [
        _bound(name, batch * macs[name], (weights[name] + batch * moved[name]) * dtype.itemsize, peak) for name in moved
    ]


def _channels(graph: Graph, live: Live, node: fx.Node) -> tuple[int, int]:
    """Return the numbers of channels that a layer reads and writes."""
    rule = graph.operators[node]
    (source,) = rule.sources
    if rule.kind == "fixed":
        return graph.width[source], graph.width[node]
    written = int(live.channels[node].sum())
    if rule.kind == "conv":
        return int(live.layers[str(node.target)].mask_OI.any(0).sum()), written
    if isinstance(rule, Grouped):
        left = int(rule.by_group(live.channels[node]).sum())
        return left * graph.width[source] // rule.groups, left * rule.width // rule.groups
    return int(live.channels[source].sum()), written


def _pixels(graph: Graph, node: fx.Node) -> int:
    """Return the elements of a channel of one image."""
    return math.prod(shape(node)[1:]) // graph.width[node]


def _bound(name: str, macs: int, moved: int, peak: Peak) -> LayerBound:
    return LayerBound(
        name=name,
        macs=macs,
        bytes=moved,
        arithmetic_ms=1e3 * macs / peak.macs_per_s,
        memory_ms=1e3 * moved / peak.bytes_per_s,
    )


def total_ms(bounds: Sequence[LayerBound]) -> float:
    """Return the network's bound: the sum over its layers, which run one after the other."""
    return sum(bound.bound_ms for bound in bounds)


@functools.lru_cache(maxsize=8)
def measured_peak(device: str, dtype: torch.dtype, threads: int) -> Peak:
    """Measure this machine's peak rates by large matrix products and copies; `threads` is torch's number."""
    assert threads == torch.get_num_threads()
    size, copied = (8192, 1 << 30) if device == "cuda" else (1536, 1 << 27)
    left = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty_like(left)
    source = torch.ones(copied // dtype.itemsize, device=device, dtype=dtype)
    target = torch.empty_like(source)
    runs: dict[str, Run] = {
        "product": lambda: torch.mm(left, left, out=out),
        "copy": lambda: target.copy_(source),
    }
    ms = least_ms(runs, device, seconds=0, counts=range(7, 8))
    return Peak(macs_per_s=1e3 * size**3 / ms["product"], bytes_per_s=2e3 * copied / ms["copy"])
