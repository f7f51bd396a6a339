"""1xN pruning: N filters, neighbours in the order of norms, share kept input channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from suite.contract import ConvPlan, Planner, Pruner, PruningPlan, State, Task
from suite.graph import Graph

MOST_FILTERS = 4096
"""Filters of the widest layer that is taken: it bounds the number of filter groups."""


@dataclass(frozen=True, kw_only=True)
class OneByN(Pruner):
    """L1 norm of 1xN blocks: kernels of N neighbouring filters over one channel.

    n   filters of a block
    """

    granularity = "intra_channel"
    source = (
        "Lin et al., 1xN Pattern for Pruning Convolutional Neural Networks, TPAMI 2023, equations 3 to 6; the authors' "
        "utils/conv_type.py: blocks ranked by L1 norm within a layer, the same rate in every layer"
    )
    deviations = (
        "no rearrangement of the next layer's channels is needed, since packing keeps filters in place; stem and shortcut "
        "convolutions are left; the last "
        "convolution of a bottleneck is rearranged, too; layers lose their n-th blocks one after the other; the largest block "
        "of each layer stays"
    )
    lowest: ClassVar[Mapping[str, float]] = {"n": 1}
    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {"n": (2, 4, 8, 16)}

    n: int = 16

    @property
    def groups(self) -> int:
        """The most filter groups of a layer."""
        return -(-MOST_FILTERS // self.n)

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Return a planner; its knob is the share of 1xN blocks that each layer loses.

        Raises ValueError if a layer has more than `MOST_FILTERS` filters.
        """
        weights = {
            name: model.get_parameter(f"{name}.weight").detach() for name, c in graph.convs.items() if c.prunable
        }
        if wide := [name for name, w in weights.items() if len(w) > MOST_FILTERS]:
            raise ValueError(f"one_by_n takes layers of at most {MOST_FILTERS} filters; {wide[0]} has more")
        groups = {name: blocks(w, self.n) for name, w in weights.items()}
        ranks = {}
        for place, (name, w) in enumerate(weights.items()):
            norm_GI = torch.zeros(int(groups[name].max()) + 1, w.shape[1], dtype=torch.float64)
            norm_GI.index_add_(0, groups[name], w.abs().flatten(2).sum(2).double().cpu())
            order = norm_GI.flatten().argsort(stable=True)
            steps = (torch.arange(len(order), dtype=torch.float64) + place / len(weights)) / len(order)
            steps[-1] = torch.inf
            ranks[name] = torch.empty_like(steps).scatter_(0, order, steps).view_as(norm_GI)

        def plan(knob: float) -> PruningPlan:
            return PruningPlan(
                {
                    name: ConvPlan(groups[name], rank_GI >= knob, torch.ones(len(groups[name])).bool())
                    for name, rank_GI in ranks.items()
                    if bool((rank_GI < knob).any())
                }
            )

        return plan


def blocks(w_OIkk: Tensor, n: int) -> Tensor:
    """Return each filter's block, int64 [O], `n` filters each by descending L1 norm."""
    order = w_OIkk.abs().flatten(1).sum(1).argsort(descending=True, stable=True).cpu()
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)) // n)
