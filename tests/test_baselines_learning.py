"""GReg and Taylor on cases worked out by hand; learning that stops and goes on."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from learning_cases import (
    SCHEDULE,
    continued,
    descend,
    one_step,
    train,
    trainer_of,
    two_layers,
    zero_gradients,
)
from method_cases import (
    images,
    network_of,
    one_layer,
    task_of,
)
from torch import Tensor

from baselines.greg import GReg
from baselines.hspg import HSPG
from baselines.taylor import Taylor
from suite.contract import Budget, ConvPlan, Pruner, PruningPlan
from suite.graph import Graph
from suite.pack import pack
from suite.select import meet
from suite.trainer import Diverged

LEARNING = ("sfp", "fpgm", "taylor", "slimming", "ssl", "greg", "depgraph", "lapp", "group_sparse")


@pytest.mark.parametrize("method", LEARNING)
def test_learning_goes_on_with_the_same_bits(method: str) -> None:
    continued(method)


@pytest.mark.parametrize("method", ["group_fisher", "group_sparse", "hspg", "taylor"])
def test_filters_that_are_zero_can_be_packed_away_in_a_network_with_depthwise_convolutions(method: str) -> None:
    """The batch norm behind a depthwise convolution gives a removed channel no value."""
    settings = HSPG(lam=100.0, pick_share=0.0, project_share=0.0) if method == "hspg" else None
    trainer = trainer_of(method, settings, network="depthwise")
    train(trainer, until=trainer.total)
    model = trainer.model.double().eval()
    graph = Graph(model, images().input_shape)
    alive = {name: model.get_parameter(f"{name}.weight").flatten(1).norm(dim=1) > 0 for name in graph.convs}
    assert not all(bool(kept_O.all()) for kept_O in alive.values())
    full = {name: ConvPlan.full(conv.filters, conv.channels) for name, conv in graph.convs.items()}
    plan = PruningPlan({name: dataclasses.replace(layer, kept_O=alive[name]) for name, layer in full.items()})
    x = images().samples(4, split="all", device="cpu")[0].double()
    with torch.no_grad():
        torch.testing.assert_close(pack(model, graph, plan)(x), model(x))


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [("sfp", None, "the loss became"), ("taylor", Taylor(every=1), "loss or weights are not finite")],
)
def test_a_method_that_plans_from_broken_weights_has_diverged(method: str, settings: Pruner | None, words: str) -> None:
    trainer = trainer_of(method, settings, schedule=dataclasses.replace(SCHEDULE, lr=1e30))
    with pytest.raises(Diverged, match=words):
        train(trainer, until=trainer.total)


def test_greg_raises_its_factor_as_scheduled() -> None:
    settings = GReg(pick_limit=0.02, ceiling=1.02, pick_share=0.2, push_share=0.5)
    shares = {0.0: 0.0, 0.1: 0.01, 0.2: 0.02, 0.45: 0.52, 0.7: 1.02, 0.9: 1.02}
    assert {share: settings.factor(share) for share in shares} == pytest.approx(shares)


def test_greg_tells_filters_of_equal_norm_apart_by_the_curvature_of_the_loss() -> None:
    """Filters of flat loss shrink and are picked.

    L = sum_o h_o / 2 |w_o - v_o|^2 holds w_o at v_o h_o / (h_o + factor).
    """
    h_O = torch.tensor([10.0, 0.1, 5.0, 0.2])
    model, graph = one_layer([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    weight = model.get_parameter("0.weight")
    start = weight.detach().clone()
    settings = GReg(pick_limit=0.5, ceiling=20.0, pick_share=0.5, push_share=0.25)
    learner = settings.learner(model, graph, task_of(0, Budget(share=0.5)))

    def loss() -> Tensor:
        return (h_O / 2 * (weight - start).square().flatten(1).sum(1)).sum()

    steps = 4000
    descend(model, learner, loss, steps=steps // 2, lr=0.05, total=steps)
    assert learner.state_dict()["picked"] == {}
    assert learner.metrics() == {"factor": pytest.approx(0.5, rel=1e-3), "picked_norm": 1.0}
    shrunk = weight.detach().flatten(1).norm(dim=1) / 2**0.5
    torch.testing.assert_close(shrunk[[0, 2]], h_O[[0, 2]] / (h_O[[0, 2]] + 0.5), rtol=1e-2, atol=0)
    assert bool((shrunk[[1, 3]] < 0.4).all())
    descend(model, learner, loss, steps=steps // 2, lr=0.05, start=steps // 2, total=steps)
    state = learner.state_dict()
    assert state["picked"]["0"].flatten().tolist() == [False, True, False, True]
    norms = weight.detach().flatten(1).norm(dim=1) / 2**0.5
    torch.testing.assert_close(norms, torch.where(h_O < 1, h_O / (h_O + 20), 1.0), rtol=1e-3, atol=1e-3)
    assert learner.metrics()["factor"] == 20
    planner = settings.planner(model, graph, state, task_of(0))
    assert meet(planner, graph, Budget(share=0.5)).plan["0"].kept_O.tolist() == [True, False, True, False]


def test_greg_removes_the_filters_that_it_picked_although_they_are_large() -> None:
    model, graph = one_layer([[1.0], [4.0], [3.0], [2.0]])
    picked = torch.tensor([False, True, True, False])[:, None, None, None]
    plan = GReg().planner(model, graph, {"picked": {"0": picked}, "factor": 1.0}, task_of(0))(0.6)
    assert plan["0"].kept_O.tolist() == [True, False, False, True]


def test_greg_leaves_what_a_residual_sum_reads_and_releases_the_kept_filters() -> None:
    model = network_of("resnet8")
    graph = Graph(model, images().input_shape)
    settings = GReg(pick_share=0.5, push_share=0.5)
    learner = settings.learner(model, graph, task_of(0, Budget(share=0.2)))
    before = {name: model.get_parameter(f"{name}.weight").detach().clone() for name in graph.convs}
    zero_gradients(model)
    learner.before_step(one_step(model, index=5, total=10))
    picked = learner.state_dict()["picked"]
    assert set(picked) == {name for name, conv in graph.convs.items() if conv.role == "inner"}
    for name, conv in graph.convs.items():
        gradient = model.get_parameter(f"{name}.weight").grad
        if conv.role == "inner":
            factor = torch.where(picked[name], settings.factor(0.5), -settings.release)
            torch.testing.assert_close(gradient, factor * before[name])
        else:
            assert gradient is not None
            assert not bool(gradient.any())


def test_greg_picks_filters_of_every_layer() -> None:
    """One order over the network would pick the two small filters of the first layer only."""
    model, graph = two_layers(
        torch.tensor([[1.0], [1.1], [9.0], [9.0]]), torch.diag(torch.tensor([5.0, 5.0, 4.9, 5.0]))
    )
    picks = {}
    for settings in (GReg(), GReg(ranking="global")):
        learner = settings.learner(model, graph, task_of(0, Budget(share=0.39)))
        zero_gradients(model)
        learner.before_step(one_step(model, index=9, total=10))
        picks[settings.ranking] = [
            mask.flatten().nonzero().flatten().tolist() for mask in learner.state_dict()["picked"].values()
        ]
    assert picks == {"layer": [[0], [2]], "global": [[0, 1], []]}


def test_greg_refuses_a_schedule_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"at most 1 together, got 0\.5 and 0\.6"):
        GReg(pick_share=0.5, push_share=0.6)
    with pytest.raises(ValueError, match=r"needs 0 < pick_limit <= ceiling, got 2 and 1\.0"):
        GReg(pick_limit=2)


def test_taylor_removes_step_by_step_until_the_budget_is_met_and_keeps_the_filters_zero() -> None:
    settings = Taylor(every=2, prune_share=0.5)
    trainer = trainer_of("taylor", settings)
    train(trainer, until=trainer.total)
    shares = [entry["removed_share"] for entry in trainer.history]
    assert 0 < shares[0] < shares[1] == shares[-1]
    model = trainer.model.eval()
    graph = Graph(model, images().input_shape)
    found = meet(settings.planner(model, graph, trainer.learner.state_dict(), task_of(0)), graph, Budget(share=0.5))
    assert found.cut >= 0.5
    for name, layer in found.plan.items():
        if graph.convs[name].role == "inner":
            weight = model.get_parameter(f"{name}.weight")
            assert not bool(weight[~layer.kept_O & (weight.flatten(1).norm(dim=1) > 0)].any())
    assert {graph.convs[name].role for name in found.plan if not bool(found.plan[name].kept_O.all())} == {"inner"}


@pytest.mark.parametrize(("steps", "share"), [(5, 0.75), (59, 0.75), (119, 1.0), (50, 1.0)])
def test_taylor_meets_its_budget_in_a_stage_of_any_length(steps: int, share: float) -> None:
    model = network_of("vgg6")
    graph = Graph(model, images().input_shape)
    learner = Taylor(prune_share=share).learner(model, graph, task_of(0, Budget(share=0.3)))
    for index in range(steps):
        learner.before_step(one_step(model, index, steps))
        learner.after_step(one_step(model, index, steps))
    removed = {
        name: ConvPlan.from_mask(model.get_parameter(f"{name}.weight").flatten(2).norm(dim=2) > 0)
        for name in graph.convs
    }
    assert graph.cut(PruningPlan(removed)) >= 0.3


def test_taylor_has_a_momentum_over_removals() -> None:
    model, graph = one_layer([[3.0], [2.0], [1.0]])
    learner = Taylor(every=1, momentum=0.9, prune_share=1.0).learner(model, graph, task_of(0, Budget(share=0.3)))
    scale = model.get_parameter("1.weight")
    scale.data.fill_(1.0)
    importances = []
    for gradient in (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, 1.0])):
        zero_gradients(model)
        scale.grad = gradient
        learner.before_step(one_step(model, index=0, total=1000))
        learner.after_step(one_step(model, index=0, total=1000))
        importances.append(learner.state_dict()["importance_S"])
    torch.testing.assert_close(importances[0], torch.tensor([1.0, 4.0, 9.0]).double())
    expected = 0.9 * importances[0] + 0.1 * torch.tensor([9.0, 4.0, 1.0]).double()
    torch.testing.assert_close(importances[1][1:], expected[1:], msg="the first filter is removed after the first step")
