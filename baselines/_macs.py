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

    A layer costs its kernels' MACs times the filters that it makes times the channels that it reads.
    """

    def __init__(self, model: nn.Module, graph: Graph, budget: Budget, device: torch.device) -> None:
        if budget.scope == "latency":
            raise ValueError(
                "this method counts MACs while it learns, so it takes no latency budget: give it one of MACs"
            )
        layers, sets = list(graph.input_sets), graph.set_count
        self.made_LS, self.read_LS = torch.zeros(2, len(layers), sets)
        self.made_L, self.read_L, self.cost_L = torch.zeros(3, len(layers))
        for number, name in enumerate(layers):
            source_I, conv = graph.input_sets[name], graph.convs.get(name)
            self.read_LS[number] = torch.bincount(source_I[source_I >= 0], minlength=sets)
            self.read_L[number] = (source_I < 0).sum()
            if conv is None:
                self.made_L[number] = len(model.get_parameter(f"{name}.weight"))
                self.cost_L[number] = budget.scope == "network"
            else:
                self.made_LS[number] = torch.bincount(graph.filter_sets[name], minlength=sets)
                self.cost_L[number] = conv.macs_per_kernel * (budget.scope == "network" or conv.prunable)
        for name, tensor in list(vars(self).items()):
            setattr(self, name, tensor.to(device))
        self.cost_L /= self(torch.ones(sets, device=device))[0]

    def __call__(self, mask_S: Tensor) -> tuple[Tensor, Tensor]:
        """Return the share of MACs that is left, and its derivative by the mask [S]."""
        made_L = self.made_L + self.made_LS @ mask_S
        read_L = self.read_L + self.read_LS @ mask_S
        slope_S = (self.cost_L * read_L) @ self.made_LS + (self.cost_L * made_L) @ self.read_LS
        return self.cost_L @ (made_L * read_L), slope_S
