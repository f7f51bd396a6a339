"""HALP: the filter sets of most Taylor importance that fit into a time.

Shapes: O filters, S filter sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from suite.contract import Criterion, Per, Planner, Ranking, State, Task
from suite.graph import Graph
from suite.knapsack import Family, ranks, solve
from suite.select import set_families, set_scores, sets_of_scope, without_sets

SHARE = 0.5
"""Share of the cost to remove without a budget."""


@dataclass(frozen=True, kw_only=True)
class HALP(Criterion):
    """Chooses the kept filter sets by a knapsack of Taylor importance and time.

    rounds      knapsacks, whose capacities fall exponentially to that of the budget
    batches     batches whose importance is averaged
    batch_size  images of a batch
    """

    granularity = "filter"
    source = (
        "Shen et al., Structural Pruning via Latency-Saliency Knapsack, NeurIPS 2022, section 3: Taylor importance of coupled "
        "batch norms, knapsack with preceding filters, groups of filters, exponential targets; the authors' importance.py and "
        "pruner.py"
    )
    deviations = (
        "all knapsacks are solved on the base weights, `rounds` of them, not 30 with 40 training steps between; one group size "
        "`step` for all layers; the authors keep the stem whole; times are those of this machine's table; plans beside that of "
        "the budget follow by importance per cost; a budget of MACs fills the knapsack with MACs"
    )
    evidence = "latency"
    version = 2
    scopes = ("coupled",)
    lowest: ClassVar[Mapping[str, float]] = {"rounds": 1, "batches": 1, "batch_size": 1}
    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {"step": (4, 8, 16)}

    ranking: Ranking = "raw"
    per: Per = "ms"
    step: int = 8
    rounds: int = 4
    batches: int = 10
    batch_size: int = 32

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> importance of each filter's coupled set [O].

        The importance of a set is the mean over batches of |sum of gradient * parameter| over the batch norms of all its
        filters: the terms of coupled layers are added before the absolute value. A layer without a batch norm has the sum
        over its weight.
        """
        images, labels = task.samples(self.batches * self.batch_size)
        gates = [(name, p) for name, conv in graph.convs.items() for p in _gates(model, name, conv.bn)]
        sets = sets_of_scope(graph, self.scope)
        importance_S = torch.zeros(1 + max(int(ids.max()) for ids in sets.values()), dtype=torch.float64)
        parts = list(zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True))
        for x, y in parts:
            gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), [p for _, p in gates])
            change_S = torch.zeros_like(importance_S)
            for (name, p), gradient in zip(gates, gradients, strict=True):
                change_S.index_add_(0, sets[name], (gradient * p.detach()).reshape(len(p), -1).sum(1).double().cpu())
            importance_S += change_S.abs() / len(parts)
        return {name: importance_S[ids] for name, ids in sets.items()}

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Return the order of removal of all knapsacks, and of what they keep."""
        scores = self.score(model, graph, state, task)
        sets, values = set_scores(graph, scores, normalise=False, scope=self.scope)
        rank_S = self._order(graph, sets, values, task.budget.share if task.budget else SHARE)
        return lambda knob: without_sets(graph, sets, rank_S >= knob)

    def _order(self, graph: Graph, sets: Mapping[str, Tensor], values: Tensor, share: float) -> Tensor:
        """Return the knob above which each set is removed [S]; infinite: the set stays."""
        per: Per = "macs" if graph.times is None and self.per == "ms" else self.per
        removed_S, order = torch.zeros(len(values), dtype=torch.bool), list[Tensor]()
        for number in range(1, self.rounds + 1):
            steps, families = set_families(graph, sets, values, per, self.step, removed_S)
            kept = without_sets(graph, sets, ~removed_S)
            spent = graph.cut(kept, "latency" if per == "ms" else "network")
            reachable = sum(float(one.saved_K.max()) for one in families)
            saving = min(1 - (1 - share) ** (number / self.rounds) - spent, 0.999 * reachable)
            chosen = in_order(steps, families, solve(families, saving) if saving > 0 else [0] * len(families))
            for step in chosen:
                removed_S[step] = True
            order += chosen
        steps, families = set_families(graph, sets, values, per, self.step, removed_S)
        order += in_order(steps, families, [len(one) for one in steps])
        rank_S = torch.full((len(values),), torch.inf, dtype=torch.float64)
        for place, step in enumerate(order):
            rank_S[step] = place / len(order)
        return rank_S


def _gates(model: nn.Module, name: str, bn: str | None) -> list[Tensor]:
    """Return the parameters of a layer's batch norm, else its weight."""
    module = model.get_submodule(bn or name)
    return list(module.parameters()) if bn else [cast(nn.Conv2d, module).weight]


def in_order(steps: Sequence[Sequence[Tensor]], families: Sequence[Family], counts: Sequence[int]) -> list[Tensor]:
    """Return the first `counts` steps of each family, of all by importance per cost."""
    placed = [
        (float(place), removal)
        for removals, places, count in zip(steps, ranks(families), counts, strict=True)
        for removal, place in zip(removals[:count], places[:count], strict=True)
    ]
    return [removal for _, removal in sorted(placed, key=lambda pair: pair[0])]
