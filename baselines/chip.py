"""CHIP: filters whose feature maps are nearly combinations of the layer's other maps go first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from baselines._maps import mean_over_images
from suite.contract import Criterion, OptOut, Ranking, Recipe, Scope, State, Task
from suite.graph import Graph

ENTRIES_AT_ONCE = 2**24
"""Float64 numbers in one batch of matrices whose eigenvalues are taken: 128 MiB."""


@dataclass(frozen=True, kw_only=True)
class CHIP(Criterion):
    """Mean channel independence: the nuclear norm that a layer's maps lose with the filter's map.

    images   training images over which the independence is averaged
    """

    granularity = "filter"
    source = (
        "Sui et al., CHIP: CHannel Independence-based Pruning for Compact Neural Networks, NeurIPS 2021, equation 4 and "
        "algorithm 1; the authors' calculate_ci.py: 5 batches of 128 images, maps after the activation, sum included"
    )
    deviations = (
        "the same share of every layer instead of hand-set rates per layer; maps are not rounded to four decimals before "
        "their norm is taken"
    )
    recipes: ClassVar[Mapping[tuple[str, str], Recipe | OptOut]] = {
        ("digits", "*"): Recipe(settings={"images": 8}, source="ours: eigenvalues of one map each, on one CPU core"),
        ("imagenet", "*"): Recipe(settings={"images": 64}, source="ours; the authors take 640"),
    }
    lowest: ClassVar[Mapping[str, float]] = {"images": 1}
    search: ClassVar[Mapping[str, tuple[Ranking, ...]]] = {"ranking": ("layer", "global")}

    ranking: Ranking = "layer"
    scope: Scope = "untied"
    images: int = 640

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> mean channel independence [O].

        Costs a forward pass and, for each map, the eigenvalues of a matrix of min(O, H * W) rows.
        """
        return mean_over_images(model, graph, task, self.images, independence)


def independence(maps_BOhw: Tensor) -> Tensor:
    """Return the nuclear norm that an image's maps lose with one map [B, O].

    An image has O rows of H * W.

    The squared singular values of the maps without row o are the eigenvalues of M^T M - m_o^T m_o, or of M M^T without row and
    column o; the smaller of the two matrices is taken.
    """
    rows = maps_BOhw.flatten(2).double()
    count, width = rows.shape[1:]
    gram = rows @ rows.mT if count <= width else rows.mT @ rows
    parts = []
    for image, gram_NN in zip(rows, gram, strict=True):
        norms = []
        for some in torch.arange(count, device=rows.device).split(max(1, ENTRIES_AT_ONCE // gram_NN.numel())):
            if count <= width:
                kept = 1 - torch.nn.functional.one_hot(some, count).to(gram_NN)
                without = gram_NN * kept[:, :, None] * kept[:, None]
            else:
                without = gram_NN - image[some, :, None] * image[some, None]
            norms.append(_nuclear_norm(without))
        parts.append(_nuclear_norm(gram_NN) - torch.cat(norms))
    return torch.stack(parts)


def _nuclear_norm(gram: Tensor) -> Tensor:
    """Return the sum of singular values, given a Gram matrix [..., N, N]."""
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum(-1)
