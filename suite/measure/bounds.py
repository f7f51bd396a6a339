"""Least time of a packed network on paper, by arithmetic and memory traffic per layer.

A layer must do its MACs, no faster than a large matrix product does them, and must read its live input channels and its
weights and write its output once each, no faster than a large copy moves bytes. The larger of the two is its bound; the
network's is their sum. Batch norm, activations and residual sums count as free. On a CPU, tensors that stay in the cache can be
faster than the copy, so a layer bound by memory may beat its bound there.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from suite.graph import Graph
from suite.plan import PruningPlan
from suite.timing import Run, least_ms


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Measured peak rates of this machine."""

    macs_per_s: float
    bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class LayerBound:
    """Work of one layer for a batch, and the least time for this work."""

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
    """Return the bounds of the layers (convolution, linear) that `plan` leaves, in order of execution."""
    live = graph.live(plan)
    macs = graph.layer_macs(live)
    bounds = []
    for node in graph.nodes:
        kind, name = graph.kinds[node], str(node.target)
        if kind not in ("conv", "linear") or not bool(live.channels[node].any()):
            continue
        read = int(live.channels[node.all_input_nodes[0]].sum())
        if kind == "conv":
            conv, layer = graph.convs[name], live.layers[name]
            read = int(layer.mask_OI.any(0).sum())
            weights = layer.kernels * conv.kernel
            pixels = min(conv.input_elements // conv.channels, conv.positions * conv.kernel)  # a stride may skip some
            moved = read * pixels + int(layer.kept_O.sum()) * conv.positions
        else:
            weights = read * graph.width[node]
            moved = read + graph.width[node]
        bounds.append(_bound(name, batch * macs[name], (weights + batch * moved) * dtype.itemsize, peak))
    return bounds


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
