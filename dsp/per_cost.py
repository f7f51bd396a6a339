"""Channels and filters of least energy per saved cost, instead of least energy.

Shapes: O filters, I input channels, G filter groups, U units of a layer (filters, or pairs of group and channel), K steps.

Ours; the paper ranks by energy alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dsp.selection import kernel_energies
from suite.contract import ConvPlan, Per, Planner, PruningPlan
from suite.graph import Graph
from suite.knapsack import Family, chunks, ranks, saved_shares


@dataclass(frozen=True)
class _Curve:
    """Removal of the units of one layer; `steps` has the units of each step."""

    steps: list[Tensor]
    family: Family

    def lost(self, saving: float) -> float:
        """Return the mean importance that is lost for a saved cost between 0 and `saving`."""
        saved = np.maximum.accumulate(self.family.saved_K.numpy())
        lost = self.family.importance_K.cumsum(0).numpy()
        return float(np.interp(np.linspace(0, saving, 32), [0, *saved], [0, *lost]).mean())


def per_cost_planner(
    graph: Graph,
    weights: Mapping[str, Tensor],
    filter_group: Mapping[str, Tensor],
    groups: int,
    filter_pruned: Collection[str],
    *,
    per: Per,
    step: int,
) -> Planner:
    """Return a planner that removes the least energy per saved cost first, over all layers.

    weights, filter_group, groups, filter_pruned   as in `energy_planner`
    per    the cost: MACs, or predicted milliseconds
    step   channels of every group, or filters, that go at once

    Importance is the share of the layer's energy. A layer loses its channels in one of two orders: "apart", each group its own
    least ones; or "together", all groups the channels of least energy in all, so that a merged convolution gets narrower. The
    order that loses less for the same saved cost is taken. Costs are those in an otherwise dense network. The best channel of
    every group and the best filter of every layer stay.
    """
    curves: list[tuple[Tensor, _Curve]] = []
    layers: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for name, weight in weights.items():
        energy_OI = kernel_energies(weight)
        energy_OI = energy_OI / energy_OI.sum().clamp(min=torch.finfo(torch.float64).tiny)
        filters, channels = energy_OI.shape
        full = ConvPlan.full(filters, channels)
        if name in filter_group:
            full = ConvPlan(filter_group[name], torch.ones(groups, channels).bool(), full.kept_O)
        channel_GI, filter_O = torch.full(full.kept_GI.shape, torch.inf), torch.full((filters,), torch.inf)
        if name in filter_group:
            curves.append((channel_GI, _channels(graph, name, full, energy_OI, per, step)))
        if name in filter_pruned:
            order_O = energy_OI.sum(1).argsort(stable=True)
            without = functools.partial(_without_filters, full)
            curves.append((filter_O, _curve(graph, name, order_O[None], energy_OI.sum(1), without, per, step)))
        layers[name] = full.filter_group_O, channel_GI, filter_O
    for (place_U, curve), places in zip(curves, ranks([curve.family for _, curve in curves]), strict=True):
        for units, place in zip(curve.steps, places.tolist(), strict=True):
            place_U.view(-1)[units] = place

    def plan(knob: float) -> PruningPlan:
        return PruningPlan(
            {
                name: ConvPlan(group_O, channel_GI >= knob, filter_O >= knob)
                for name, (group_O, channel_GI, filter_O) in layers.items()
            }
        )

    return plan


def _channels(graph: Graph, name: str, full: ConvPlan, energy_OI: Tensor, per: Per, step: int) -> _Curve:
    """Return the cheaper of the two orders in which a layer loses channels."""
    energy_GI = torch.zeros(full.kept_GI.shape, dtype=torch.float64).index_add_(0, full.filter_group_O, energy_OI)
    first_G1 = torch.arange(len(energy_GI))[:, None] * energy_GI.shape[1]

    def without(kept_U: Tensor) -> ConvPlan:
        return replace(full, kept_GI=kept_U.view_as(full.kept_GI))

    orders = energy_GI.argsort(dim=1, stable=True), energy_GI.sum(0).argsort(stable=True).expand(energy_GI.shape)
    apart, together = (
        _curve(graph, name, first_G1 + order_GI, energy_GI.flatten(), without, per, step) for order_GI in orders
    )
    saving = min(float(curve.family.saved_K.max()) for curve in (apart, together))
    return min(apart, together, key=lambda curve: curve.lost(saving))


def _without_filters(full: ConvPlan, kept_O: Tensor) -> ConvPlan:
    return replace(full, kept_O=kept_O)


def _curve(
    graph: Graph,
    name: str,
    order_GU: Tensor,
    energy_U: Tensor,
    without: Callable[[Tensor], ConvPlan],
    per: Per,
    step: int,
) -> _Curve:
    """Return the removal of units in the order of each row.

    The last unit of a row stays.
    order_GU   int64, flat indices of units; a step takes `step` columns
    without    bool [U], the kept units -> plan of the layer
    """
    count = order_GU.shape[1]
    ends = [end for end in np.cumsum(chunks(count, step)).tolist() if end < count - 1]
    ends += [count - 1] * (count > 1)

    def saved(removed: int) -> float:
        kept_U = torch.ones(len(energy_U), dtype=torch.bool)
        kept_U[order_GU[:, :removed].flatten()] = False
        return graph.cut(PruningPlan({name: without(kept_U)}), "latency" if per == "ms" else "network")

    steps = [order_GU[:, start:end].flatten() for start, end in zip([0, *ends], ends, strict=False)]
    importance_K = torch.tensor([float(energy_U[units].sum()) for units in steps], dtype=torch.float64)
    return _Curve(steps, Family(importance_K, saved_shares(ends, saved)))
