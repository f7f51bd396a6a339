"""Controls that follow another run: its rates with other filters, its architecture with initial weights."""

from __future__ import annotations

import itertools

import pytest
import torch
from method_cases import NETWORKS, images, network_of, task_of
from torch import nn

from baselines.l1_filter import L1Filter
from baselines.l1_rates import L1Rates
from baselines.random_rates import RandomRates
from baselines.scratch import Scratch
from suite.contract import Budget, ConvPlan, Planner, Pruner, PruningPlan
from suite.graph import Graph
from suite.select import meet

FOLLOWERS: tuple[Pruner, ...] = (L1Rates(), RandomRates(), Scratch())


def l1_plan(model: nn.Module, graph: Graph, budget: Budget) -> PruningPlan:
    return meet(L1Filter(scope="coupled", ranking="global").planner(model, graph, {}, task_of(0)), graph, budget).plan


def following(settings: Pruner, model: nn.Module, graph: Graph, reference: PruningPlan, seed: int = 0) -> Planner:
    return settings.planner(model, graph, {}, task_of(seed, reference=reference))


def kept(plan: PruningPlan, graph: Graph) -> dict[str, int]:
    """Layer -> filters that are left."""
    return {name: int(layer.kept_O.sum()) for name, layer in graph.live(plan).layers.items()}


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("network", NETWORKS)
def test_rates_of_a_filter_pruning_run_are_those_of_every_layer(network: str, share: float) -> None:
    model, budget = network_of(network), Budget(share=share)
    graph = Graph(model, images().input_shape)
    reference = l1_plan(model, graph, budget)
    assert meet(following(L1Rates(), model, graph, reference), graph, budget).plan == reference
    plans = []
    for seed in (0, 1):
        found = meet(following(RandomRates(), model, graph, reference, seed), graph, budget)
        assert found.knob == pytest.approx(0.5)
        assert kept(found.plan, graph) == kept(reference, graph)
        assert graph.macs(found.plan) == graph.macs(reference)
        plans.append(found.plan)
    assert len({*plans, reference}) == 3


def chain() -> tuple[nn.Module, Graph]:
    """Two 1x1 convolutions of 4 filters and a classifier."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(1), nn.Linear(4, 2)]
    model = nn.Sequential(*layers)
    return model, Graph(model, (3, 1, 1))


@pytest.mark.parametrize("settings", [L1Rates(), RandomRates()])
def test_rates_of_a_finer_run_are_its_shares_of_kernels(settings: Pruner) -> None:
    """Each half of the last layer's filters reads its own half of the channels, so a half of the kernels is gone."""
    model, graph = chain()
    half = torch.tensor([True, True, False, False])
    reference = PruningPlan(
        {"2": ConvPlan(torch.tensor([0, 1, 0, 1]), torch.stack([half, ~half]), torch.ones(4).bool())}
    )
    planner = following(settings, model, graph, reference)
    left = [kept(planner(knob), graph) for knob in (0.24, 0.25, 0.49, 0.5, 0.74, 0.75, 1.0)]
    assert [filters["2"] for filters in left] == [4, 3, 3, 2, 2, 1, 1]
    assert [filters["0"] for filters in left[:4]] == [4, 4, 4, 4]
    assert left[-1]["0"] == 1


def test_tied_layers_have_one_rate() -> None:
    """conv_1 has 16 x 3 kernels and keeps them, stage_1.0.conv_b has 16 x 16 and loses a half: 128 of 304, 6 filters of 16."""
    model = network_of("resnet8")
    graph = Graph(model, images().input_shape)
    channels = torch.arange(16) < 8
    groups = torch.arange(16) % 2
    halves = ConvPlan(groups, torch.stack([channels, ~channels]), torch.ones(16).bool())
    planner = following(L1Rates(), model, graph, PruningPlan({"stage_1.0.conv_b": halves}))
    left = kept(planner(0.5), graph)
    assert (left["conv_1_3x3"], left["stage_1.0.conv_b"]) == (10, 10)
    assert {name: filters for name, filters in left.items() if filters != graph.convs[name].filters}.keys() == {
        "conv_1_3x3",
        "stage_1.0.conv_b",
    }


def test_a_layer_that_is_gone_is_gone() -> None:
    """A run may remove a whole residual branch; its rate is 1, and the best filter does not stay."""
    model = network_of("resnet8")
    graph = Graph(model, images().input_shape)
    gone = PruningPlan(
        {"stage_1.0.conv_a": ConvPlan(torch.zeros(16).long(), torch.zeros(1, 16).bool(), torch.ones(16).bool())}
    )
    left = kept(following(L1Rates(), model, graph, graph.settle(gone))(0.5), graph)
    assert left["stage_1.0.conv_a"] == 0


@pytest.mark.parametrize("settings", FOLLOWERS)
def test_a_follower_without_a_run_to_follow_is_refused(settings: Pruner) -> None:
    model, graph = chain()
    with pytest.raises(ValueError, match=r"list (this one|it) with suite\.grids\.follow"):
        settings.planner(model, graph, {}, task_of(0))


def test_scratch_has_the_plan_that_it_follows() -> None:
    model = network_of("resnet8")
    graph = Graph(model, images().input_shape)
    reference = l1_plan(model, graph, Budget(share=0.5))
    planner = following(Scratch(), model, graph, reference)
    assert Scratch.start == "init"
    assert planner(0.0) == PruningPlan({})
    assert planner(1e-300) == planner(1.0) == reference
    assert meet(planner, graph, Budget(share=0.5)).plan == reference


def test_scratch_says_how_many_groups_it_follows() -> None:
    model, graph = chain()
    masks = torch.tensor(list(itertools.permutations([1, 1, 0, 0], 4)))[[0, 5, 10, 23]].bool()
    reference = graph.settle(PruningPlan({"2": ConvPlan.from_mask(masks)}))
    most = len(reference["2"].kept_GI)
    assert most > 1
    with pytest.raises(ValueError, match=rf"follows a plan with {most}: give it groups={most}"):
        following(Scratch(), model, graph, reference)
    assert following(Scratch(groups=most), model, graph, reference)(0.1) == reference
    with pytest.raises(ValueError, match="groups must be at least 1, got 0"):
        Scratch(groups=0)
