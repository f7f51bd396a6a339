"""HALP on cases worked out by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from method_cases import task_of
from torch import nn

from baselines.halp import HALP
from suite.graph import Graph
from suite.plan import Budget, PruningPlan, Timing
from suite.select import filter_planner, meet

BUDGET = Budget(share=4 / 23, scope="latency", timing=Timing(protocol="quick"))


class PerFilter:
    """Layer times in proportion to filters.

    A filter of layer 0 takes 4 ms, one of layer 1 takes 3 ms, all else 2 ms: 23 ms for three filters each.
    """

    def predict_ms(self, graph: Graph, plan: PruningPlan) -> float:
        live = graph.live(plan).layers
        return 2.0 + 4 * int(live["0"].kept_O.sum()) + 3 * int(live["2"].kept_O.sum())

    def cut(self, graph: Graph, plan: PruningPlan) -> float:
        return 1 - self.predict_ms(graph, plan) / 23


class Fixed(HALP):
    """HALP with importances 3, 3, 9 in layer 0 and 2, 2, 9 in layer 1."""

    def score(self, *_: object) -> dict[str, torch.Tensor]:
        rows = {"0": [3.0, 3.0, 9.0], "2": [2.0, 2.0, 9.0], "4": [9.0, 9.0]}
        return {name: torch.tensor(row) for name, row in rows.items()}


def small() -> tuple[nn.Module, Graph]:
    convs = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)
    model = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2], nn.Flatten(), nn.Linear(8, 2)).eval()
    graph = Graph(model, (3, 2, 2))
    graph.times = PerFilter()
    return model, graph


def removed(plan: PruningPlan) -> dict[str, int]:
    return {name: int((~layer.kept_O).sum()) for name, layer in plan.items() if not bool(layer.kept_O.all())}


def test_halp_solves_the_knapsack_where_a_greedy_order_loses_more() -> None:
    """To save 4 ms, one filter of layer 0 loses 3.

    By importance per millisecond, two of layer 1 go first and lose 4.
    """
    model, graph = small()
    task = dataclasses.replace(task_of(0), budget=BUDGET)
    plan = meet(Fixed(step=1, rounds=1).planner(model, graph, {}, task), graph, BUDGET).plan
    assert removed(plan) == {"0": 1}
    scores = Fixed(step=1).score()
    greedy = filter_planner(graph, scores, ranking="raw", per="ms")
    assert removed(meet(greedy, graph, BUDGET).plan) == {"2": 2}


def test_filters_go_in_groups() -> None:
    """Two of three filters go together.

    The best of a layer stays, so the first group has one filter and the rest stays whole.
    """
    model, graph = small()
    task = dataclasses.replace(task_of(0), budget=BUDGET)
    planner = Fixed(step=2, rounds=1).planner(model, graph, {}, task)
    assert removed(planner(1e-6)) == {"0": 1}
    assert removed(planner(1.0)) == {"0": 2, "2": 2, "4": 1}


def test_the_importance_is_the_loss_change_of_the_gate_without_its_sign() -> None:
    """One linear path: the gradient of weight and bias times their values, summed, as finite differences have it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2)).double().eval()
    graph = Graph(model, (1, 1, 1))
    images, labels = torch.rand(4, 1, 1, 1).double(), torch.tensor([0, 1, 1, 0])
    task = dataclasses.replace(task_of(0), samples=lambda n: (images[:n], labels[:n]))
    score = HALP(batches=1, batch_size=4).score(model, graph, {}, task)["0"]
    norm: Any = model[1]
    for filter_, value in enumerate(score.tolist()):
        losses = []
        for scale in (1 - 1e-5, 1 + 1e-5):
            with torch.no_grad():
                kept = norm.weight[filter_].clone(), norm.bias[filter_].clone()
                norm.weight[filter_] *= scale
                norm.bias[filter_] *= scale
                losses.append(float(nn.functional.cross_entropy(model(images), labels)))
                norm.weight[filter_], norm.bias[filter_] = kept
        assert value == pytest.approx(abs(losses[1] - losses[0]) / 2e-5, rel=1e-4)


def test_coupled_layers_add_their_changes_before_the_sign_is_dropped() -> None:
    """Two branches that cancel each other: both gates matter, and scaling them together changes no loss."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2)
            self.other, self.other_bn = nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2)
            self.fc = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc((self.bn(self.conv(x)) + self.other_bn(self.other(x))).flatten(1))

    torch.manual_seed(0)
    model = Twice().double().eval()
    with torch.no_grad():
        model.other.weight.copy_(model.conv.weight)
        model.other_bn.weight.neg_()
        model.other_bn.weight[1] *= 0.5
    graph = Graph(model, (1, 1, 1))
    images, labels = torch.rand(4, 1, 1, 1).double(), torch.tensor([0, 1, 1, 0])
    task = dataclasses.replace(task_of(0), samples=lambda n: (images[:n], labels[:n]))
    score = HALP(batches=1, batch_size=4).score(model, graph, {}, task)
    assert torch.equal(score["conv"], score["other"])
    assert score["conv"][0] == pytest.approx(0, abs=1e-12)
    assert score["conv"][1] > 1e-3
