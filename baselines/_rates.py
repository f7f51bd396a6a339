"""Rates of another run: each layer loses the share that it loses there.

Shapes: O filters, S filter sets (filters tied through residual sums disappear together).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from suite.contract import Planner, Pruner, PruningPlan, State, Task
from suite.graph import Graph
from suite.select import same_layers, set_scores, without_sets


@dataclass(frozen=True, kw_only=True)
class Rates(Pruner):
    """Removes filters with the smallest `scores`, at the rates of the followed run."""

    granularity = "filter"
    deviations = (
        "a run that removes whole filters, tied ones together, has its share of removed filters as a layer's rate; any other its "
        "share of removed kernels, over tied layers together; rates are scaled until the budget is met, since filters that go "
        "take the next layer's channels with them"
    )
    needs_reference = True
    control = True

    def scores(self, model: nn.Module, graph: Graph, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> score [O]."""
        raise NotImplementedError

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Return the planner with the followed run's own rates at knob 0.5."""
        return rates_planner(graph, self.scores(model, graph, task), task.reference)


def rates_planner(graph: Graph, scores: Mapping[str, Tensor], reference: PruningPlan | None) -> Planner:
    """Return a planner that removes the filters with the smallest scores.

    At knob 0.5 the rates are those of `reference`.

    A smaller knob scales all rates down; a larger one closes the same part of every rate's distance to 1.
    Raises ValueError if there is no reference.
    """
    if reference is None:
        raise ValueError("rates are those of another run: list this one with suite.grids.follow, which gives its plan")
    sets, value_S = set_scores(graph, scores, normalise=True)
    knob_S = torch.full_like(value_S, torch.inf)
    for members, rate in _rates(graph, sets, reference):
        order = members[value_S[members].argsort(stable=True)]
        share = torch.arange(1, len(order) + 1, dtype=torch.float64) / len(order)
        knob_S[order] = torch.where(share <= rate, share / (2 * rate), 0.5 + (share - rate) / (2 - 2 * rate))
        if rate < 1:
            knob_S[order[-1]] = torch.inf
    return lambda knob: without_sets(graph, sets, knob_S > knob)


def _rates(graph: Graph, sets: Mapping[str, Tensor], reference: PruningPlan) -> Iterator[tuple[Tensor, float]]:
    """Yield filter sets of the same layers and the share to remove."""
    kept_S = torch.zeros(1 + max(int(ids.max()) for ids in sets.values()), dtype=torch.bool)
    removed, kernels = {}, {}
    for name, ids in sets.items():
        conv, layer = graph.convs[name], reference.get(name)
        kept_S[ids] |= torch.ones(conv.filters).bool() if layer is None else layer.kept_O
        kernels[name] = conv.filters * conv.channels
        removed[name] = 0 if layer is None else int((~layer.mask_OI).sum())
    whole = graph.settle(without_sets(graph, sets, kept_S)) == graph.settle(reference)
    for members in same_layers(sets):
        layers = [name for name, ids in sets.items() if bool((ids == members[0]).any())]
        filters = int((~kept_S[members]).sum()) / len(members)
        yield members, filters if whole else sum(removed[n] for n in layers) / sum(kernels[n] for n in layers)
