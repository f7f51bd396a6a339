"""The least time that a packed network can take on a machine, on paper: by arithmetic and by memory traffic, layer by layer.

A layer must do its MACs, no faster than a large matrix product does them, and must read its live input channels and its
weights and write its output once each, no faster than a large copy moves bytes. The larger of the two is its bound; the
network's is their sum. Batch norm, activations and residual sums are taken to cost nothing. On a CPU, tensors that stay in
the cache can be faster than the copy, so a layer bound by memory may beat its bound there.
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
    """What this machine was measured to do at best."""

    macs_per_s: float
    bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class LayerBound:
    """What one layer must do for a batch, and the least time for it."""

    name: str
    macs: int
    bytes: int
    arithmetic_ms: float
    memory_ms: float

    @property
    def bound_ms(self) -> float:
        """The larger of the two."""
        return max(self.arithmetic_ms, self.memory_ms)


def layer_bounds(graph: Graph, plan: PruningPlan, peak: Peak, *, batch: int, dtype: torch.dtype) -> list[LayerBound]:
    """The bounds of the convolutions and linear layers that `plan` leaves, in the order of execution."""
    live = graph.live(plan)
    found = []
    for node in graph.nodes:
        kind, name = graph.kinds[node], str(node.target)
        if kind not in ("conv", "linear") or not bool(live.channels[node].any()):
            continue
        read = int(live.channels[node.all_input_nodes[0]].sum())
        if kind == "conv":
            conv, layer = graph.convs[name], live.layers[name]
            filters_G = torch.bincount(layer.filter_group_O[layer.kept_O], minlength=len(layer.kept_GI))
            kernels = int((filters_G * layer.kept_GI.sum(1)).sum())
            read = int(layer.kept_GI[filters_G > 0].any(0).sum())
            weights, macs = kernels * conv.kernel, kernels * conv.macs_per_kernel
            pixels = min(conv.input_elements // conv.channels, conv.positions * conv.kernel)  # a stride may skip some
            moved = read * pixels + int(filters_G.sum()) * conv.positions
        else:
            weights = macs = read * graph.width[node]
            moved = read + graph.width[node]
        found.append(_bound(name, batch * macs, (weights + batch * moved) * dtype.itemsize, peak))
    return found


def _bound(name: str, macs: int, moved: int, peak: Peak) -> LayerBound:
    return LayerBound(
        name=name,
        macs=macs,
        bytes=moved,
        arithmetic_ms=1e3 * macs / peak.macs_per_s,
        memory_ms=1e3 * moved / peak.bytes_per_s,
    )


def total_ms(bounds: Sequence[LayerBound]) -> float:
    """The network's bound: its layers run one after the other."""
    return sum(bound.bound_ms for bound in bounds)


@functools.lru_cache(maxsize=8)
def measured_peak(device: str, dtype: torch.dtype, threads: int) -> Peak:
    """The best of some large matrix products and copies on this machine; `threads` is what torch is set to use."""
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
