"""Control of every comparison grid: the dense network, trained as long as a pruned one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from suite.contract import Learner, Planner, Pruner, PruningPlan, State, Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class DenseControl(Pruner):
    """Trains through base, learning and fine-tuning, and removes nothing."""

    granularity = "filter"
    source = "control: a drop against it is not a gain of longer training"
    control = True
    learns = True
    removes = False
    expected_failures: ClassVar = dict.fromkeys(
        (
            "test_plans_fit_the_network_and_grow_with_the_knob",
            "test_budgets_are_met_as_closely_as_the_method_can",
            "test_planning_changes_no_weight_and_packed_equals_masked",
            "test_a_small_run_gives_a_good_row",
        ),
        "it removes nothing",
    )

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> Learner:
        """Return hooks that do nothing."""
        return Learner()

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Return the planner that removes nothing."""
        return lambda knob: PruningPlan({})
