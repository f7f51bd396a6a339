"""Plans that end close to their budget, by returned and swapped units.

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
SWAPS = 4
"""Largest number of swaps of a plan."""
TRIES = 12
"""Swaps of which the cut is computed, before the search ends."""


@dataclass(frozen=True)
class _Unit:
    """Filters of some layers, or channels of one layer, that are removed together."""

    level: int
    """Number of the knobs at which the unit is still kept."""
    filters: Mapping[str, Tensor]
    """Layer -> indices of filters."""
    layer: str = ""
    channels: tuple[tuple[int, int], ...] = ()
    """Pairs (filter group, channel) of `layer`."""

    @property
    def kind(self) -> tuple[object, ...]:
        """Units of one kind change the MACs about equally."""
        return (*((name, len(filters)) for name, filters in self.filters.items()), self.layer)

    def kept(self, plan: PruningPlan) -> bool:
        """Return True if `plan` keeps a part of the unit."""
        filters = any(name not in plan or bool(plan[name].kept_O[o].any()) for name, o in self.filters.items())
        return filters or any(self.layer not in plan or bool(plan[self.layer].kept_GI[pair]) for pair in self.channels)


def refill(planner: Planner, graph: Graph, budget: Budget, plan: PruningPlan, knob: float) -> PruningPlan:
    """Return a plan that ends closer to the budget and meets it.

    Removed units are given back, last removed first, while the budget stays met. Then the last removed unit of a kind is
    swapped with the next unit to go of another kind, at most `SWAPS` times.

    A unit is a removed filter, all filters of a set that residual sums tie if the whole set is removed, an input channel of one
    filter group, or one channel of every filter group of a layer whose groups are equally large. `planner` gives the order of
    removal at `LEVELS` knobs up to `knob`, and above it.
    """
    if graph.cut(plan, budget.scope) - budget.share <= CLOSE:
        return plan
    removed = sorted(_units(planner, graph, plan, 0.0, knob), key=lambda unit: -unit.level)
    plan = _greedy(graph, budget, plan, removed)
    if graph.cut(plan, budget.scope) - budget.share <= CLOSE:
        return plan
    kept = sorted(_units(planner, graph, planner(1.0), knob, 1.0), key=lambda unit: unit.level)
    for _ in range(SWAPS):
        swapped = _swap(graph, budget, plan, removed, kept)
        if swapped is plan or graph.cut(plan := swapped, budget.scope) - budget.share <= CLOSE:
            break
    return plan


def _greedy(graph: Graph, budget: Budget, plan: PruningPlan, units: list[_Unit]) -> PruningPlan:
    """Return `plan` with the units kept that the budget leaves room for, in order."""
    dense = graph.dense_macs.total if budget.scope == "network" else graph.dense_macs.prunable
    slack = graph.cut(plan, budget.scope) - budget.share
    live = graph.live(plan).layers
    for unit in units:
        if _least_macs(unit, graph, live, budget) > slack * dense:
            continue
        larger = _with(graph, plan, unit, True)
        cut = graph.cut(larger, budget.scope)
        if cut >= budget.share:
            plan, slack, live = larger, cut - budget.share, graph.live(larger).layers
        if slack <= CLOSE:
            break
    return plan


def _swap(graph: Graph, budget: Budget, plan: PruningPlan, removed: list[_Unit], kept: list[_Unit]) -> PruningPlan:
    """Return `plan` with one unit swapped, closer to the budget, or `plan` itself."""
    cut = graph.cut(plan, budget.scope)
    back = {unit.kind: unit for unit in reversed(removed) if not unit.kept(plan)}
    away = {unit.kind: unit for unit in reversed(kept) if unit.kept(plan)}
    less = [(cut - graph.cut(_with(graph, plan, unit, True), budget.scope), unit) for unit in back.values()]
    more = [(graph.cut(_with(graph, plan, unit, False), budget.scope) - cut, unit) for unit in away.values()]
    pairs = [(cut + gain - loss, into, out) for loss, into in less for gain, out in more]
    pairs = [pair for pair in pairs if pair[0] < cut]
    best = plan
    for _, into, out in sorted(pairs, key=lambda pair: abs(pair[0] - budget.share))[:TRIES]:
        swapped = _with(graph, _with(graph, plan, out, False), into, True)
        if budget.share <= (new := graph.cut(swapped, budget.scope)) < cut:
            best, cut = swapped, new
        if cut - budget.share <= CLOSE:
            break
    return best


def _units(planner: Planner, graph: Graph, plan: PruningPlan, low: float, high: float) -> Iterator[_Unit]:
    """Yield the units that `plan` removes and `planner` keeps at the knob `low`."""
    plans = [planner(low + (high - low) * step / LEVELS) for step in range(LEVELS)]
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
        level_GI = torch.stack([each.kept_GI.expand(layer.kept_GI.shape) for each in earlier]).sum(0)
        yield from _channel_units(name, layer.kept_GI, level_GI)
    for level, members in sets.values():
        yield _Unit(level, {name: torch.tensor(indices) for name, indices in members.items()})


def _channel_units(name: str, kept_GI: Tensor, level_GI: Tensor) -> Iterator[_Unit]:
    """Yield removed channels, one of each group if groups are equally large."""
    away_GI = ~kept_GI & (level_GI > 0)
    counts = away_GI.sum(1)
    if len(counts) > 1 and bool((counts == counts[0]).all()):
        order_GI = level_GI.masked_fill(~away_GI, -1).argsort(dim=1, descending=True, stable=True)
        for place in range(int(counts[0])):
            pairs = tuple(enumerate(order_GI[:, place].tolist()))
            yield _Unit(int(level_GI[pairs[0]]), {}, name, pairs)
    else:
        for g, i in away_GI.nonzero().tolist():
            yield _Unit(int(level_GI[g, i]), {}, name, ((g, i),))


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
            filters_G = torch.bincount(
                live[unit.layer].filter_group_O[live[unit.layer].kept_O], minlength=unit.channels[-1][0] + 1
            )
            macs += int(sum(filters_G[g] for g, _ in unit.channels)) * conv.macs_per_kernel
    return macs


def _with(graph: Graph, plan: PruningPlan, unit: _Unit, kept: bool) -> PruningPlan:
    """Return `plan` with the unit kept or removed."""
    layers = dict(plan)
    for name in (*unit.filters, *([unit.layer] if unit.layer else [])):
        layers.setdefault(name, ConvPlan.full(graph.convs[name].filters, graph.convs[name].channels))
    for name, filters in unit.filters.items():
        layers[name] = replace(layers[name], kept_O=layers[name].kept_O.index_fill(0, filters, kept))
    if unit.layer:
        kept_GI = layers[unit.layer].kept_GI.clone()
        for pair in unit.channels:
            kept_GI[pair] = kept
        layers[unit.layer] = replace(layers[unit.layer], kept_GI=kept_GI)
    return PruningPlan(layers)
