"""The pruned architecture trained from scratch: isolates the value of inherited weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from suite.contract import Planner, Pruner, PruningPlan, State, Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class Scratch(Pruner):
    """The followed run's plan on the base network's initial weights, trained by the grid's schedule."""

    granularity = "intra_channel"
    source = "Liu et al., Rethinking the Value of Network Pruning, ICLR 2019, section 3, Scratch-B"
    deviations = (
        "trained under the fine-tuning recipe for the followed run's whole training; as fine as the plan that is followed; from "
        "the base network's own initialisation instead of a new one"
    )
    start: ClassVar[Literal["base", "init"]] = "init"
    needs_reference = True
    control = True
    lowest: ClassVar = {"groups": 1}
    expected_failures: ClassVar[Mapping[str, str]] = {
        "test_budgets_are_met_as_closely_as_the_method_can": "its one plan is that of the run it follows"
    }

    groups: int = 1
    """The most filter groups of the plan."""

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Return the followed run's plan for every knob above 0.

        Raises ValueError if there is no followed run, or if its plan has more groups.
        """
        reference = task.reference
        if reference is None:
            raise ValueError("scratch trains the plan of another run: list it with suite.grids.follow, which gives it")
        most = max((len(layer.kept_GI) for layer in reference.values()), default=1)
        if most > self.groups:
            raise ValueError(f"scratch(groups={self.groups}) follows a plan with {most}: give it groups={most}")
        return lambda knob: reference if knob > 0 else PruningPlan({})
