"""Channels in the order in which LASSO lets them in; then the weights that are left are fitted to the layer's old output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from sklearn.linear_model import lasso_path
from torch import Tensor, nn

from baselines._samples import damped_solve, plan_by_samples, refit
from suite.contract import OptOut, Planner, Pruner, PruningPlan, Recipe, State, Task
from suite.graph import Graph

LAMBDAS = 100
"""Points of the path, evenly spaced in log lambda. Channels that enter between two of them go by the size of their beta."""
LAST_LAMBDA = 1e-3
"""Of the first. Channels that have not entered by then go first."""


@dataclass(frozen=True, kw_only=True)
class LassoChannels(Pruner):
    """LASSO selects the input channels of every layer, least squares on sampled pixels gives the weights of what is left."""

    granularity = "channel"
    source = "He, Zhang, Sun, Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, section 3.1, equations 2-4"
    deviations = (
        "one LASSO path per layer, on the unpruned network: channels go in the reverse order of their entry, instead of a "
        "penalty that is raised on inputs pruned so far until enough are gone; the same share of every layer instead of hand-set "
        "rates; the last layer of a residual branch is fitted to its own output, not to the block's (no multi-branch "
        "enhancement); shortcut convolutions are pruned as others are; least squares is damped by 1e-6 of the mean diagonal, "
        "towards the weights before"
    )
    recipes: ClassVar[Mapping[tuple[str, str], Recipe | OptOut]] = {
        ("digits", "*"): Recipe(settings={"images": 128}, source="ours: there are 1,437 images"),
        ("imagenet", "*"): Recipe(settings={"images": 500}, source="ours: activations of all are in memory at once"),
    }

    search: ClassVar[Mapping[str, tuple[int, ...]]] = {"images": (500, 1000, 5000), "positions": (5, 10)}
    lowest: ClassVar = {"images": 1, "positions": 1}

    images: int = 5000
    """Training images that are looked at."""
    positions: int = 10
    """Output pixels of each image."""

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Every layer but the stem loses the same share of its input channels, the last to enter first.

        What one reader of a residual stream no longer reads stays there for the others.
        """
        layers = [name for name, conv in graph.convs.items() if conv.role != "stem"]
        return plan_by_samples(
            model, graph, task, layers, lasso_order, images=self.images, positions=self.positions
        )  # fmt: skip

    def reconstruct(self, model: nn.Module, graph: Graph, plan: PruningPlan, task: Task) -> None:
        """Equation 4, layer by layer: inputs from the pruned network, outputs from the unpruned one."""
        refit(model, graph, plan, task, least_squares, images=self.images, positions=self.positions)


def lasso_order(gram_II: Tensor, w_OIK: Tensor) -> Tensor:
    """The channels from the last to the first that enters min 1/2 |Y - sum_i beta_i Z_i|^2 + lambda |beta|_1 as lambda falls.

    Z_i is what channel i adds to the output with weights of norm 1 (the constraint of equation 2), and Y the output. Only
    their products matter, so a square matrix with the same ones stands for the samples.
    """
    norm_I = w_OIK.norm(dim=(0, 2)).clamp(min=torch.finfo(torch.float64).tiny)
    gram = gram_II / norm_I[:, None] / norm_I
    gram = gram / gram.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    z = torch.linalg.cholesky(gram + 1e-9 * torch.eye(len(gram), dtype=gram.dtype), upper=True)
    _, beta, _ = lasso_path(
        z.numpy(), (z @ norm_I).numpy(), alphas=LAMBDAS, eps=LAST_LAMBDA, precompute=(z.T @ z).numpy(), tol=1e-3
    )
    inside = np.abs(beta) > 1e-6 * np.abs(beta).max()
    entry = np.where(inside.any(1), inside.argmax(1), LAMBDAS - 1)
    return torch.from_numpy(np.lexsort((np.abs(beta[np.arange(len(beta)), entry]), -entry)))


def least_squares(w_OIK: Tensor, before_OCK: Tensor, xx: Tensor, xy: Tensor) -> Tensor:
    """argmin over w of |before y - w x|^2."""
    w = w_OIK.flatten(1).T
    return (w + damped_solve(xx, xy @ before_OCK.flatten(1).T - xx @ w)).T.reshape(w_OIK.shape)
