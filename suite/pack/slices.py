"""An order of output channels in which the next layer's groups read slices."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def slice_rank(reads_G: Sequence[Tensor], width: int) -> Tensor:
    """Return a sort key per channel that makes groups read contiguous slices.

    Two groups always do, in the order: channels of the first only, of both, of the second only, of none. For more groups the
    candidates are this order for each pair of groups, and the order by first and last reading group. The candidate with the
    fewest channels to gather is returned.
    """
    member_GC = torch.stack([torch.zeros(width, dtype=torch.bool).index_fill(0, reads, True) for reads in reads_G])
    keys = []
    for first, second in itertools.combinations(range(len(reads_G)), 2):
        a, b = member_GC[first], member_GC[second]
        keys.append(torch.where(a & ~b, 0, torch.where(a & b, 1, torch.where(b, 2, 3))))
    if len(reads_G) == 1:
        keys.append((~member_GC[0]).long())
    number_G1 = torch.arange(len(reads_G))[:, None]
    lowest = torch.where(member_GC, number_G1, len(reads_G)).amin(0)
    keys.append(lowest * (len(reads_G) + 1) + torch.where(member_GC, number_G1, 0).amax(0))
    return min(keys, key=lambda key: _gathered(key, member_GC))


def _gathered(key: Tensor, member_GC: Tensor) -> int:
    """Return the number of channels of groups that are not one slice in this order."""
    ordered_GC = member_GC[:, key.argsort(stable=True)].int()
    starts_G = ordered_GC[:, 0] + (ordered_GC.diff(dim=1) == 1).sum(1)
    return int(ordered_GC.sum(1)[starts_G > 1].sum())
