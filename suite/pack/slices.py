"""In which order a layer should put out its channels, so that each filter group of the next one reads one slice of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def slice_rank(reads_G: Sequence[Tensor], width: int) -> Tensor:
    """A key for each of `width` channels; sorted by it, as many of the channels that groups read as can be lie in slices.

    Two groups always can: only the first's, both's, only the second's, nobody's. Of more, two are chosen so, or all are
    laid out from the first that reads a channel to the last, whichever leaves fewer channels to gather.
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
    """Channels that groups read, whose group is not one slice in this order."""
    ordered_GC = member_GC[:, key.argsort(stable=True)].int()
    starts_G = ordered_GC[:, 0] + (ordered_GC.diff(dim=1) == 1).sum(1)
    return int(ordered_GC.sum(1)[starts_G > 1].sum())
