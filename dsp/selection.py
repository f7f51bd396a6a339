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
from suite.select import coupled_sets


def energy_planner(
    weights: Mapping[str, Tensor],
    filter_group: Mapping[str, Tensor],
    groups: int,
    filter_pruned: Collection[str],
    coupled: Mapping[str, Tensor] | None = None,
) -> Planner:
    """Return beta -> plan; beta 0 removes nothing.

    weights        layer name -> [O, I, k, k], for every layer to prune
    filter_group   layer name -> int64 [O]; a layer without groups keeps all its channels
    filter_pruned  the layers that lose whole filters too; their energies are those before any channel is cut
    coupled        layer name -> [O], thresholds of filters that go together (`coupled_thresholds`)
    """
    coupled = coupled or {}
    layers = {}
    for name, weight in weights.items():
        energy_OI, group_O = kernel_energies(weight), filter_group.get(name)
        filters_O = (
            filter_thresholds(energy_OI) if name in filter_pruned else torch.full(energy_OI.shape[:1], torch.inf)
        )
        if group_O is None:
            group_O, channels_GI = (
                torch.zeros_like(filters_O, dtype=torch.int64),
                torch.full_like(energy_OI[:1], torch.inf),
            )
        else:
            channels_GI = channel_thresholds(energy_OI, group_O, groups)
        layers[name] = group_O, channels_GI, coupled.get(name, filters_O)

    def plan(beta: float) -> PruningPlan:
        return PruningPlan(
            {
                name: ConvPlan(group_O, channel_GI >= beta, filter_O >= beta)
                for name, (group_O, channel_GI, filter_O) in layers.items()
            }
        )

    return plan


def coupled_thresholds(weights: Mapping[str, Tensor], sets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return layer name -> [O], the thresholds of a residual stream's filters.

    weights  layer name -> [O, I, k, k]
    sets     layer name -> int64 [O], the filter set of each filter; the filters of a set are removed together

    The energy of a set is the mean over its layers of the filter's energy, relative to the layer's mean. Shares are those of
    the stream's sets. The best set of every layer stays.
    """
    relative = {}
    for name in sets:
        energy_O = kernel_energies(weights[name]).sum(1)
        relative[name] = energy_O / energy_O.mean().clamp(min=torch.finfo(torch.float64).tiny)
    count = 1 + max(int(ids.max()) for ids in sets.values())
    total_S, members_S = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for name, ids in sets.items():
        total_S.index_add_(0, ids, relative[name])
        members_S.index_add_(0, ids, torch.ones_like(relative[name]))
    energy_S = total_S / members_S.clamp(min=1)
    threshold_S = torch.full((count,), torch.inf, dtype=torch.float64)
    for stream in coupled_sets(sets):
        threshold_S[stream] = _running_share(energy_S[stream].numpy())
    for ids in sets.values():
        threshold_S[ids[energy_S[ids].argmax()]] = torch.inf
    return {name: threshold_S[ids] for name, ids in sets.items()}


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
