"""Network slimming: an L1 penalty on the batch-norm scales drives those of useless channels to zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from suite.contract import Criterion, Learner, OptOut, Ranking, Recipe, State, Step, Task
from suite.graph import Graph


class _ScalePenalty(Learner):
    """Adds the subgradient of lam * sum |scale| to the gradients; 0 at 0."""

    capturable = True

    def __init__(self, lam: float, scales: list[nn.Parameter]) -> None:
        self.lam = lam
        self.scales = scales

    def before_step(self, step: Step) -> None:
        """Put the penalty's subgradient on top of the loss's gradient."""
        pairs = [(scale.grad, scale.detach().sign()) for scale in self.scales if scale.grad is not None]
        torch._foreach_add_([gradient for gradient, _ in pairs], [sign for _, sign in pairs], alpha=self.lam)

    def metrics(self) -> dict[str, float]:
        """Penalty and the share of scales below 0.01."""
        flat = torch.cat([scale.detach().abs() for scale in self.scales])
        return {"penalty": float(flat.sum()) * self.lam, "scales_below_0.01": float((flat < 0.01).float().mean())}


@dataclass(frozen=True, kw_only=True)
class Slimming(Criterion):
    """Channels in the order of their batch-norm scale, after training with the penalty."""

    granularity = "channel"
    source = "Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017, equation 1"
    deviations = (
        "scales are compared over the network as they are, tied channels of a residual stream by their mean scale, instead "
        "of by channel selection layers in pre-activation blocks; the best channel of every layer stays"
    )
    learns = True
    search: ClassVar = {"lam": (1e-5, 1e-4, 1e-3), "ranking": ("raw", "global")}
    recipes: ClassVar[Mapping[tuple[str, str], Recipe | OptOut]] = {
        ("cifar10", "vgg16"): Recipe(settings={"lam": 1e-4}, source="section 4.2 of the paper, VGGNet on CIFAR-10"),
        ("cifar10", "*"): Recipe(settings={"lam": 1e-5}, source="section 4.2 of the paper, ResNet on CIFAR-10"),
    }
    lowest: ClassVar = {"lam": 0}

    lam: float = 1e-4
    """Weight of the penalty on the scales."""
    ranking: Ranking = "raw"

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> Learner:
        """The penalty on the scale of every batch norm that follows a convolution."""
        return _ScalePenalty(
            self.lam, [model.get_parameter(f"{bn}.weight") for bn in graph.batch_norms("slimming").values()]
        )

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Layer -> |scale| of the batch norm behind it [O]."""
        return {
            name: model.get_parameter(f"{bn}.weight").detach().abs()
            for name, bn in graph.batch_norms("slimming").items()
        }
