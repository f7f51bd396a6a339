"""MACs as a differentiable function of the kept filter sets.

Shapes: L layers, I input channels, S filter sets.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from suite.contract import Budget
from suite.graph import Graph


class MaskedMacs:
    """Share of dense MACs as a function of the sets' mask, and its slope.

    A layer costs its kernels' MACs times the filters that it makes times the channels that it reads; a grouped convolution costs
    the MACs of its channels. Layers that are computed on all channels have a constant cost.
    """

    def __init__(self, model: nn.Module, graph: Graph, budget: Budget, device: torch.device) -> None:
        if budget.scope == "latency":
            raise ValueError(
                "this method counts MACs while it learns, so it takes no latency budget: give it one of MACs"
            )
        layers, sets = list(graph.input_sets), graph.set_count
        self.made_LS, self.read_LS = torch.zeros(2, len(layers), sets)
        self.made_L, self.read_L, self.cost_L = torch.zeros(3, len(layers))
        self.passed_S, self.constant = torch.zeros(sets), torch.zeros(())
        for number, name in enumerate(layers):
            source_I, conv = graph.input_sets[name], graph.convs.get(name)
            self.read_LS[number] = torch.bincount(source_I[source_I >= 0], minlength=sets)
            self.read_L[number] = (source_I < 0).sum()
            if conv is None:
                self.made_L[number] = len(model.get_parameter(f"{name}.weight"))
                self.cost_L[number] = graph.unit_macs[name] * (budget.scope == "network")
            else:
                self.made_LS[number] = torch.bincount(graph.filter_sets[name], minlength=sets)
                self.cost_L[number] = conv.macs_per_kernel * (budget.scope == "network" or conv.prunable)
        if budget.scope == "network":
            self.constant += graph.fixed_macs
            for name, ids in graph.channel_sets.items():
                macs = graph.unit_macs.get(name, 0)  # a batch norm has none
                self.passed_S += macs * torch.bincount(ids[ids >= 0], minlength=sets)
                self.constant += macs * int((ids < 0).sum())
        for name, tensor in list(vars(self).items()):
            setattr(self, name, tensor.to(device))
        dense = self(torch.ones(sets, device=device))[0]
        for tensor in (self.cost_L, self.passed_S, self.constant):
            tensor /= dense

    def __call__(self, mask_S: Tensor) -> tuple[Tensor, Tensor]:
        """Return the share of MACs that is left, and its derivative by the mask [S]."""
        made_L = self.made_L + self.made_LS @ mask_S
        read_L = self.read_L + self.read_LS @ mask_S
        slope_S = (self.cost_L * read_L) @ self.made_LS + (self.cost_L * made_L) @ self.read_LS + self.passed_S
        return self.cost_L @ (made_L * read_L) + self.passed_S @ mask_S + self.constant, slope_S
