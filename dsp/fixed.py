"""Filter groups that are not learned, to hold the learned ones against.

Shapes: G filter groups, O filters, I input channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsp.selection import kernel_energies
from suite.graph import Conv


def shuffle_filters(model: nn.Module, convs: Sequence[Conv], groups: int, seed: int) -> dict[str, Tensor]:
    """Return layer name -> int64 [O]: random groups of equal size, to within one filter."""
    generator = torch.Generator().manual_seed(seed)
    return {conv.name: torch.randperm(conv.filters, generator=generator) % groups for conv in convs}


def cluster_filters(model: nn.Module, convs: Sequence[Conv], groups: int, seed: int) -> dict[str, Tensor]:
    """Return layer name -> int64 [O]: k-means of filters by used channels.

    A filter's features are the norms of its kernels, scaled to a vector of length 1: filters that lean on the same
    channels can give up the same ones.
    """
    from sklearn.cluster import KMeans  # takes a second to import

    group_by_layer = {}
    for conv in convs:
        norms_OI = kernel_energies(model.get_parameter(f"{conv.name}.weight")).sqrt()
        means = KMeans(n_clusters=groups, n_init=10, random_state=seed).fit(F.normalize(norms_OI).numpy())
        group_by_layer[conv.name] = torch.from_numpy(means.labels_).long()
    return group_by_layer
