"""TEMPLATE: what the method removes, and why that should be good.

Copy this file to baselines/NAME.py; its presence registers NAME, and `pytest -k NAME` runs the common checks on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from suite.contract import Criterion, State, Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class Template(Criterion):
    """Keeps the filters whose largest weight is largest. The fields of this class are its hyperparameters."""

    granularity = "filter"
    source = "Author et al., Title, Venue Year, section 3, equation 4"
    deviations = ""

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Layer -> float [O], larger is more important. `task.samples(n)` gives training images where they are needed."""
        return {name: model.get_parameter(f"{name}.weight").abs().amax((1, 2, 3)) for name in graph.convs}
