"""Soft filter pruning: after every epoch the least filters are set to zero, and may grow again in the next one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from baselines._norms import filter_weights, l2_norms
from suite.contract import Budget, Criterion, Learner, PruningPlan, Ranking, State, Task
from suite.graph import Graph
from suite.select import filter_planner, meet


class _SoftPruning(Learner):
    """Sets the filters to zero that a hard pruning to the budget would remove."""

    capturable = True

    def __init__(self, graph: Graph, budget: Budget, ranking: Ranking) -> None:
        self.graph = graph
        self.budget = budget
        self.ranking = ranking
        self.zeroed = PruningPlan({})
        self.returned_share = 0.0

    @torch.no_grad()
    def after_epoch(self, model: nn.Module) -> None:
        """Zero the weights of the least filters; their batch norm and their momentum stay."""
        norms = l2_norms(filter_weights(model, self.graph))
        before, planner = self.zeroed, filter_planner(self.graph, norms, ranking=self.ranking)
        self.zeroed = meet(planner, self.graph, self.budget).plan
        for name, layer in self.zeroed.items():
            model.get_parameter(f"{name}.weight")[~layer.kept_O] = 0
        still = _removed(before) + _removed(self.zeroed) - _removed(before & self.zeroed)
        self.returned_share = 1 - still / _removed(before) if before else 0.0

    def metrics(self) -> dict[str, float]:
        """Share of all filters that are zero, and of the last epoch's zero filters that came back."""
        filters = sum(conv.filters for conv in self.graph.convs.values())
        return {"zeroed_share": _removed(self.zeroed) / filters, "returned_share": self.returned_share}

    def state_dict(self) -> State:
        """The filters that are zero."""
        return {"zeroed": self.zeroed.to_tensors(), "returned_share": self.returned_share}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        self.zeroed = PruningPlan.from_tensors(state["zeroed"])
        self.returned_share = state["returned_share"]


@dataclass(frozen=True, kw_only=True)
class SFP(Criterion):
    """L2 norm of each filter, after training that zeroes the least ones at the end of every epoch.

    ranking  "layer": the same rate everywhere, as in the paper
    """

    granularity = "filter"
    source = (
        "He et al., Soft Filter Pruning for Accelerating Deep CNNs, IJCAI 2018, section 3.2, equation 3, algorithm 1"
    )
    deviations = (
        "the rate is found from the MACs budget; learning starts from the base network (the paper has it both ways); "
        "residual streams are pruned too, tied filters by the mean of their norms, where the paper leaves the output of a "
        "projection shortcut whole; while learning, the batch norm of a zero filter stays as it is, as in the paper, and "
        "goes with the filter when the network is packed"
    )
    learns = True
    needs_budget = True
    search: ClassVar[Mapping[str, tuple[Ranking, ...]]] = {"ranking": ("layer", "global")}

    ranking: Ranking = "layer"

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> Learner:
        """Zeroes filters after each epoch, at the task's budget."""
        assert task.budget is not None
        return _SoftPruning(graph, task.budget, self.ranking)

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Layer -> L2 norm of each filter [O]; 0 where it was zeroed."""
        return l2_norms(filter_weights(model, graph))


def _removed(plan: PruningPlan) -> int:
    """Filters that `plan` removes."""
    return sum(int((~layer.kept_O).sum()) for layer in plan.values())
