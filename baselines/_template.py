"""TEMPLATE: what the method removes, and why that should be good.

`pruning-suite new method NAME --plugins DIR` copies this file. Its presence registers NAME; in baselines/, `pytest -k NAME` runs
the common checks on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from suite.contract import Criterion, State, Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class Template(Criterion):
    """Keeps the filters with the largest mean of |weight|^power.

    The fields of this class are its hyperparameters: a grid sets them by `cross(..., power=2.0)`, and they are part of a run's
    identity. `ranking`, which every criterion has, compares scores of different layers: "global" divides them by their
    layer's mean, "raw" leaves them as they are, "layer" removes the same share everywhere.
    """

    granularity = "filter"
    source = "Author et al., Title, Venue Year, section 3, equation 4"
    deviations = ""
    search: ClassVar = {"power": (1.0, 2.0)}  # the values that tuning tries

    power: float = 1.0

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise ValueError(f"template's power must be positive, got {self.power}")

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> float [O]; larger is more important.

        `task.samples(n)` returns training images if the score needs them.
        """
        weights = {name: model.get_parameter(f"{name}.weight") for name in graph.convs}
        return {name: w.abs().pow(self.power).mean((1, 2, 3)) for name, w in weights.items()}
