"""Dynamic structured pruning: a lasso on redundant filters, and a rising threshold.

Shapes: O filters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from baselines._behind import LayersBehind
from suite.contract import Budget, Criterion, Learner, Ranking, State, Step, Task
from suite.graph import Graph
from suite.select import filter_planner, meet


class _DynamicPruning(Learner):
    """Penalises unimportant filters; after an epoch, masks the filters below the threshold."""

    def __init__(self, settings: GroupSparse, model: nn.Module, graph: Graph, budget: Budget) -> None:
        self.settings = settings
        self.graph = graph
        self.budget = budget
        self.groups = _groups(model, graph)
        self.mask_O = {name: torch.ones_like(_norm(group)) for name, group in self.groups.items()}
        self.ids = {name: ids.to(self.mask_O[name].device) for name, ids in graph.filter_sets.items()}
        self.behind = LayersBehind(model, graph)
        self.share = 0.0

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Add the subgradient of lam sum_o (1 - importance_o) |group_o| to the gradients.

        The subgradient is 0 at a group of 0.
        """
        for group in self.groups.values():
            norm_O = _norm(group)
            factor_O = self.settings.lam * torch.where(norm_O > 0, (1 - norm_O / norm_O.max()) / norm_O, 0)
            for parameter in group:
                if parameter.grad is not None:
                    parameter.grad.addcmul_(parameter, _along(factor_O, parameter))

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Masked filters stay zero."""
        self.share = float(step.index + 1) / step.total
        self._apply_masks()

    def _apply_masks(self) -> None:
        """Zero masked filters, and the layers that would give their channels a constant value."""
        for name, group in self.groups.items():
            for parameter in group:
                parameter.mul_(_along(self.mask_O[name], parameter))
        mask_S = next(iter(self.mask_O.values())).new_ones(self.graph.set_count)
        for name, ids in self.ids.items():
            mask_S[ids] = self.mask_O[name]
        self.behind.mask(mask_S)

    @torch.no_grad()
    def after_epoch(self, model: nn.Module) -> None:
        """Set the threshold so that removed filters meet the due part of the budget."""
        due = self.budget.share * min(1.0, self.share / self.settings.prune_share)
        norms = {name: _norm(group) for name, group in self.groups.items()}
        planner = filter_planner(self.graph, norms, ranking=self.settings.ranking)
        for name, layer in meet(
            planner, self.graph, Budget(share=due, scope=self.budget.scope, timing=self.budget.timing)
        ).plan.items():
            self.mask_O[name] *= layer.kept_O.to(self.mask_O[name])
        self._apply_masks()

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Share of filters that are masked, and the lasso's value."""
        masks, norms = torch.cat(list(self.mask_O.values())), {name: _norm(g) for name, g in self.groups.items()}
        lasso = torch.stack([((1 - norm_O / norm_O.max()) * norm_O).sum() for norm_O in norms.values()]).sum()
        return {"masked_share": float(1 - masks.mean()), "penalty": self.settings.lam * float(lasso)}

    def state_dict(self) -> State:
        """Return the masks [O] and the finished share of the stage."""
        return {"mask": {name: mask_O.clone() for name, mask_O in self.mask_O.items()}, "share": self.share}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        self.mask_O = {name: mask_O.to(self.mask_O[name], copy=True) for name, mask_O in state["mask"].items()}
        self.share = state["share"]


@dataclass(frozen=True, kw_only=True)
class GroupSparse(Criterion):
    """Norm of each filter with its batch norm, after training that removes redundant filters.

    lam          weight of the lasso
    prune_share  share of the stage in which the budget falls due, linearly
    ranking      how the norms of different layers compare
    """

    scopes = ("coupled",)
    granularity = "filter"
    source = (
        "Su et al., Compressing Deep Reinforcement Learning Networks with a Dynamic Structured Pruning Method for Autonomous "
        "Driving, arXiv 2402.05146 (2024)"
    )
    deviations = (
        "adapted from the fully connected networks of reinforcement learning to classification by CNNs, and written from the "
        "paper's abstract, without its equations or code; ours are the groups (a filter with scale and shift of its batch "
        "norm), their importance (norm over the largest of the layer) and its weight in the lasso (1 - importance), the rates, "
        "and that the threshold is set after every epoch by the part of the MACs budget that is due; tied filters go by "
        "their mean; where the masks remove more than the budget, the largest masked filters come back, with weights of 0"
    )
    learns = True
    needs_budget = True
    evidence = "abstract"
    lowest: ClassVar = {"lam": 0}
    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {"lam": (1e-4, 5e-4, 2e-3), "prune_share": (0.5, 0.75, 1.0)}

    lam: float = 5e-4
    prune_share: float = 0.75
    ranking: Ranking = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.prune_share <= 1:
            raise ValueError(f"group_sparse's prune_share must be above 0 and at most 1, got {self.prune_share}")

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> Learner:
        """Return the lasso and the masks of every convolution."""
        assert task.budget is not None
        return _DynamicPruning(self, model, graph, task.budget)

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> norm of each filter with its batch norm [O]; 0 if masked."""
        return {name: _norm(group) for name, group in _groups(model, graph).items()}


def _groups(model: nn.Module, graph: Graph) -> dict[str, list[nn.Parameter]]:
    """Return layer -> filters, with the scale and shift or the bias of each."""
    return {
        name: [
            *(p for key, p in model.get_submodule(name).named_parameters(recurse=False) if key != "bias" or not conv.bn)
        ]
        + [model.get_parameter(f"{conv.bn}.{kind}") for kind in ("weight", "bias") if conv.bn]
        for name, conv in graph.convs.items()
    }


def _norm(group: list[nn.Parameter]) -> Tensor:
    """L2 norm of each filter's group [O]."""
    return torch.stack([part.detach().square().reshape(len(part), -1).sum(1) for part in group]).sum(0).sqrt()


def _along(value_O: Tensor, parameter: Tensor) -> Tensor:
    """`value_O`, shaped to multiply a parameter whose first dimension is the filters."""
    return value_O.view(-1, *[1] * (parameter.dim() - 1))
