"""HRank: filters whose feature maps have low rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from baselines._maps import mean_over_images
from suite.contract import Criterion, OptOut, Ranking, Recipe, Scope, State, Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class HRank(Criterion):
    """Removes the filters whose feature maps, after the activation, have the smallest mean rank."""

    granularity = "filter"
    source = (
        "Lin et al., HRank: Filter Pruning using High-Rank Feature Map, CVPR 2020, section 3.2; the released code prunes each "
        "convolution on its own (scope untied)"
    )
    deviations = (
        "one rate for all layers, not one per layer by hand; all layers are pruned at once, not one by one with fine-tuning "
        "between; the map of the last convolution of a block is taken after the sum and its activation"
    )
    recipes: ClassVar[Mapping[tuple[str, str], Recipe | OptOut]] = {
        ("imagenet", "*"): Recipe(
            settings={"images": 128}, source="ours; the paper takes 500 and finds the mean rank hardly depends on them"
        ),
    }
    search: ClassVar = {"ranking": ("layer", "global")}
    implied: ClassVar[Mapping[str, Any]] = {"scope": "coupled", "ranking": "global"}
    lowest: ClassVar = {"images": 1}

    ranking: Ranking = "layer"
    scope: Scope = "untied"
    images: int = 500
    """Training images over which the rank is averaged."""

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> mean rank of the feature maps [O].

        Costs a forward pass and the singular values of each image's maps: for a ResNet-50 at 224x224, 0.8 s an image on one
        CPU core.
        """
        return mean_over_images(model, graph, task, self.images, torch.linalg.matrix_rank)
