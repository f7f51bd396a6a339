"""Dose of the group penalty: summed penalty steps over channel norms.

The penalty step has no momentum, so its dose is exact. With equal groups of n = O / G filters, the dose of a layer is

    lam * sum over steps (lr * ramp) * c * n^2 / mean channel norm in a group        ramp = (step + 1) / steps

and the dose of a network is the median over its prunable layers. Below about 1 the groups are learned but no channel
becomes small; the released schedules give 4.7 to 5.0 for ResNet-20 and 2.0 for ResNet-56.

Shapes: O filters, I input channels, G filter groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from statistics import median

from torch import Tensor, nn

from dsp.groups import PenaltyScale, input_size, penalty_scale
from dsp.layers import prunable_convs
from suite.graph import Graph


def doses_per_rate(model: nn.Module, graph: Graph, groups: int, scale: PenaltyScale) -> dict[str, float]:
    """Return layer -> dose per lam * sum(lr * ramp), at the model's weights."""
    doses = {}
    for conv in prunable_convs(graph, groups):
        size = input_size(conv, graph.input_shape) if scale == "activations" else 1.0
        c = penalty_scale(conv.filters, conv.kernel, groups, size)
        norm = channel_norm(model.get_parameter(f"{conv.name}.weight"), groups)
        doses[conv.name] = c * (conv.filters / groups) ** 2 / norm if norm > 0 else float("inf")
    return doses


def channel_norm(w_OIkk: Tensor, groups: int) -> float:
    """Return the mean over channels of a channel's norm in one of `groups` equal groups."""
    energy_I = w_OIkk.detach().square().sum((0, 2, 3))
    return float((energy_I / groups).sqrt().mean())


def summed_rate(lrs: Iterable[float]) -> float:
    """Return sum(lr * ramp) of a stage, from the learning rate of each step."""
    rates = list(lrs)
    return sum(lr * (step + 1) / len(rates) for step, lr in enumerate(rates))


def lam_for(
    dose: float, model: nn.Module, graph: Graph, lrs: Iterable[float], groups: int, scale: PenaltyScale = "activations"
) -> float:
    """Return lambda for a dose, given network, learning rates and number of groups.

    Raises ValueError if the dose is negative or infinite, if the schedule has no step with a learning rate above 0, or if most
    layers have no weights but zero.
    """
    rate = summed_rate(lrs)
    if not (0 <= dose < inf and rate > 0):
        raise ValueError(f"a dose of {dose} cannot be reached with learning rates that sum to {rate:g} after the ramp")
    per_rate = median(doses_per_rate(model, graph, groups, scale).values())
    if per_rate == inf:
        raise ValueError(f"a dose of {dose} cannot be reached: the channel norms of most layers are 0")
    return dose / (rate * per_rate)
