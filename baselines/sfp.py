"""Soft filter pruning (SFP) by L2 norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from baselines._norms import filter_weights, l2_norms
from baselines._soft import SoftPruning
from suite.contract import Criterion, Learner, Ranking, Scope, State, Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class SFP(Criterion):
    """L2 norm of each filter, after soft pruning."""

    granularity = "filter"
    source = (
        "He et al., Soft Filter Pruning for Accelerating Deep CNNs, IJCAI 2018, section 3.2, equation 3, algorithm 1; the "
        "released code masks each convolution on its own and leaves projection shortcuts whole (scope untied)"
    )
    deviations = (
        "learning starts from the base network (the paper has it both ways), and filters are zeroed first after the first epoch, "
        "as in the paper, where the released code zeroes before it too; momentum is that of the grid, not Nesterov's; while "
        "learning, the batch norm of a zero filter stays, as in the paper, and is removed with the filter when the network is "
        "packed"
    )
    learns = True
    needs_budget = True
    search: ClassVar[Mapping[str, tuple[Ranking, ...]]] = {"ranking": ("layer", "global")}

    ranking: Ranking = "layer"
    scope: Scope = "untied"

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> Learner:
        """Return the hook that zeroes filters after each epoch, at the task's budget."""
        assert task.budget is not None
        return SoftPruning(self, graph, task.budget, _norms)

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> L2 norm of each filter [O]; 0 for a zeroed filter."""
        return _norms(model, graph)


def _norms(model: nn.Module, graph: Graph) -> dict[str, Tensor]:
    return l2_norms(filter_weights(model, graph))
