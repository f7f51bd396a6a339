"""TEMPLATE: what the method learns before it prunes, and why that should be good.

`pruning-suite new method NAME --learning --plugins DIR` copies this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from suite.contract import Criterion, Learner, State, Step, Task
from suite.graph import Graph


class Importance(Learner):
    """Penalises the norms of filters, and averages |weight x gradient| over the steps.

    The suite's training loop calls the hooks. All that the scores need, and all that a continued run needs, is in `state_dict`.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], lam: float, momentum: float) -> None:
        self.weights = weights
        self.lam = lam
        self.momentum = momentum
        self.scores = {name: torch.zeros(len(weight), device=weight.device) for name, weight in weights.items()}

    def penalty(self) -> Tensor:
        """Return lam * the sum of the filters' norms, which is added to the loss."""
        norms = [weight.flatten(1).norm(dim=1).sum() for weight in self.weights.values()]
        return self.lam * torch.stack(norms).sum()

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Update the averages, between the backward pass and the optimizer's step."""
        for name, weight in self.weights.items():
            if weight.grad is not None:
                now = (weight * weight.grad).abs().flatten(1).sum(1)
                self.scores[name].lerp_(now, 1 - self.momentum)

    def metrics(self) -> dict[str, float]:
        """Return numbers for the training log, once an epoch."""
        with torch.no_grad():
            return {"penalty": float(self.penalty())}

    def state_dict(self) -> State:
        """Return the state for a bit-exact continuation and for `score`."""
        return {name: scores.cpu() for name, scores in self.scores.items()}

    def load_state_dict(self, state: State) -> None:
        """Restore a result of `state_dict`."""
        for name, scores in self.scores.items():
            scores.copy_(state[name])


@dataclass(frozen=True, kw_only=True)
class Template(Criterion):
    """Keeps the filters that the loss of a penalised training depends on most.

    The fields of this class are its hyperparameters: a grid sets them by `cross(..., lam=1e-3)`, and they are part of a run's
    identity.
    """

    granularity = "filter"
    source = "Author et al., Title, Venue Year, section 3, equation 4"
    deviations = ""
    learns = True
    lowest: ClassVar = {"lam": 0, "momentum": 0}
    search: ClassVar = {"lam": (1e-5, 1e-4)}  # the values that tuning tries

    lam: float = 1e-4
    """Weight of the penalty."""
    momentum: float = 0.9
    """Of the average over the steps."""

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> Learner:
        """Return the hooks into the training before pruning."""
        weights = {name: model.get_parameter(f"{name}.weight") for name in graph.convs}
        return Importance(weights, self.lam, self.momentum)

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> float [O]; larger is more important. `state` is the learner's last `state_dict`."""
        device = next(model.parameters()).device
        return {name: state[name].to(device) for name in graph.convs}
