"""Channel pruning by LASSO and reconstruction, in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from baselines._samples import damped_solve, plan_by_samples, refit
from suite.contract import OptOut, Planner, Pruner, PruningPlan, Recipe, State, Task
from suite.graph import Graph

LAMBDAS = 100
"""Points of the path, evenly spaced in log lambda. Channels that enter between two of them go by the size of their beta."""
LAST_LAMBDA = 1e-3
"""Of the first. Channels that have not entered by then go first."""


@dataclass(frozen=True, kw_only=True)
class LassoOnePass(Pruner):
    """Selects input channels by LASSO, then refits the remaining weights by least squares."""

    granularity = "channel"
    version = 2
    source = "He, Zhang, Sun, Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, section 3.1, equations 2-4"
    deviations = (
        "one pass: one LASSO path per layer, on the unpruned network; channels go in the reverse order of their entry, not by a "
        "penalty that is raised on inputs pruned so far until enough are gone; the same share of every layer instead of hand-set "
        "rates; the last layer of a residual branch is fitted to its own output, not to the block's (no multi-branch "
        "enhancement); shortcut convolutions are pruned as others are; least squares is damped by 1e-6 of the mean diagonal, "
        "towards the weights before"
    )
    recipes: ClassVar[Mapping[tuple[str, str], Recipe | OptOut]] = {
        ("digits", "*"): Recipe(settings={"images": 128}, source="ours: there are 1,437 images"),
    }

    search: ClassVar[Mapping[str, tuple[int, ...]]] = {"images": (500, 1000, 5000), "positions": (5, 10)}
    lowest: ClassVar = {"images": 1, "positions": 1}

    images: int = 5000
    """Training images that are looked at."""
    positions: int = 10
    """Output pixels of each image."""

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Return the planner that removes the same share of every layer but the stem.

        A channel of a residual stream that one reader drops stays in the stream for other readers.
        """
        layers = [name for name, conv in graph.convs.items() if conv.role != "stem"]
        return plan_by_samples(
            model, graph, task, layers, lasso_order, images=self.images, positions=self.positions
        )  # fmt: skip

    def reconstruct(self, model: nn.Module, graph: Graph, plan: PruningPlan, task: Task) -> None:
        """Fit weights by equation 4, layer by layer: pruned inputs, unpruned outputs."""
        refit(model, graph, plan, task, least_squares, images=self.images, positions=self.positions)


def lasso_order(gram_II: Tensor, w_OIK: Tensor) -> Tensor:
    """Return channels from the last to the first that enters the LASSO path.

    The path is of min 1/2 |Y - sum_i beta_i Z_i|^2 + lambda |beta|_1. Z_i is the output of channel i with weights of norm 1
    (the constraint of equation 2), and Y the output of the layer. Only their products matter, so a square matrix with the same
    products replaces the samples.
    """
    norm_I = w_OIK.norm(dim=(0, 2)).clamp(min=torch.finfo(torch.float64).tiny)
    gram = gram_II / norm_I[:, None] / norm_I
    gram = gram / gram.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    z = torch.linalg.cholesky(gram + 1e-9 * torch.eye(len(gram), dtype=gram.dtype), upper=True)
    from sklearn.linear_model import lasso_path  # takes seconds to import

    _, beta, _ = lasso_path(
        z.numpy(), (z @ norm_I).numpy(), alphas=LAMBDAS, eps=LAST_LAMBDA, precompute=(z.T @ z).numpy(), tol=1e-3
    )
    inside = np.abs(beta) > 1e-6 * np.abs(beta).max()
    entry = np.where(inside.any(1), inside.argmax(1), LAMBDAS - 1)
    return torch.from_numpy(np.lexsort((np.abs(beta[np.arange(len(beta)), entry]), -entry)))


def least_squares(w_OIK: Tensor, before_OCK: Tensor, xx: Tensor, xy: Tensor) -> Tensor:
    """Return argmin over w of |before y - w x|^2."""
    w = w_OIK.flatten(1).T
    return (w + damped_solve(xx, xy @ before_OCK.flatten(1).T - xx @ w)).T.reshape(w_OIK.shape)
