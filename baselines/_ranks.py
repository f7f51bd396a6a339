"""Filters and input channels of a network in one order of removal.

Shapes: O filters, I input channels, S filter sets.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from suite.contract import ConvPlan, Planner, PruningPlan, Scope
from suite.graph import Graph
from suite.select import set_scores


def filter_and_channel_planner(
    graph: Graph, filters: Mapping[str, Tensor], channels: Mapping[str, Tensor], *, normalise: bool, scope: Scope
) -> Planner:
    """Return a planner that removes filter sets and input channels in one order, smallest first.

    filters    layer -> score of each filter [O], for every layer
    channels   layer -> score of each input channel [I], for the layers that lose channels of their own
    normalise  divide the scores of a layer by their mean first

    The image's channels, the best filter and the best channel of every layer stay. That channel comes from a filter that stays,
    so that no layer is ever cut off.
    """
    sets, value_S = set_scores(graph, filters, normalise=normalise, scope=scope)
    stays_S = torch.zeros(len(value_S), dtype=torch.bool)
    for ids in sets.values():
        stays_S[ids[value_S[ids].argmax()]] = True
    made_S = torch.zeros(graph.set_count, dtype=torch.bool)
    """True for the graph's sets, of all layers, that never vanish."""
    for name, ids in graph.filter_sets.items():
        made_S[ids[stays_S[sets[name]]] if name in sets else ids] = True
    values, stays = [value_S], [stays_S]
    for name, score_I in channels.items():
        value_I = score_I.detach().double().cpu()
        source_I = graph.input_sets[name]
        mean = value_I.mean().clamp(min=torch.finfo(torch.float64).tiny)
        values.append(value_I / mean if normalise else value_I)
        stays_I = source_I < 0
        stays_I[torch.where(stays_I | made_S[source_I], value_I, -1).argmax()] = True
        stays.append(stays_I)
    order = torch.cat(values).argsort(stable=True)
    order = order[~torch.cat(stays)[order]]
    rank = torch.full((sum(map(len, values)),), torch.inf, dtype=torch.float64)
    rank[order] = torch.arange(len(order), dtype=torch.float64) / max(len(order), 1)
    rank_S, *ranks = rank.split([len(value) for value in values])
    rank_I = dict(zip(channels, ranks, strict=True))

    def layer(name: str, knob: float) -> ConvPlan:
        full = ConvPlan.full(graph.convs[name].filters, graph.convs[name].channels)
        kept_GI = rank_I[name][None] >= knob if name in rank_I else full.kept_GI
        kept_O = rank_S[sets[name]] >= knob if name in sets else full.kept_O
        return ConvPlan(full.filter_group_O, kept_GI, kept_O)

    return lambda knob: PruningPlan({name: layer(name, knob) for name in graph.convs})
