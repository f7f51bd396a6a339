"""Channels and filters that beta removes (Park et al. 2023, section 3; "group channel pruning").

Shapes: O filters, I input channels, G filter groups.

The least channels of a group go, as many as hold less than beta of the group's energy together; likewise the least
filters of a layer that is filter-pruned. Whatever goes at one beta goes at every larger one, so all is sorted once:
each channel and filter has a threshold, the share of energy up to and including it, and goes when that is below beta.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from suite.contract import ConvPlan, Planner, PruningPlan


def energy_planner(
    weights: Mapping[str, Tensor], filter_group: Mapping[str, Tensor], groups: int, filter_pruned: Collection[str]
) -> Planner:
    """Return beta -> plan; beta 0 removes nothing.

    weights        layer name -> [O, I, k, k], for every layer to prune
    filter_group   layer name -> int64 [O]
    filter_pruned  the layers that lose whole filters too; their energies are those before any channel is cut
    """
    layers = {}
    for name, weight in weights.items():
        energy_OI, group_O = kernel_energies(weight), filter_group[name]
        filters_O = filter_thresholds(energy_OI) if name in filter_pruned else torch.full((len(group_O),), torch.inf)
        layers[name] = group_O, channel_thresholds(energy_OI, group_O, groups), filters_O

    def plan(beta: float) -> PruningPlan:
        return PruningPlan(
            {
                name: ConvPlan(group_O, channel_GI >= beta, filter_O >= beta)
                for name, (group_O, channel_GI, filter_O) in layers.items()
            }
        )

    return plan


def kernel_energies(weight: Tensor) -> Tensor:
    """Return the sum of w^2 over the kernel, float64 [O, I] on the CPU.

    In numpy, as all sums here: hundreds of small parallel operations crawl on a machine that others use too.
    """
    w_OIK = weight.detach().cpu().flatten(2).numpy()
    return torch.from_numpy(np.einsum("oik,oik->oi", w_OIK, w_OIK, dtype=np.float64))


def channel_thresholds(energy_OI: Tensor, group_O: Tensor, groups: int) -> Tensor:
    """Return [G, I]: the beta above which a group no longer reads a channel."""
    energy_GI = np.zeros((groups, energy_OI.shape[1]))
    for g in range(groups):
        energy_GI[g] = energy_OI.numpy()[group_O.numpy() == g].sum(0)
    return _running_share(energy_GI)


def filter_thresholds(energy_OI: Tensor) -> Tensor:
    """Return [O]: the beta above which a filter is removed."""
    return _running_share(energy_OI.numpy().sum(1))


def _running_share(energy: np.ndarray) -> Tensor:
    """Return running shares of the total along the last axis, in ascending order.

    The largest entry's is exactly 1, so it stays, unless all are 0: they add nothing, and go at any beta > 0.
    """
    order = energy.argsort(axis=-1, kind="stable")
    running = np.take_along_axis(energy, order, axis=-1).cumsum(axis=-1)
    total = running[..., -1:]
    share = np.zeros_like(running)
    np.put_along_axis(share, order, np.divide(running, total, out=np.zeros_like(running), where=total > 0), axis=-1)
    return torch.from_numpy(share)
