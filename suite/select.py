"""Planners from scores, and the bisection of a planner to a budget.

Shapes: O filters, I input channels, G filter groups, S filter sets (the filters of a set are removed together).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from suite import knapsack
from suite.graph import Graph
from suite.plan import Budget, BudgetScope, ConvPlan, Per, Planner, PruningPlan, Ranking, Scope
from suite.refill import refill

HALVINGS = 44
"""Bisections over the bits of a float64: thresholds of every order of magnitude are resolved to at least 9 digits."""
COARSE = 0.02
"""Excess over a budget, as a share of the MACs that the budget leaves, above which a cut is coarse.

Coarse cuts are never compared as equal.
"""


def sets_of_scope(graph: Graph, scope: Scope) -> dict[str, Tensor]:
    """Return layer -> int64 [O], the filter sets of the layers of this scope, 0..S-1.

    In every scope the filters of a layer that one group of a grouped convolution reads are one set.

    Raises ValueError for an unknown scope, and for "inner" if every convolution feeds a residual stream.
    """
    if scope not in get_args(Scope):
        raise ValueError(f"scope {scope!r} is unknown; choose {', '.join(get_args(Scope))}")
    if scope == "coupled":
        return dict(graph.filter_sets)
    names = [name for name, conv in graph.convs.items() if scope == "untied" and conv.role != "shortcut"]
    if scope == "inner":
        names = [name for name in graph.convs if not _feeds_stream(graph, name)]
    if not names:
        raise ValueError(
            f"scope {scope!r} removes no filter of this network: every convolution feeds a residual stream"
        )
    sets: dict[str, Tensor] = {}
    count = 0
    for name in names:
        labels, ids = graph.filter_sets[name].unique(return_inverse=True)
        # Where each filter is a set, numbers follow the order of the filters, which decides ties.
        is_alone = len(labels) == len(ids)
        sets[name] = count + (torch.arange(len(ids)) if is_alone else ids)
        count += len(labels)
    return sets


def _feeds_stream(graph: Graph, name: str) -> bool:
    """Return True if a residual sum or a projection shortcut reads the layer's filters.

    It may read them directly or through batch norm, activation, a change of layout or padding.
    """
    nodes = [*graph.calls[name]]
    while nodes:
        for user in nodes.pop().users:
            conv = graph.convs.get(str(user.target)) if graph.kinds[user] == "conv" else None
            if graph.kinds[user] == "sum" or (conv and conv.role == "shortcut"):
                return True
            if graph.kinds[user] in ("bn", "pass", "view", "shortcut"):
                nodes.append(user)
    return False


def filter_planner(
    graph: Graph,
    scores: Mapping[str, Tensor],
    *,
    ranking: Ranking,
    scope: Scope = "coupled",
    per: Per = "",
    step: int = 1,
) -> Planner:
    """Return a planner that removes whole filters in the order of their scores, smallest first.

    scores   layer name -> float [O] for every layer of `graph`; larger is more important
    ranking  the order of scores across layers
    scope    the filters that may be removed, and the sets that are removed together
    per      order by score per saved cost instead (`set_families`); the ranking is then "global" or "raw"
    step     filter sets that are removed at once, for `per`

    Tied filters get the mean of their scores. The best filter of every layer stays, so that no layer vanishes.
    Raises ValueError naming the layer if scores are missing, of another length or not finite, and for an unknown ranking.
    """
    if ranking not in get_args(Ranking):
        raise ValueError(f"ranking {ranking!r} is unknown; choose {', '.join(get_args(Ranking))}")
    if per and ranking not in ("global", "raw"):
        raise ValueError(f"per = {per!r} sorts all layers together: take ranking 'global' or 'raw', not {ranking!r}")
    sets, values = set_scores(graph, scores, normalise=ranking in ("global", "isomorphic"), scope=scope)
    count = len(values)
    protected = best_sets(sets, values)
    if per:
        steps, costs = set_families(graph, sets, values, per, step)
        rank = torch.ones(count, dtype=torch.float64)
        for removals, places in zip(steps, knapsack.ranks(costs), strict=True):
            for removal, place in zip(removals, places, strict=True):
                rank[removal] = place
    elif ranking in ("global", "raw"):
        order = values.argsort(stable=True)
        rank = _fractions(order[~protected[order]], count)
    else:
        rank = torch.ones(count, dtype=torch.float64)
        families = same_layers(sets) if ranking == "layer" else isomorphic_classes(graph, sets)
        for place, members in enumerate(families):
            order = members[values[members].argsort(stable=True)]
            free = order[~protected[order]]
            # The families alternate, so that a budget is met closely.
            rank[free] = _fractions(free, count)[free] + place / len(families) / max(len(free), 1)
    rank[protected] = torch.inf

    rank_O = rank[torch.cat([*sets.values()])]
    return lambda knob: _keeping(graph, sets, rank_O >= knob)


def best_sets(sets: Mapping[str, Tensor], values: Tensor) -> Tensor:
    """Return bool [S], True for the set of the highest value of a layer."""
    best_S = torch.zeros(len(values), dtype=torch.bool)
    for ids in sets.values():
        best_S[ids[values[ids].argmax()]] = True
    return best_S


def set_families(
    graph: Graph, sets: Mapping[str, Tensor], values: Tensor, per: Per, step: int, removed_S: Tensor | None = None
) -> tuple[list[list[Tensor]], list[knapsack.Family]]:
    """Return per family the filter sets of each step, and importance and saved cost.

    values     importance of each set [S]
    per        the cost: MACs, or predicted milliseconds
    step       sets that are removed at once; widths between are multiples, as hardware computes in steps of 8, 16 or 32
    removed_S  bool [S], sets that are removed already

    A family has the sets of the same layers in the order of their values, without the best set of each layer. Savings are those
    in the network without `removed_S`, which is otherwise dense.
    Raises ValueError if `per` is "ms" and the graph has no layer times.
    """
    scope: BudgetScope = "latency" if per == "ms" else "network"
    left_S = torch.ones(len(values), dtype=torch.bool) if removed_S is None else ~removed_S
    before, best_S = graph.cut(without_sets(graph, sets, left_S), scope), best_sets(sets, values)
    steps: list[list[Tensor]] = []
    families = []
    for family in same_layers(sets):
        order = family[left_S[family]]
        order = order[values[order].argsort(stable=True)]
        free = order[~best_S[order]]
        sizes = knapsack.chunks(len(order), step)
        ends = [end for end in torch.tensor(sizes).cumsum(0).tolist() if end < len(free)]
        ends += [len(free)] * (len(free) > 0)

        def saved(count: int, free: Tensor = free) -> float:
            kept_S = left_S.clone()
            kept_S[free[:count]] = False
            return graph.cut(without_sets(graph, sets, kept_S), scope) - before

        if ends:
            steps.append(list(free.tensor_split(ends[:-1])))
            importance_K = torch.stack([values[removed].sum() for removed in steps[-1]])
            families.append(knapsack.Family(importance_K, knapsack.saved_shares(ends, saved)))
    return steps, families


def without_sets(graph: Graph, sets: Mapping[str, Tensor], kept_S: Tensor) -> PruningPlan:
    """Return the plan that removes the filters of all sets outside of `kept_S` [S].

    sets   layer name -> int64 [O], the set of each filter (`set_scores`)
    """
    return _keeping(graph, sets, kept_S[torch.cat([*sets.values()])])


def _keeping(graph: Graph, sets: Mapping[str, Tensor], kept_O: Tensor) -> PruningPlan:
    """Return the plan that keeps these filters of all layers, in the order of `sets`."""
    sizes = [ids.shape[0] for ids in sets.values()]
    whole = np.logical_and.reduceat(kept_O.numpy(), np.cumsum([0, *sizes[:-1]])).tolist()
    layers = zip(sets, kept_O.split(sizes), whole, strict=True)
    return PruningPlan({name: graph.full[name].having(kept_O=kept) for name, kept, every in layers if not every})


def check_ignored(names: Iterable[str], modules: Iterable[str], convs: Iterable[str]) -> None:
    """Raise ValueError, with the allowed names, if a name is no module."""
    if unknown := sorted({*names} - {*modules}):
        raise ValueError(f"there is no layer {unknown[0]!r} to ignore; choose from: {', '.join(convs)}")


def ignoring(planner: Planner, graph: Graph, layers: Iterable[str]) -> Planner:
    """Return a planner that leaves these layers all filters and channels.

    A module's name stands for all convolutions in it; layers that have no filters to remove, such as the head, may be named, too.
    In the layers around, these stay, too: filters that are tied to a filter of theirs, filters that they read, and as
    many channels as keep both alive. Raises ValueError if there is no such layer.
    """
    names = {*layers}
    ignored = {conv for conv in graph.convs if any(f"{conv}.".startswith(f"{name}.") for name in names)}
    check_ignored(names, graph.modules, graph.convs)
    if not ignored:
        return planner
    made = torch.cat([graph.filter_sets[name] for name in sorted(ignored)]).unique()
    read = torch.cat([graph.input_sets[name] for name in sorted(ignored)]).unique()

    def plan(knob: float) -> PruningPlan:
        wider = PruningPlan(
            {
                name: replace(layer, kept_O=layer.kept_O | torch.isin(graph.filter_sets[name], torch.cat([made, read])))
                for name, layer in planner(knob).items()
                if name not in ignored
            }
        )
        live = graph.live(wider).layers
        unread = torch.cat([graph.filter_sets[name][~live[name].kept_O] for name in sorted(ignored)])
        silent = torch.cat([graph.input_sets[name][~live[name].kept_GI.any(0)] for name in sorted(ignored)])

        def reading(name: str, layer: ConvPlan) -> ConvPlan:
            """Return the layer with the channels that live filters of the ignored layers need."""
            kept_GI = layer.kept_GI | torch.isin(graph.input_sets[name], unread)
            groups = layer.filter_group_O[torch.isin(graph.filter_sets[name], silent)]
            kept_GI[groups] = True
            return replace(layer, kept_GI=kept_GI)

        return PruningPlan({name: reading(name, layer) for name, layer in wider.items()})

    return plan


def channel_planner(order_GI: Mapping[str, Tensor], filter_group_O: Mapping[str, Tensor]) -> Planner:
    """Return a planner that removes the same share of input channels from every filter group.

    order_GI        layer name -> int64 [G, I], the channels of each group in the order of removal; the last one stays
    filter_group_O  layer name -> int64 [O], the group of each filter

    Other layers stay unpruned. Layers alternate in losing their n-th channels, so that a budget is met closely.
    """
    ranks = {}
    for place, (name, order) in enumerate(order_GI.items()):
        steps = torch.arange(order.shape[1], dtype=torch.float64) + place / len(order_GI)
        steps = steps / max(order.shape[1] - 1, 1)
        steps[-1] = torch.inf
        ranks[name] = torch.empty_like(order, dtype=torch.float64).scatter_(1, order, steps.expand(order.shape))

    def plan(knob: float) -> PruningPlan:
        return PruningPlan(
            {
                name: ConvPlan(filter_group_O[name], rank_GI >= knob, torch.ones(len(filter_group_O[name])).bool())
                for name, rank_GI in ranks.items()
                if bool((rank_GI < knob).any())
            }
        )

    return plan


def _fractions(order: Tensor, count: int) -> Tensor:
    """Return i / n for the i-th of n entries of `order`, float64 [count].

    The value is the knob above which the entry is removed.
    """
    fractions = torch.ones(count, dtype=torch.float64)
    fractions[order] = torch.arange(len(order), dtype=torch.float64) / max(len(order), 1)
    return fractions


def set_scores(
    graph: Graph, scores: Mapping[str, Tensor], *, normalise: bool, scope: Scope = "coupled"
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the set of each filter and the mean score of each set.

    normalise   divide the scores of a layer by their mean first
    scope       the layers and sets that count (`sets_of_scope`)

    Sets are numbered 0..S-1; the scores are float64 [S].
    Raises ValueError naming the layer if scores are missing, of another length or not finite.
    """
    if not isinstance(scores, Mapping):
        raise ValueError(f"scores are layer name -> tensor [O], not {type(scores).__name__}")
    for name, conv in graph.convs.items():
        if name not in scores:
            raise ValueError(f"no scores for layer {name}; a criterion scores every layer of the graph")
        if not isinstance(scores[name], Tensor):
            raise ValueError(f"scores of {name} must be a tensor, got {type(scores[name]).__name__}")
        if scores[name].shape != (conv.filters,) or not bool(scores[name].isfinite().all()):
            raise ValueError(
                f"scores of {name} must be {conv.filters} finite numbers, one a filter; got shape {list(scores[name].shape)}"
                + ("" if bool(scores[name].isfinite().all()) else " with values that are not finite")
            )
    sets = sets_of_scope(graph, scope)
    total = torch.zeros(1 + max(int(ids.max()) for ids in sets.values()), dtype=torch.float64)
    members = torch.zeros_like(total)
    for name, ids in sets.items():
        value = scores[name].detach().double().cpu()
        if normalise:
            value = value / value.abs().mean().clamp(min=torch.finfo(torch.float64).tiny)
        total.index_add_(0, ids, value)
        members.index_add_(0, ids, torch.ones_like(value))
    return sets, total / members


def coupled_sets(sets: Mapping[str, Tensor]) -> list[Tensor]:
    """Return families of filter sets, int64.

    Layers with a common set have all their sets in one family.
    """
    families: list[Tensor] = []
    for ids in sets.values():
        touching = [family for family in families if bool(torch.isin(family, ids).any())]
        families = [family for family in families if not any(family is other for other in touching)]
        families.append(torch.cat([ids, *touching]).unique())
    return families


def same_layers(sets: Mapping[str, Tensor]) -> list[Tensor]:
    """Return classes of filter sets that are in the same layers, int64.

    Every layer is a union of classes. Classes are in the order of their first sets.
    """
    class_S = torch.zeros(1 + max(int(ids.max()) for ids in sets.values()), dtype=torch.int64)
    last = 0
    for ids in sets.values():  # each layer splits the classes so far
        _, part = class_S[ids].unique(return_inverse=True)
        class_S[ids] = part + last + 1
        last += int(part.max()) + 1
    return _classes(class_S)


def isomorphic_classes(graph: Graph, sets: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the filter sets of each class of the same topology, int64.

    Classes are in the order of their first sets.

    Two sets are of one class if as many convolutions with and without batch norm make them, and as many convolutions and
    linear layers read them: the module types of their sub-graphs. Source: Fang et al., Isomorphic Pruning for Vision Models,
    ECCV 2024, section 3.2, whose released code compares the module types in the order of execution, activations and pooling
    included.
    """
    count = 1 + max(int(ids.max()) for ids in sets.values())
    topology_SK = torch.zeros(count, 4, dtype=torch.int64)
    raw_S = torch.zeros(count, dtype=torch.int64)
    for name, ids in sets.items():
        topology_SK[ids.unique(), int(graph.convs[name].bn is None)] += 1
        raw_S[ids] = graph.filter_sets[name]
    for name, ids in graph.input_sets.items():
        topology_SK[torch.isin(raw_S, ids), 2 + int(name not in graph.convs)] += 1
    return _classes(topology_SK.unique(dim=0, return_inverse=True)[1])


def _classes(class_S: Tensor) -> list[Tensor]:
    """Return the members of each class, ascending, in the order of their first members."""
    _, sizes = class_S.unique(return_counts=True)
    members = class_S.argsort(stable=True).split(sizes.tolist())
    return sorted(members, key=lambda each: int(each[0]))


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A plan that meets a budget.

    cut           the removed share of MACs in the budget's scope; of a latency budget, the predicted share of time
    coarse        True if the excess over the budget is more than `COARSE` of what the budget leaves. For a latency budget:
                  True if the measured share misses the budget by more than `COARSE`
    measured_cut  the measured share of time of a latency budget, else None
    corrections   plans of a latency budget that were measured and replaced
    """

    plan: PruningPlan
    knob: float
    cut: float
    coarse: bool
    measured_cut: float | None = None
    corrections: int = 0

    def time_cuts(self) -> dict[str, float]:
        """Return predicted and measured share of time in percent, or {}."""
        if self.measured_cut is None:
            return {}
        return {"predicted_time_cut_pct": 100 * self.cut, "time_cut_pct": 100 * self.measured_cut}


def meet(planner: Planner, graph: Graph, budget: Budget) -> Selection:
    """Bisect the knob to the smallest cut that is not below the budget.

    Raises ValueError if knob = 1 removes too little, if the plan removes a whole layer without a bypass, or if the planner
    returns no plan.
    """
    if budget.share == 0:
        return Selection(plan=PruningPlan({}), knob=0.0, cut=0.0, coarse=False)
    if budget.round_to > 1:
        planner = rounded(planner, graph, budget.round_to)
    best = _plan(planner, 1.0)
    cut = graph.cut(best, budget.scope)
    if cut < budget.share:
        raise ValueError(
            f"a budget of {budget.share:.2%} cannot be met: this method removes at most {cut:.2%} of the {budget.resource} here; "
            "take a smaller budget"
        )
    low, high, less = _bits(0.0), _bits(1.0), PruningPlan({})
    for _ in range(HALVINGS):
        middle = (low + high) // 2
        plan = _plan(planner, _from_bits(middle))
        if _equal(plan, best):  # most halvings end at a plan that is counted already
            high = middle
        elif _equal(plan, less):
            low = middle
        elif (middle_cut := graph.cut(plan, budget.scope)) >= budget.share:
            high, best, cut = middle, plan, middle_cut
        else:
            low, less = middle, plan
    if budget.refill and budget.round_to == 1:
        best = refill(planner, graph, budget, best, _from_bits(high))
        cut = graph.cut(best, budget.scope)
    if graph.macs(best).total == 0:
        empty = next((name for name, layer in best.items() if not bool(layer.mask_OI.any())), "the network")
        raise ValueError(
            f"the plan that meets a budget of {budget.share:.2%} leaves no way through: all of {empty} is removed"
        )
    coarse = cut - budget.share > COARSE * (1 - budget.share)
    return Selection(plan=graph.settle(best), knob=_from_bits(high), cut=cut, coarse=coarse)


LEVELS = 192
"""Knobs on a linear and on a logarithmic scale each, at which `rounded` evaluates a planner."""


def rounded(planner: Planner, graph: Graph, multiple: int) -> Planner:
    """Return a planner that rounds filters and channels of groups up to a multiple.

    The last removals are undone first (to the resolution of `LEVELS`), so that a larger knob is needed for the same budget.
    Tied filters are restored together. An empty group or layer stays empty. A width can be below its multiple if another layer
    makes a restored channel dead.
    """
    scale = [*torch.linspace(0, 1, LEVELS).tolist(), *torch.logspace(-9, 0, LEVELS).tolist()]
    plans = [planner(knob) for knob in sorted(scale)]
    levels: dict[str, tuple[Tensor, Tensor]] = {}
    for name, conv in graph.convs.items():
        layers = [plan[name] if name in plan else ConvPlan.full(conv.filters, conv.channels) for plan in plans]
        groups = max(len(layer.kept_GI) for layer in layers)
        kept_LGI = torch.stack([layer.kept_GI.expand(groups, -1) for layer in layers])
        levels[name] = (torch.stack([layer.kept_O for layer in layers]).sum(0), kept_LGI.sum(0))

    def plan(knob: float) -> PruningPlan:
        layers = {}
        for name, layer in planner(knob).items():
            level_O, level_GI = levels[name]
            kept_GI = [_filled(kept, level, multiple) for kept, level in zip(layer.kept_GI, level_GI, strict=False)]
            kept_O = _filled(layer.kept_O, level_O, multiple)
            layers[name] = replace(layer, kept_GI=torch.stack(kept_GI), kept_O=kept_O)
        return PruningPlan(layers)

    return plan


def _filled(kept: Tensor, level: Tensor, multiple: int) -> Tensor:
    """Return `kept` plus the entries of the highest levels, up to a multiple."""
    count = int(kept.sum())
    missing = min(-count % multiple, len(kept) - count)
    if count == 0 or missing == 0:
        return kept
    order = level.masked_fill(kept, -1).argsort(descending=True, stable=True)
    filled = kept.clone()
    filled[order[:missing]] = True
    return filled


def _bits(value: float) -> int:
    """Return the bits of a non-negative float64 as an integer, which keeps the order."""
    return int.from_bytes(struct.pack(">d", value), "big")


def _from_bits(bits: int) -> float:
    return float(struct.unpack(">d", bits.to_bytes(8, "big"))[0])


def _plan(planner: Planner, knob: float) -> PruningPlan:
    plan = planner(knob)
    if not isinstance(plan, PruningPlan):
        raise ValueError(f"a planner returns a PruningPlan, not {type(plan).__name__}")
    return plan


def _equal(first: PruningPlan, second: PruningPlan) -> bool:
    """Return True if all tensors of both plans are equal, beyond the canonical form."""
    return list(first) == list(second) and all(map(ConvPlan.has_tensors_of, first.values(), second.values()))
