"""Network slimming: an L1 penalty on the batch-norm scales while training from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from suite.contract import Criterion, Learner, OptOut, Ranking, Recipe, Scope, State, Step, Task
from suite.graph import Graph

INITIAL_SCALE = 0.5
"""Of the batch norms, as the authors set it."""


class _ScalePenalty(Learner):
    """Adds the subgradient of lam * sum |scale|, and takes weight decay off the scales."""

    capturable = True

    def __init__(self, lam: float, scales: list[nn.Parameter]) -> None:
        self.lam = lam
        self.scales = scales

    def before_step(self, step: Step) -> None:
        """Add the penalty's subgradient to the loss's gradient."""
        decay = step.optimizer.param_groups[0]["weight_decay"]
        for scale in self.scales:
            if scale.grad is not None:
                scale.grad.add_(scale.detach().sign(), alpha=self.lam).sub_(scale.detach(), alpha=decay)

    def metrics(self) -> dict[str, float]:
        """Return the penalty and the share of scales below 0.01."""
        flat = torch.cat([scale.detach().abs() for scale in self.scales])
        return {"penalty": float(flat.sum()) * self.lam, "scales_below_0.01": float((flat < 0.01).float().mean())}


@dataclass(frozen=True, kw_only=True)
class Slimming(Criterion):
    """Removes channels of smallest batch-norm scales, after penalised training from scratch."""

    granularity = "channel"
    source = "Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017, equation 1"
    deviations = (
        "in the authors' pre-activation networks each reader of a residual stream selects its channels by its own scales; here "
        "the batch norm follows the convolution, so a scale selects what its convolution adds to the stream, and the stream "
        "keeps its width (scope untied); batches are those of the grid, not of 64"
    )
    learns = True
    start: ClassVar[Literal["base", "init"]] = "init"
    version = 2
    training: ClassVar[Mapping[str, Any]] = {"lr": 0.1, "weight_decay": 1e-4, "shape": "steps"}
    search: ClassVar = {"lam": (1e-4, 3e-4, 1e-3), "ranking": ("raw", "global")}
    recipes: ClassVar[Mapping[tuple[str, str], Recipe | OptOut]] = {
        ("cifar10", "vgg16"): Recipe(settings={"lam": 1e-4}, source="section 4.2 of the paper, VGGNet on CIFAR-10"),
        ("cifar10", "*"): Recipe(settings={"lam": 1e-5}, source="section 4.2 of the paper, ResNet on CIFAR-10"),
    }
    lowest: ClassVar = {"lam": 0}

    lam: float = 1e-4
    """Weight of the penalty on the scales."""
    ranking: Ranking = "raw"
    scope: Scope = "untied"

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> Learner:
        """Return the penalty on the batch-norm scales behind convolutions; set them to 0.5."""
        scales = [model.get_parameter(f"{bn}.weight") for bn in graph.batch_norms("slimming").values()]
        for scale in scales:
            nn.init.constant_(scale, INITIAL_SCALE)
        return _ScalePenalty(self.lam, scales)

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> |scale| of the batch norm after it [O]."""
        return {
            name: model.get_parameter(f"{bn}.weight").detach().abs()
            for name, bn in graph.batch_norms("slimming").items()
        }
