"""Removed filters and channels that come back while a budget stays met.

Shapes: O filters, I input channels, G filter groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from suite.graph import Graph
from suite.plan import Budget, ConvPlan, Planner, PruningPlan

CLOSE = 2e-4
"""Largest excess over a budget, as a share of the dense MACs, that is left as it is."""
LEVELS = 256
"""Number of knobs at which a planner is read to order its removals."""


@dataclass(frozen=True)
class _Unit:
    """Removed filters of some layers, or one channel of one layer, that come back together."""

    level: int
    """Number of the knobs at which the unit is still kept."""
    filters: Mapping[str, Tensor]
    """Layer -> indices of filters."""
    layer: str = ""
    channel: int = -1


def refill(planner: Planner, graph: Graph, budget: Budget, plan: PruningPlan, knob: float) -> PruningPlan:
    """Return `plan` with removed units given back, last removed first, while the budget stays met.

    A unit is a removed filter, all filters of a set that residual sums tie if the whole set is removed, or an input channel
    of a layer with one filter group. Channels of layers with several groups stay removed, as groups of equal size would
    otherwise become unequal. `planner` gives the order of removal at `LEVELS` knobs up to `knob`.
    """
    dense = graph.dense_macs.total if budget.scope == "network" else graph.dense_macs.prunable
    slack = graph.cut(plan, budget.scope) - budget.share
    if slack <= CLOSE:
        return plan
    units = sorted(_units(planner, graph, plan, knob), key=lambda unit: -unit.level)
    live = graph.live(plan).layers
    for unit in units:
        if _least_macs(unit, graph, live, budget) > slack * dense:
            continue
        larger = _with(plan, unit)
        cut = graph.cut(larger, budget.scope)
        if cut >= budget.share:
            plan, slack, live = larger, cut - budget.share, graph.live(larger).layers
        if slack <= CLOSE:
            break
    return plan


def _units(planner: Planner, graph: Graph, plan: PruningPlan, knob: float) -> Iterator[_Unit]:
    """Yield what `plan` removes and `planner` keeps at knob 0."""
    plans = [planner(knob * step / LEVELS) for step in range(LEVELS)]
    removed = {name: ~layer.kept_O for name, layer in plan.items()}
    whole = _whole_sets(graph, removed)
    sets: dict[int, tuple[int, dict[str, list[int]]]] = {}
    for name, layer in plan.items():
        full = ConvPlan.full(len(layer.kept_O), layer.kept_GI.shape[1])
        earlier = [each.get(name, full) for each in plans]
        level_O = torch.stack([each.kept_O for each in earlier]).sum(0)
        for o in (removed[name] & (level_O > 0)).nonzero()[:, 0].tolist():
            number = int(graph.filter_sets[name][o])
            if whole[number]:
                level, members = sets.setdefault(number, (int(level_O[o]), {}))
                members.setdefault(name, []).append(o)
            else:
                yield _Unit(int(level_O[o]), {name: torch.tensor([o])})
        if len(layer.kept_GI) == 1:
            level_I = torch.stack([each.kept_GI[0] for each in earlier]).sum(0)
            for i in (~layer.kept_GI[0] & (level_I > 0)).nonzero()[:, 0].tolist():
                yield _Unit(int(level_I[i]), {}, name, i)
    for level, members in sets.values():
        yield _Unit(level, {name: torch.tensor(indices) for name, indices in members.items()})


def _whole_sets(graph: Graph, removed: Mapping[str, Tensor]) -> Tensor:
    """Return bool [S]: several layers share the set, and all its filters are removed."""
    members, removals = torch.zeros(2, graph.set_count, dtype=torch.int64)
    for name, ids in graph.filter_sets.items():
        members += torch.bincount(ids, minlength=len(members))
        if name in removed:
            removals += torch.bincount(ids[removed[name]], minlength=len(members))
    return (members > 1) & (members == removals)


def _least_macs(unit: _Unit, graph: Graph, live: Mapping[str, ConvPlan], budget: Budget) -> int:
    """Return MACs of the unit's own kernels, without those of layers that read its filters."""
    macs = 0
    for name, filters in unit.filters.items():
        conv, layer = graph.convs[name], live[name]
        if budget.scope == "network" or conv.prunable:
            macs += len(filters) * int(layer.kept_GI.any(0).sum()) * conv.macs_per_kernel
    if unit.layer:
        conv = graph.convs[unit.layer]
        if budget.scope == "network" or conv.prunable:
            macs += int(live[unit.layer].kept_O.sum()) * conv.macs_per_kernel
    return macs


def _with(plan: PruningPlan, unit: _Unit) -> PruningPlan:
    """Return `plan` with the unit kept."""
    layers = dict(plan)
    for name, filters in unit.filters.items():
        layers[name] = replace(layers[name], kept_O=layers[name].kept_O.index_fill(0, filters, True))
    if unit.layer:
        kept_GI = layers[unit.layer].kept_GI.clone()
        kept_GI[:, unit.channel] = True
        layers[unit.layer] = replace(layers[unit.layer], kept_GI=kept_GI)
    return PruningPlan(layers)
