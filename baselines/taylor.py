"""First-order Taylor importance, pruned step by step while training.

Shapes: O filters, S filter sets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from baselines._behind import LayersBehind
from suite.contract import Budget, Criterion, Learner, Ranking, Scope, State, Step, Task
from suite.graph import Graph
from suite.select import filter_planner, meet, sets_of_scope

REMOVED = -1.0
"""Importance of a removed filter: below that of all others."""


class _IterativePruning(Learner):
    """Removes the least important filters every few steps, until the budget is met.

    The importance of a set is (sum of gradient * parameter over its gates)^2, averaged over the steps between two removals,
    with momentum over removals. Removed filters stay zero.
    """

    def __init__(self, settings: Taylor, model: nn.Module, graph: Graph, budget: Budget) -> None:
        self.settings = settings
        self.graph = graph
        self.budget = budget
        device = next(model.parameters()).device
        self.sets = {name: ids.to(device) for name, ids in sets_of_scope(graph, settings.scope).items()}
        self.gates = [
            (name, p) for name in self.sets for p in model.get_submodule(graph.convs[name].bn or name).parameters()
        ]
        self.count = 1 + max(int(ids.max()) for ids in self.sets.values())
        self.summed_S, self.importance_S = torch.zeros(2, self.count, dtype=torch.float64, device=device)
        self.steps = 0
        self.removals = 0
        self.removed_S = torch.zeros(self.count, dtype=torch.bool, device=device)
        self.filters = {name: ids.to(device) for name, ids in graph.filter_sets.items()}
        self.behind = LayersBehind(model, graph)

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Add the squared loss change that the gradients predict."""
        change_S = torch.zeros_like(self.summed_S)
        for name, p in self.gates:
            if p.grad is not None:
                change_S.index_add_(0, self.sets[name], (p.grad * p).reshape(len(p), -1).sum(1).double())
        self.summed_S += change_S.square()
        self.steps += 1

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Remove the filters that are due, and zero the removed ones."""
        last = max(1, math.ceil(self.settings.prune_share * step.total))
        if int(step.index) + 1 == last or (int(step.index) + 1) % self.settings.every == 0:
            self._remove(float(step.index + 1) / step.total)
        for name, ids in self.sets.items():
            gone_O = self.removed_S[ids]
            step.model.get_parameter(f"{name}.weight")[gone_O] = 0
            for p in step.model.get_submodule(self.graph.convs[name].bn or name).parameters():
                p[gone_O] = 0
        made_S = torch.zeros(self.graph.set_count, device=self.removed_S.device)  # sets of the graph, not of the scope
        for name, ids in self.filters.items():
            made_S[ids[~self.removed_S[self.sets[name]]] if name in self.sets else ids] = 1
        self.behind.mask(made_S)

    def _remove(self, share: float) -> None:
        """Meet the part of the budget that is due at this share of the stage."""
        momentum = self.settings.momentum if self.removals else 0.0
        self.importance_S = momentum * self.importance_S + (1 - momentum) * self.summed_S / max(self.steps, 1)
        self.summed_S.zero_()
        self.steps, self.removals = 0, self.removals + 1
        due = replace(self.budget, share=self.budget.share * min(1.0, share / self.settings.prune_share))
        planner = filter_planner(self.graph, self.scores(), ranking=self.settings.ranking, scope=self.settings.scope)
        plan = meet(planner, self.graph, due).plan
        for name, ids in self.sets.items():
            if name in plan:
                self.removed_S[ids[~plan[name].kept_O.to(ids.device)]] = True

    def scores(self) -> dict[str, Tensor]:
        """Return layer -> importance of each filter [O], `REMOVED` for removed ones."""
        value_S = self.importance_S.masked_fill(self.removed_S, REMOVED)
        return {
            name: value_S[self.sets[name]] if name in self.sets else torch.ones(conv.filters)
            for name, conv in self.graph.convs.items()
        }

    def metrics(self) -> dict[str, float]:
        """Return the share of filter sets that are removed."""
        return {"removed_share": float(self.removed_S.double().mean())}

    def state_dict(self) -> State:
        """Return importances, removed sets, and the sums since the last removal."""
        return {
            "importance": {name: value.cpu() for name, value in self.scores().items()},
            **{name: getattr(self, name).clone() for name in ("summed_S", "importance_S", "removed_S")},
            "steps": self.steps,
            "removals": self.removals,
        }

    def load_state_dict(self, state: State) -> None:
        """Restore the output of `state_dict`."""
        for name in ("summed_S", "importance_S", "removed_S"):
            setattr(self, name, state[name].to(self.removed_S.device, copy=True))
        self.steps, self.removals = state["steps"], state["removals"]


@dataclass(frozen=True, kw_only=True)
class Taylor(Criterion):
    """Removes step by step, while training, the filters whose gates change the loss least.

    every        steps between two removals
    momentum     of the importance, over removals
    prune_share  share of the stage after which the budget is met; the rest trains what is left
    """

    granularity = "filter"
    source = (
        "Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, sections 3 and 4, gates after batch "
        "norm; the authors leave skip connections whole (scope inner), and prune them in a variant (scope coupled)"
    )
    deviations = (
        "what is removed every 30 steps is the part of the MACs budget that is due, not a fixed number of filters; removal "
        "lasts three quarters of the stage (prune_share), where the authors' ResNet-50 runs on ImageNet remove within the "
        "first 660 to 1,650 of some 125,000 minibatches; rate and weight decay are those of the grid, not 0.001 and none; "
        "without a batch norm the gate stands on weight and bias of the convolution"
    )
    learns = True
    needs_budget = True
    version = 2
    lowest: ClassVar = {"every": 1, "momentum": 0}
    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {"every": (10, 30), "prune_share": (0.5, 0.75)}

    ranking: Ranking = "raw"
    scope: Scope = "inner"
    every: int = 30
    momentum: float = 0.9
    prune_share: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.momentum < 1 and 0 < self.prune_share <= 1):
            raise ValueError(
                f"taylor needs momentum < 1 and 0 < prune_share <= 1, got {self.momentum} and {self.prune_share}"
            )

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> Learner:
        """Return the hooks that remove filters while training, at the task's budget."""
        assert task.budget is not None
        return _IterativePruning(self, model, graph, task.budget)

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> importance of each filter [O], negative for those removed while learning."""
        scores: dict[str, Tensor] = state["importance"]
        return scores
