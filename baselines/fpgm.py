"""FPGM: soft pruning of the filters nearest to the geometric median of their layer.

Shapes: O filters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from baselines._medians import distance_sums
from baselines._soft import SoftPruning
from suite.contract import Budget, Criterion, Learner, PruningPlan, Ranking, Scope, State, Step, Task
from suite.graph import Graph


class _MaskedPruning(SoftPruning):
    """Zeroes filters before the first step and after each epoch, and masks their gradients.

    A zero filter moves by the rest of its momentum only; batch norms train on.
    """

    def __init__(self, settings: FPGM, model: nn.Module, graph: Graph, budget: Budget) -> None:
        super().__init__(settings, graph, budget, distance_sums)
        self.weights = {name: model.get_parameter(f"{name}.weight") for name in graph.convs}
        self.kept_O = {name: torch.ones(len(w), 1, 1, 1, device=w.device) for name, w in self.weights.items()}
        self.after_epoch(model)

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Set the gradients of zero filters to 0."""
        for name, w in self.weights.items():
            if w.grad is not None:
                w.grad.mul_(self.kept_O[name])

    @torch.no_grad()
    def after_epoch(self, model: nn.Module) -> None:
        """Zero the filters nearest to the median, and mask their gradients from here on."""
        super().after_epoch(model)
        self._mask()

    def load_state_dict(self, state: State) -> None:
        """Restore the output of `state_dict`."""
        super().load_state_dict(state)
        self._mask()

    def _mask(self) -> None:
        """Write the masks in place, since a captured step reads the masks."""
        for name, kept_O in self.kept_O.items():
            kept_O.fill_(1)
            if name in self.zeroed:
                kept_O.copy_(self.zeroed[name].kept_O[:, None, None, None])


@dataclass(frozen=True, kw_only=True)
class FPGM(Criterion):
    """Sum of distances to the layer's filters, after soft pruning."""

    granularity = "filter"
    source = (
        "He et al., Filter Pruning via Geometric Median, CVPR 2019, equations 6-7, algorithm 1; the released code masks each "
        "convolution on its own, one rate for all layers (scope untied), before the first epoch and after each, and masks the "
        "gradients of zero filters (not for VGG)"
    )
    deviations = (
        "distances only, not the paper's mixture with a tenth of filters by norm; learning starts from the base network (the "
        "paper has it both ways); momentum is that of the grid, not Nesterov's"
    )
    learns = True
    needs_budget = True
    version = 3
    search: ClassVar = {"ranking": ("layer", "global")}

    ranking: Ranking = "layer"
    scope: Scope = "untied"

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> Learner:
        """Return the hooks that zero filters and mask their gradients, at the task's budget."""
        assert task.budget is not None
        return _MaskedPruning(self, model, graph, task.budget)

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> sum of distances of each filter [O], lowest if zeroed."""
        zeroed = PruningPlan.from_tensors(state["zeroed"])
        sums = distance_sums(model, graph)
        return {
            name: sums_O + sums_O.max() * zeroed[name].kept_O.to(sums_O) if name in zeroed else sums_O
            for name, sums_O in sums.items()
        }
