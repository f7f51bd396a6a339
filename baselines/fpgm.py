"""FPGM: soft pruning of the filters nearest to the geometric median of their layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from baselines._medians import distance_sums
from baselines._soft import SoftPruning
from suite.contract import Criterion, Learner, PruningPlan, Ranking, Scope, State, Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class FPGM(Criterion):
    """Sum of distances to the layer's filters, after soft pruning."""

    granularity = "filter"
    source = (
        "He et al., Filter Pruning via Geometric Median, CVPR 2019, equations 6-7, algorithm 1; the released code masks each "
        "convolution on its own, one rate for all layers (scope untied)"
    )
    deviations = (
        "distances only, not the paper's mixture with a tenth of filters by norm; learning starts from the base network (the "
        "paper has it both ways)"
    )
    learns = True
    needs_budget = True
    version = 2
    search: ClassVar = {"ranking": ("layer", "global")}

    ranking: Ranking = "layer"
    scope: Scope = "untied"

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> Learner:
        """Return the hook that zeroes filters after each epoch, at the task's budget."""
        assert task.budget is not None
        return SoftPruning(self, graph, task.budget, distance_sums)

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> sum of distances of each filter [O], lowest if zeroed."""
        zeroed = PruningPlan.from_tensors(state["zeroed"])
        sums = distance_sums(model, graph)
        return {
            name: sums_O + sums_O.max() * zeroed[name].kept_O.to(sums_O) if name in zeroed else sums_O
            for name, sums_O in sums.items()
        }
