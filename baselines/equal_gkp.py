"""Grouped kernel pruning with a given number of equal filter groups (TMI-GKP)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from suite.contract import Planner, Pruner, State, Task
from suite.graph import Graph
from suite.select import channel_planner


@dataclass(frozen=True, kw_only=True)
class EqualGKP(Pruner):
    """Groups filters by k-means, then removes from each group the small and redundant grouped kernels."""

    granularity = "intra_channel"
    formerly = "leanflex_gkp"
    source = (
        "Zhong et al., Revisit Kernel Pruning with Lottery Regulated Grouped Convolutions (TMI-GKP), ICLR 2022, section 3; "
        "scores after Zhang et al., Flexible Group Count Enables Hassle-Free Structured Pruning (LeanFlex-GKP), CVPR 2025"
    )
    deviations = (
        "equal groups: their number is given, as in TMI-GKP, and not chosen per layer as in LeanFlex-GKP (a layer whose filters "
        "it does not divide gets its largest divisor below); k-means clusters are made equal by an optimal assignment of filters "
        "to their centres; a grouped kernel's score is our sum of its norm and its mean distance to the group's kernels, each "
        "over its mean in the group; layers lose their n-th channels one after the other, so rates differ by at most one; "
        "no permutation is needed, since packing keeps filters where they are; stem and shortcut convolutions are left"
    )
    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {"groups": (2, 4, 8)}
    lowest: ClassVar = {"groups": 1}

    groups: int = 8
    """Filter groups of a layer, at most."""

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Return a planner whose knob is the share of channels that each group drops."""
        orders, groups = {}, {}
        for name, conv in graph.convs.items():
            if conv.prunable:
                w_OIK = model.get_parameter(f"{name}.weight").detach().flatten(2).cpu().double()
                groups[name] = equal_groups(w_OIK.flatten(1), self.groups, task.seed)
                orders[name] = kernel_scores(w_OIK, groups[name]).argsort(dim=1, stable=True)
        return channel_planner(orders, groups)


def equal_groups(w_OK: Tensor, most: int, seed: int) -> Tensor:
    """Return int64 [O]: at most `most` groups of equal size, each near its k-means centre."""
    filters = len(w_OK)
    count = max(number for number in range(1, min(most, filters) + 1) if filters % number == 0)
    from scipy.optimize import linear_sum_assignment  # these take seconds to import
    from scipy.spatial.distance import cdist
    from sklearn.cluster import KMeans

    centres = KMeans(count, n_init=10, random_state=seed).fit(w_OK.numpy()).cluster_centers_
    distance_OG = cdist(w_OK.numpy(), centres, "sqeuclidean")
    _, seats = linear_sum_assignment(np.repeat(distance_OG, filters // count, axis=1))
    return torch.from_numpy(seats // (filters // count)).long()


def kernel_scores(w_OIK: Tensor, group_O: Tensor) -> Tensor:
    """Return each grouped kernel's relative norm plus relative mean distance [G, I].

    Distances are to the other kernels of the group.
    """
    scores = []
    for g in range(int(group_O.max()) + 1):
        w_I = w_OIK[group_O == g].transpose(0, 1).flatten(1)
        parts = w_I.norm(dim=1), torch.cdist(w_I, w_I).sum(1) / max(len(w_I) - 1, 1)
        scores.append(sum(part / part.mean().clamp(min=torch.finfo(part.dtype).tiny) for part in parts))
    return torch.stack([torch.as_tensor(score) for score in scores])
