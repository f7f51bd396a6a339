"""Soft pruning: the least filters become zero after every epoch, and may grow again.

Shapes: O filters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from suite.contract import Budget, Criterion, Learner, PruningPlan, State
from suite.graph import Graph
from suite.select import filter_planner, meet


class SoftPruning(Learner):
    """Zeroes after each epoch the filters that hard pruning to the budget would remove.

    scores  network, graph -> layer -> score [O]
    """

    capturable = True

    def __init__(
        self,
        settings: Criterion,
        graph: Graph,
        budget: Budget,
        scores: Callable[[nn.Module, Graph], Mapping[str, Tensor]],
    ) -> None:
        self.settings = settings
        self.graph = graph
        self.budget = budget
        self.scores = scores
        self.zeroed = PruningPlan({})
        self.returned_share = 0.0

    @torch.no_grad()
    def after_epoch(self, model: nn.Module) -> None:
        """Zero the weights of the least filters; their batch norm and their momentum stay."""
        planner = filter_planner(
            self.graph, self.scores(model, self.graph), ranking=self.settings.ranking, scope=self.settings.scope
        )
        before, self.zeroed = self.zeroed, meet(planner, self.graph, self.budget).plan
        for name, layer in self.zeroed.items():
            model.get_parameter(f"{name}.weight")[~layer.kept_O] = 0
        still_zero = _removed(before) + _removed(self.zeroed) - _removed(before & self.zeroed)
        self.returned_share = 1 - still_zero / _removed(before) if before else 0.0

    def metrics(self) -> dict[str, float]:
        """Return the shares of zero filters and of last epoch's zero filters that returned."""
        filters = sum(conv.filters for conv in self.graph.convs.values())
        return {"zeroed_share": _removed(self.zeroed) / filters, "returned_share": self.returned_share}

    def state_dict(self) -> State:
        """Return the filters that are zero."""
        return {"zeroed": self.zeroed.to_tensors(), "returned_share": self.returned_share}

    def load_state_dict(self, state: State) -> None:
        """Restore the output of `state_dict`."""
        self.zeroed = PruningPlan.from_tensors(state["zeroed"])
        self.returned_share = state["returned_share"]


def _removed(plan: PruningPlan) -> int:
    """Return the number of filters that `plan` removes."""
    return sum(int((~layer.kept_O).sum()) for layer in plan.values())
