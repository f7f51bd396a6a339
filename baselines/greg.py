"""GReg-2: a growing L2 penalty selects filters, then drives the selected filters to zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from baselines._norms import filter_weights, l1_norms
from suite.contract import Budget, Criterion, Learner, OptOut, Ranking, Recipe, Scope, State, Step, Task
from suite.graph import Graph
from suite.select import filter_planner, meet, sets_of_scope

PICKED_FIRST = 1e-6
"""What the norms of picked filters are multiplied by, so that they go before all others."""


class _GrowingPenalty(Learner):
    """Adds factor * W to the gradients of all or of the picked filters.

    After the pick, kept filters get -release * W, which takes back part of the weight decay.
    """

    def __init__(self, settings: GReg, model: nn.Module, graph: Graph, budget: Budget) -> None:
        self.settings = settings
        self.graph = graph
        self.budget = budget
        self.weights = {name: model.get_parameter(f"{name}.weight") for name in sets_of_scope(graph, settings.scope)}
        self.picked: dict[str, Tensor] = {}
        """Layer -> bool [O, 1, 1, 1]; empty until filters are picked."""
        self.factor = 0.0

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Pick when it is time; put the penalty's gradient on top of the loss's."""
        share = float(step.index) / step.total
        if not self.picked and share >= self.settings.pick_share:
            self._pick()
        self.factor = self.settings.factor(share)
        for name, w in self.weights.items():
            if w.grad is not None:
                w.grad.add_(w * self._factor(name))

    def _factor(self, name: str) -> Tensor | float:
        """Return the penalty's factor of a layer's filters, [O, 1, 1, 1] after the pick."""
        if not self.picked:
            return self.factor
        return torch.where(self.picked[name], self.factor, -self.settings.release)

    def _pick(self) -> None:
        """Pick the filters with the smallest L1 norms that meet the budget."""
        norms = {name: torch.ones(conv.filters) for name, conv in self.graph.convs.items()} | l1_norms(self.weights)
        planner = filter_planner(self.graph, norms, ranking=self.settings.ranking, scope=self.settings.scope)
        plan = meet(planner, self.graph, self.budget).plan
        for name, w in self.weights.items():
            kept_O = plan[name].kept_O if name in plan else torch.ones(len(w), dtype=torch.bool)
            self.picked[name] = ~kept_O.to(w.device)[:, None, None, None]

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Return the penalty's factor and the relative mean L1 norm of picked filters."""
        picked = torch.cat([mask.flatten() for mask in self.picked.values()]) if self.picked else torch.zeros(1).bool()
        if not bool(picked.any()):
            return {"factor": self.factor, "picked_norm": 1.0}
        norms = l1_norms(self.weights)
        relative = torch.cat([norms[name] / norms[name].mean() for name in norms])
        return {"factor": self.factor, "picked_norm": float(relative[picked].mean() / relative[~picked].mean())}

    def state_dict(self) -> State:
        """Return the picked filters [O, 1, 1, 1] and the last factor."""
        return {"picked": dict(self.picked), "factor": self.factor}

    def load_state_dict(self, state: State) -> None:
        """Restore the output of `state_dict`."""
        self.picked = {name: mask.to(self.weights[name].device) for name, mask in state["picked"].items()}
        self.factor = state["factor"]


@dataclass(frozen=True, kw_only=True)
class GReg(Criterion):
    """L1 norm of each filter after a growing L2 penalty; picked filters come first.

    pick_limit  the penalty's factor on all filters at which the least are picked
    ceiling     the factor up to which it then grows on the picked ones
    pick_share  share of the stage until the pick
    push_share  share of the stage in which the factor grows to the ceiling; in the rest it stays there
    release     negative factor of the filters that are kept at the pick
    ranking     how the norms of different layers compare when filters are picked
    """

    granularity = "filter"
    source = (
        "Wang et al., Neural Pruning via Growing Regularization, ICLR 2021, section 3.3, algorithm 1 (GReg-2); the released code "
        "picks within each layer at a given ratio (ranking layer), and leaves the last convolution of a block and shortcuts "
        "(scope inner)"
    )
    deviations = (
        "one ratio for all layers, which follows from the budget, where the authors set one for each stage; the schedule is a "
        "share of the stage, in the proportions of the authors' settings (iterations to the pick, from there to the ceiling, and "
        "at the ceiling: 5,000, 49,500 and 40,000 on ImageNet; 10,000, 99,000 and 5,000 on CIFAR-10); the factor grows in each "
        "iteration instead of every fifth or tenth; a layer is not stopped early when its picked filters are a thousand times "
        "smaller; the learning rate starts at the authors' 0.001 but follows the schedule's shape"
    )
    learns = True
    needs_budget = True
    training: ClassVar[Mapping[str, Any]] = {"lr": 1e-3}
    implied: ClassVar[Mapping[str, Any]] = {"scope": "coupled", "release": 0.0, "ranking": "global"}
    lowest: ClassVar = {"release": 0}
    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "pick_limit": (1e-3, 1e-2, 1e-1),
        "ceiling": (0.1, 1.0),
    }
    recipes: ClassVar[Mapping[tuple[str, str], Recipe | OptOut]] = {
        ("cifar10", "*"): Recipe(
            settings={"pick_share": 0.088, "push_share": 0.868},
            source="the authors' train_params/0_AdaReg_resnet56_cifar10.yaml: 10,000, 99,000 and 5,000 of 114,000 iterations",
        ),
    }

    pick_limit: float = 0.01
    ceiling: float = 1.0
    pick_share: float = 0.05
    push_share: float = 0.55
    release: float = 1e-4
    ranking: Ranking = "layer"
    scope: Scope = "inner"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.pick_limit <= self.ceiling:
            raise ValueError(f"greg needs 0 < pick_limit <= ceiling, got {self.pick_limit} and {self.ceiling}")
        if not (self.pick_share > 0 and self.push_share > 0 and self.pick_share + self.push_share <= 1):
            raise ValueError(
                "greg's pick_share and push_share must be above 0 and at most 1 together, got "
                f"{self.pick_share} and {self.push_share}"
            )

    def factor(self, share: float) -> float:
        """Return the penalty's factor at this share of the stage."""
        if share < self.pick_share:
            return self.pick_limit * share / self.pick_share
        pushed = min(1.0, (share - self.pick_share) / self.push_share)
        return self.pick_limit + (self.ceiling - self.pick_limit) * pushed

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> Learner:
        """Return the growing penalty on every convolution of the scope."""
        assert task.budget is not None
        return _GrowingPenalty(self, model, graph, task.budget)

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> L1 norm of each filter [O], nearly 0 if it was picked."""
        norms = l1_norms(filter_weights(model, graph))
        picked = state["picked"]
        return {
            name: torch.where(picked[name].flatten().to(norm.device), PICKED_FIRST * norm, norm)
            if name in picked
            else norm
            for name, norm in norms.items()
        }
