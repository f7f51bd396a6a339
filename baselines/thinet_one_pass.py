"""ThiNet in one pass: greedy removal by the change of the layer's output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from baselines._samples import channel_products, damped_solve, plan_by_samples, refit
from suite.contract import OptOut, Planner, Pruner, PruningPlan, Recipe, State, Task
from suite.graph import Graph


@dataclass(frozen=True, kw_only=True)
class ThiNetOnePass(Pruner):
    """Removes channels greedily from all layers at once, then rescales the channels that are left."""

    granularity = "channel"
    version = 2
    source = "Luo, Wu, Lin, ThiNet, ICCV 2017, section 3.2, equations 5-7 and algorithm 1"
    deviations = (
        "one pass: all layers are pruned at once and then fine-tuned, not one after the other with an epoch between, so channels "
        "are chosen on the unpruned network; a sampled pixel counts with all filters of the next layer, not with a random one; "
        "scaling is damped by 1e-6 of the mean diagonal, towards 1"
    )
    recipes: ClassVar[Mapping[tuple[str, str], Recipe | OptOut]] = {
        ("imagenet", "*"): Recipe(settings={"images": 10000}, source="ten images a class, as published"),
        ("tinyimagenet20", "*"): Recipe(settings={"images": 200}, source="ten images a class, as published"),
    }

    search: ClassVar[Mapping[str, tuple[int, ...]]] = {"images": (50, 100, 200), "positions": (5, 10)}
    lowest: ClassVar = {"images": 1, "positions": 1}

    images: int = 100
    """Training images that are looked at: ten a class, as published, where there are ten classes."""
    positions: int = 10
    """Output pixels of each image."""

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Return the planner of equal shares of layers that alone read their input."""
        return plan_by_samples(
            model, graph, task, sole_readers(graph), greedy_order, images=self.images, positions=self.positions
        )  # fmt: skip

    def reconstruct(self, model: nn.Module, graph: Graph, plan: PruningPlan, task: Task) -> None:
        """Rescale channels by equation 7, layer by layer: pruned inputs, unpruned outputs."""
        refit(model, graph, plan, task, rescaled, images=self.images, positions=self.positions)


def sole_readers(graph: Graph) -> list[str]:
    """Return the layers that are the only reader of another layer's filters."""
    layers = []
    for name, node in graph.conv_nodes.items():
        source = node.all_input_nodes[0]
        while graph.kinds[source] in ("bn", "pass") and len(source.users) == 1:
            source = source.all_input_nodes[0]
        if graph.kinds[source] == "conv" and len(source.users) == 1:
            layers.append(name)
    return layers


def greedy_order(gram_II: Tensor, w_OIK: Tensor) -> Tensor:
    """Return channels in order of removal.

    Each removal increases the removed channels' squared output least.
    """
    cost_I, order = gram_II.diagonal().clone(), []
    for _ in range(len(gram_II)):
        order.append(int(cost_I.argmin()))
        cost_I += 2 * gram_II[order[-1]]
        cost_I[order[-1]] = torch.inf
    return torch.tensor(order)


def rescaled(w_OIK: Tensor, before_OCK: Tensor, xx: Tensor, xy: Tensor) -> Tensor:
    """Return w times s, channel by channel, with s of least squares.

    s minimises |before y - sum_i s_i w_i x_i|^2.
    """
    gram_II = channel_products(xx, w_OIK, w_OIK)
    wanted_I = channel_products(xy, w_OIK, before_OCK).sum(1)
    return w_OIK * (1 + damped_solve(gram_II, wanted_I - gram_II.sum(1)))[:, None]
