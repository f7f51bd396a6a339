"""ThiNet: greedily removes the channels without which the next layer's output changes least, then rescales the others."""

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
class ThiNet(Pruner):
    """Filters whose channels the one layer that reads them can do without."""

    granularity = "channel"
    source = "Luo, Wu, Lin, ThiNet, ICCV 2017, section 3.2, equations 5-7 and algorithm 1"
    deviations = (
        "a sampled pixel counts with all filters of the next layer, not with a random one; all layers are pruned at once and "
        "then fine-tuned, not one after the other with an epoch between, so channels are chosen on the unpruned network; "
        "scaling is damped by 1e-6 of the mean diagonal, towards 1"
    )
    recipes: ClassVar[Mapping[tuple[str, str], Recipe | OptOut]] = {
        ("imagenet", "*"): Recipe(settings={"images": 500}, source="ours: activations of all are in memory at once"),
    }

    search: ClassVar[Mapping[str, tuple[int, ...]]] = {"images": (50, 100, 200), "positions": (5, 10)}
    lowest: ClassVar = {"images": 1, "positions": 1}

    images: int = 100
    """Training images that are looked at: ten a class, as published, where there are ten classes."""
    positions: int = 10
    """Output pixels of each image."""

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """The same share of channels from every layer that alone reads them; residual streams stay as they are."""
        return plan_by_samples(
            model, graph, task, sole_readers(graph), greedy_order, images=self.images, positions=self.positions
        )  # fmt: skip

    def reconstruct(self, model: nn.Module, graph: Graph, plan: PruningPlan, task: Task) -> None:
        """Equation 7, layer by layer: inputs from the pruned network, outputs from the unpruned one."""
        refit(model, graph, plan, task, rescaled, images=self.images, positions=self.positions)


def sole_readers(graph: Graph) -> list[str]:
    """The layers that read the filters of another one which nothing else reads."""
    found = []
    for name, node in graph.conv_nodes.items():
        source = node.all_input_nodes[0]
        while graph.kinds[source] in ("bn", "pass") and len(source.users) == 1:
            source = source.all_input_nodes[0]
        if graph.kinds[source] == "conv" and len(source.users) == 1:
            found.append(name)
    return found


def greedy_order(gram_II: Tensor, w_OIK: Tensor) -> Tensor:
    """The channels in the order in which they go: always the one that adds least to |what all removed ones add|^2."""
    cost_I, order = gram_II.diagonal().clone(), []
    for _ in range(len(gram_II)):
        order.append(int(cost_I.argmin()))
        cost_I += 2 * gram_II[order[-1]]
        cost_I[order[-1]] = torch.inf
    return torch.tensor(order)


def rescaled(w_OIK: Tensor, before_OCK: Tensor, xx: Tensor, xy: Tensor) -> Tensor:
    """w with each channel times s, argmin over s of |before y - sum_i s_i w_i x_i|^2."""
    gram_II = channel_products(xx, w_OIK, w_OIK)
    wanted_I = channel_products(xy, w_OIK, before_OCK).sum(1)
    return w_OIK * (1 + damped_solve(gram_II, wanted_I - gram_II.sum(1)))[:, None]
