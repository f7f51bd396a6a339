"""Structured sparsity learning: a group lasso on filters and on input channels.

Shapes: O filters, I input channels, S filter sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from suite.contract import ConvPlan, Learner, Planner, Pruner, PruningPlan, State, Step, Task
from suite.graph import Graph
from suite.select import set_scores

EMPTY = 0.01
"""A filter or channel whose norm is below this share of its layer's mean counts as empty, in the log only."""


class _GroupLasso(Learner):
    """Adds the subgradient of lam_filters sum_o |W_o| + lam_channels sum_i |W_:,i| of each layer.

    The subgradient of a norm of 0 is 0.
    """

    capturable = True

    def __init__(self, model: nn.Module, graph: Graph, lam_filters: float, lam_channels: float) -> None:
        self.lam_filters = lam_filters
        self.lam_channels = lam_channels
        weights = {name: model.get_parameter(f"{name}.weight") for name in graph.convs}
        self.layers = [
            (w, (graph.input_sets[name] >= 0).to(w.device, w.dtype) * lam_channels) for name, w in weights.items()
        ]

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Add the penalty's subgradient to the loss's gradient."""
        for w_OIkk, lam_I in self.layers:
            norm_O, norm_I = _norms(w_OIkk)
            factor_OI = self.lam_filters * _inverse(norm_O)[:, None] + lam_I * _inverse(norm_I)
            if w_OIkk.grad is not None:
                w_OIkk.grad.addcmul_(w_OIkk, factor_OI[:, :, None, None])

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Return the penalty and the shares of nearly empty filters and channels."""
        norms = [_norms(w_OIkk) for w_OIkk, _ in self.layers]
        lasso = [self.lam_filters * o.sum() + lam_I @ i for (o, i), (_, lam_I) in zip(norms, self.layers, strict=True)]
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
    """

    granularity = "channel"
    source = "Wen et al., Learning Structured Sparsity in Deep Neural Networks, NeurIPS 2016, section 3.2, equation 2"
    deviations = (
        "the least groups go until the budget is met, in one order over the network (norms divided by their layer's mean), "
        "not those below a threshold; filters tied by residual sums go together, by their mean; the image's channels and "
        "the best filter and channel of every layer stay; both weights are ours, as the paper gives none for these networks"
    )
    learns = True
    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "lam_filters": (1e-4, 5e-4, 2e-3),
        "lam_channels": (1e-4, 5e-4, 2e-3),
    }
    lowest: ClassVar = {"lam_filters": 0, "lam_channels": 0}

    lam_filters: float = 5e-4
    lam_channels: float = 5e-4

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> Learner:
        """Return the group lasso on every convolution."""
        return _GroupLasso(model, graph, self.lam_filters, self.lam_channels)

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Remove filter sets and input channels in one order.

        The channel that stays in every layer comes from a filter that stays, so that no layer is ever cut off.
        """
        norms = {name: _norms(model.get_parameter(f"{name}.weight").detach()) for name in graph.convs}
        sets, value_S = set_scores(graph, {name: norm_O for name, (norm_O, _) in norms.items()}, normalise=True)
        stays_S = torch.zeros(len(value_S), dtype=torch.bool)
        for ids in sets.values():
            stays_S[ids[value_S[ids].argmax()]] = True
        values, stays = [value_S], [stays_S]
        for name, (_, norm_I) in norms.items():
            value_I = norm_I.double().cpu()
            source_I = graph.input_sets[name]
            values.append(value_I / value_I.mean().clamp(min=torch.finfo(torch.float64).tiny))
            stays.append(source_I < 0)
            stays[-1][torch.where((source_I < 0) | stays_S[source_I], value_I, -1).argmax()] = True
        order = torch.cat(values).argsort(stable=True)
        order = order[~torch.cat(stays)[order]]
        rank = torch.full((sum(map(len, values)),), torch.inf, dtype=torch.float64)
        rank[order] = torch.arange(len(order), dtype=torch.float64) / max(len(order), 1)
        rank_S, *ranks = rank.split([len(value) for value in values])

        def plan(knob: float) -> PruningPlan:
            return PruningPlan(
                {
                    name: ConvPlan(torch.zeros_like(ids), rank_I[None] >= knob, rank_S[ids] >= knob)
                    for (name, ids), rank_I in zip(sets.items(), ranks, strict=True)
                }
            )

        return plan


def _norms(w_OIkk: Tensor) -> tuple[Tensor, Tensor]:
    """Return L2 norms of the filters [O] and of the input channels [I]."""
    energy_OI = w_OIkk.square().sum((2, 3))
    return energy_OI.sum(1).sqrt(), energy_OI.sum(0).sqrt()


def _inverse(norm: Tensor) -> Tensor:
    return torch.where(norm > 0, norm.reciprocal(), 0)
