"""Structured sparsity learning: a group lasso on filters and on input channels.

Shapes: O filters, I input channels, S filter sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from baselines._ranks import filter_and_channel_planner
from suite.contract import Learner, Planner, Pruner, Scope, State, Step, Task
from suite.graph import Graph
from suite.select import sets_of_scope

EMPTY = 0.01
"""A filter or channel whose norm is below this share of its layer's mean counts as empty, in the log only."""


class _GroupLasso(Learner):
    """Adds the subgradient of lam_filters sum_o |W_o| + lam_channels sum_i |W_:,i| of each layer.

    The subgradient of a norm of 0 is 0.
    """

    capturable = True

    def __init__(self, settings: SSL, model: nn.Module, graph: Graph) -> None:
        scope = sets_of_scope(graph, settings.scope)
        weights = {name: model.get_parameter(f"{name}.weight") for name in graph.convs}
        self.layers = [
            (
                w,
                settings.lam_filters if name in scope else 0.0,
                (graph.input_sets[name] >= 0).to(w.device, w.dtype) * settings.lam_channels,
            )
            for name, w in weights.items()
        ]

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Add the penalty's subgradient to the loss's gradient."""
        for w_OIkk, lam, lam_I in self.layers:
            norm_O, norm_I = _norms(w_OIkk)
            factor_OI = lam * _inverse(norm_O)[:, None] + lam_I * _inverse(norm_I)
            if w_OIkk.grad is not None:
                w_OIkk.grad.addcmul_(w_OIkk, factor_OI[:, :, None, None])

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Return the penalty and the shares of nearly empty filters and channels."""
        norms = [_norms(w_OIkk) for w_OIkk, _, _ in self.layers]
        lasso = [lam * o.sum() + lam_I @ i for (o, i), (_, lam, lam_I) in zip(norms, self.layers, strict=True)]
        filters, channels = (torch.cat([n / n.mean() < EMPTY for n in side]) for side in zip(*norms, strict=True))
        return {
            "penalty": float(torch.stack(lasso).sum()),
            "empty_filters": float(filters.float().mean()),
            "empty_channels": float(channels.float().mean()),
        }


@dataclass(frozen=True, kw_only=True)
class SSL(Pruner):
    """Filters and input channels in one order of norms, after a group lasso.

    lam_filters   weight of the lasso on filters
    lam_channels  weight of the lasso on input channels
    scope         filters under the lasso
    """

    granularity = "channel"
    source = "Wen et al., Learning Structured Sparsity in Deep Neural Networks, NeurIPS 2016, section 3.2, equation 2"
    deviations = (
        "the least groups go until the budget is met, in one order over the network (norms divided by their layer's mean), "
        "not those below a threshold; filters tied by residual sums go together, by their mean (scope coupled; the "
        "paper's ResNet loses layers, not filters); the image's channels and the best filter and channel of every layer stay; "
        "both weights are ours, as the paper gives none for these networks"
    )
    learns = True
    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "lam_filters": (1e-4, 5e-4, 2e-3),
        "lam_channels": (1e-4, 5e-4, 2e-3),
    }
    lowest: ClassVar = {"lam_filters": 0, "lam_channels": 0}

    lam_filters: float = 5e-4
    lam_channels: float = 5e-4
    scope: Scope = "coupled"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope not in get_args(Scope):
            raise ValueError(f"ssl has no scope {self.scope!r}; choose {', '.join(get_args(Scope))}")

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> Learner:
        """Return the group lasso on every convolution."""
        return _GroupLasso(self, model, graph)

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Remove filter sets and input channels in one order of norms over their layer's mean."""
        norms = {name: _norms(model.get_parameter(f"{name}.weight").detach()) for name in graph.convs}
        filters, channels = ({name: pair[side] for name, pair in norms.items()} for side in (0, 1))
        return filter_and_channel_planner(graph, filters, channels, normalise=True, scope=self.scope)


def _norms(w_OIkk: Tensor) -> tuple[Tensor, Tensor]:
    """Return L2 norms of the filters [O] and of the input channels [I]."""
    energy_OI = w_OIkk.square().sum((2, 3))
    return energy_OI.sum(1).sqrt(), energy_OI.sum(0).sqrt()


def _inverse(norm: Tensor) -> Tensor:
    return torch.where(norm > 0, norm.reciprocal(), 0)
