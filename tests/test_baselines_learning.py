"""The idea of each method that learns, on cases worked out by hand; and that each goes on just as if it had not stopped."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch_pruning as tp
from test_methods import images, network_of, one_layer, order_of_removal, task_of
from torch import Tensor, nn

from baselines._macs import MaskedMacs
from baselines.depgraph import DepGraph, coupled_weights, group_energies
from baselines.fpgm import FPGM
from baselines.greg import GReg
from baselines.group_sparse import GroupSparse
from baselines.lapp import LAPP, LINEAR, centre
from baselines.sfp import SFP
from baselines.slimming import Slimming
from baselines.ssl import SSL
from baselines.taylor import Taylor
from suite import methods
from suite.contract import Budget, ConvPlan, Learner, Pruner, PruningPlan, Step
from suite.graph import Graph
from suite.schedule import Schedule
from suite.select import meet
from suite.trainer import Trainer

SCHEDULE = Schedule(epochs=4, lr=0.05, weight_decay=1e-4, batch=16, epoch_images=64)
LEARNING = ("sfp", "fpgm", "taylor", "slimming", "ssl", "greg", "depgraph", "lapp", "group_sparse")


def trainer_of(method: str, settings: Pruner | None = None, schedule: Schedule = SCHEDULE) -> Trainer:
    """Training of a ResNet-8 on digits with the method's hooks, not begun."""
    settings = settings or methods.get(method)()
    model = network_of("resnet8")
    graph = Graph(model, images().input_shape)
    learner = settings.learner(model, graph, task_of(0, Budget(share=0.5)))
    batches = images().train("all", batch=schedule.batch, seed=0, device="cpu", limit=schedule.epoch_images)
    return Trainer(model.train(), batches, schedule, learner=learner)


def train(trainer: Trainer, *, until: int) -> None:
    """Train to this step."""
    while trainer.step < until:
        epoch, done = divmod(trainer.step, trainer.steps_per_epoch)
        for x, labels in trainer.batches.epoch(epoch, start=done):
            trainer.advance(x, labels)
            if trainer.step == until:
                break
        if trainer.step % trainer.steps_per_epoch == 0:
            trainer.end_epoch()


def filter_norms(model: nn.Module, name: str = "0") -> list[float]:
    norms: list[float] = model.get_parameter(f"{name}.weight").detach().flatten(1).norm(dim=1).tolist()
    return norms


def two_layers(first_OI: Tensor, second_OI: Tensor) -> tuple[nn.Module, Graph]:
    """Two 1x1 convolutions with these weights, each with batch norm, and a classifier."""
    layers: list[nn.Module] = []
    for weight_OI in (first_OI, second_OI):
        conv = nn.Conv2d(weight_OI.shape[1], len(weight_OI), 1, bias=False)
        conv.weight.data.copy_(weight_OI[:, :, None, None])
        layers += [conv, nn.BatchNorm2d(len(weight_OI)), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(len(second_OI), 2))
    return model, Graph(model, (first_OI.shape[1], 4, 4))


def zero_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


def one_step(model: nn.Module, index: int = 0, total: int = 1) -> Step:
    return Step(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.zeros(0), torch.zeros(0), 0.1, index, total)


def descend(
    model: nn.Module,
    learner: Learner,
    loss: Callable[[], Tensor],
    *,
    steps: int,
    lr: float,
    start: int = 0,
    total: int = 0,
) -> None:
    """Plain gradient descent on `loss` with the learner's hooks."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    nothing = torch.zeros(0)
    for index in range(start, start + steps):
        optimizer.zero_grad()
        loss().backward()
        step = Step(model, optimizer, nothing, nothing, lr, index, total or steps)
        learner.before_step(step)
        optimizer.step()
        learner.after_step(step)


@pytest.mark.parametrize("method", LEARNING)
def test_learning_goes_on_with_the_same_bits(method: str) -> None:
    """After a stop in the middle of the second epoch."""
    whole = trainer_of(method)
    train(whole, until=6)
    state = copy.deepcopy(whole.state_dict())
    again = trainer_of(method)
    for parameter in again.model.parameters():
        nn.init.normal_(parameter)
    again.load_state_dict(state)
    for trainer in (whole, again):
        train(trainer, until=whole.total)
    torch.testing.assert_close(again.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(again.learner.state_dict(), whole.learner.state_dict(), rtol=0, atol=0)
    assert again.history == whole.history


# ---- soft filter pruning ---------------------------------------------------------------------------------------------


def test_sfp_zeroes_the_least_filters_and_lets_one_grow_again() -> None:
    model, graph = one_layer([[3.0, 0.0], [0.0, 2.0], [0.5, 0.0], [0.0, 1.0]])
    learner = SFP().learner(model, graph, task_of(0, Budget(share=0.5)))
    bn = {key: tensor.clone() for key, tensor in model[1].state_dict().items()}  # type: ignore[index]
    learner.after_epoch(model)
    assert filter_norms(model) == [3, 2, 0, 0]
    assert all(torch.equal(tensor, bn[key]) for key, tensor in model[1].state_dict().items())  # type: ignore[index]
    assert learner.metrics() == {"zeroed_share": 0.5, "returned_share": 0.0}
    with torch.no_grad():
        model.get_parameter("0.weight")[2] = torch.tensor([0.0, 2.5])[:, None, None]  # it has grown past filter 1
    learner.after_epoch(model)
    assert filter_norms(model) == [3, 0, 2.5, 0]
    assert learner.metrics() == {"zeroed_share": 0.5, "returned_share": 0.5}


def test_sfp_grows_filters_again_while_training_and_ends_at_the_budget() -> None:
    trainer, settings, budget = trainer_of("sfp"), SFP(), Budget(share=0.5)
    train(trainer, until=trainer.steps_per_epoch)
    zeroed = PruningPlan.from_tensors(trainer.learner.state_dict()["zeroed"])
    weights = {name: trainer.model.get_parameter(f"{name}.weight") for name in zeroed}
    assert all(bool((weights[name][~layer.kept_O] == 0).all()) for name, layer in zeroed.items())
    train(trainer, until=trainer.step + 1)
    assert all(
        bool((weights[name][~layer.kept_O] != 0).any()) for name, layer in zeroed.items() if not layer.kept_O.all()
    )
    train(trainer, until=trainer.total)
    graph = Graph(trainer.model, images().input_shape)
    scores = settings.score(trainer.model, graph, {}, task_of(0))
    plan = meet(settings.planner(trainer.model, graph, {}, task_of(0, budget)), graph, budget).plan
    assert all(bool((scores[name][~layer.kept_O] == 0).all()) for name, layer in plan.items())
    assert budget.share <= graph.cut(plan) < budget.share + 0.1


# ---- structured sparsity learning ------------------------------------------------------------------------------------


def test_ssl_empties_the_filter_and_the_channel_that_the_loss_does_not_need() -> None:
    """The loss wants W = target; target has neither filter 2 nor channel 1, and the lasso decides about those alone."""
    target_OI = torch.tensor([[2.0, 0.0, 1.0], [-1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    model, graph = two_layers(
        torch.eye(3), target_OI + torch.tensor([[0.0, 0.3, 0.0], [0.0, 0.3, 0.0], [0.3, 0.3, 0.3]])
    )
    weight, settings, lr = model.get_parameter("3.weight"), SSL(lam_filters=0.1, lam_channels=0.1), 0.05
    first = model.get_parameter("0.weight").detach().clone()
    learner = settings.learner(model, graph, task_of(0))

    def loss() -> Tensor:
        kept = (target_OI != 0)[:, :, None, None]
        missing = (weight - target_OI[:, :, None, None])[kept].square().sum() / 2
        return missing + 0 * model.get_parameter("0.weight").sum()

    descend(model, learner, loss, steps=400, lr=lr)
    filters, channels = weight.detach().flatten(1).norm(dim=1), weight.detach().transpose(0, 1).flatten(1).norm(dim=1)
    assert float(filters[2]) <= 2 * lr * 0.2
    assert float(channels[1]) <= 2 * lr * 0.2
    assert bool((filters[:2] > 1.9).all())
    assert bool((channels[[0, 2]] > 1.9).all())
    assert bool((model.get_parameter("0.weight").detach() <= first).all())  # the same lasso on the first layer
    plan = settings.planner(model, graph, {}, task_of(0))(0.3)
    assert plan["3"].kept_O.tolist() == [True, True, False]
    assert plan["3"].kept_GI.tolist() == [[True, False, True]]


def test_ssl_adds_the_gradient_of_its_penalty_and_nothing_where_a_norm_is_zero() -> None:
    model, graph = two_layers(torch.randn(4, 3), torch.randn(5, 4))
    weight = model.get_parameter("3.weight")
    weight.data[1] = 0
    weight.data[:, 2] = 0
    learner = SSL(lam_filters=0.3, lam_channels=0.7).learner(model, graph, task_of(0))
    free = torch.ones(5, 4, dtype=torch.bool)
    free[1], free[:, 2] = False, False
    leaf = weight.detach().clone().requires_grad_()
    filters, channels = leaf.flatten(1), leaf.transpose(0, 1).flatten(1)
    first = model.get_parameter("0.weight")
    sum_of_norms = filters.norm(dim=1).sum() + first.flatten(1).norm(dim=1).sum()
    penalty = float((0.3 * sum_of_norms + 0.7 * channels.norm(dim=1).sum()).detach())
    rows, columns = [0, 2, 3, 4], [0, 1, 3]
    (0.3 * filters[rows].norm(dim=1).sum() + 0.7 * channels[columns].norm(dim=1).sum()).backward()
    zero_gradients(model)
    learner.before_step(one_step(model))
    assert leaf.grad is not None
    torch.testing.assert_close(weight.grad, leaf.grad)
    torch.testing.assert_close(first.grad, 0.3 * first / first.flatten(1).norm(dim=1)[:, None, None, None])
    assert learner.metrics()["penalty"] == pytest.approx(penalty, rel=1e-5)


def test_ssl_leaves_a_path_through_the_network_even_when_all_else_is_gone() -> None:
    """The second layer's best channel comes from a filter that goes; it keeps the one that it can still read."""
    model, graph = two_layers(torch.tensor([[1.0, 1.0], [3.0, 3.0]]), torch.tensor([[9.0, 1.0], [9.0, 2.0]]))
    plan = SSL().planner(model, graph, {}, task_of(0))(1.0)
    assert plan["0"].mask_OI.tolist() == [[False, False], [True, True]]
    assert plan["3"].mask_OI.tolist() == [[False, False], [False, True]]
    assert graph.macs(plan).total == 16 * (2 + 1) + 2


# ---- growing regularisation ------------------------------------------------------------------------------------------


def test_greg_raises_its_factor_as_scheduled() -> None:
    settings = GReg(pick_limit=0.02, ceiling=1.02, pick_share=0.2, push_share=0.5)
    shares = {0.0: 0.0, 0.1: 0.01, 0.2: 0.02, 0.45: 0.52, 0.7: 1.02, 0.9: 1.02}
    assert {share: settings.factor(share) for share in shares} == pytest.approx(shares)


def test_greg_tells_filters_of_equal_norm_apart_by_the_curvature_of_the_loss() -> None:
    """L = sum_o h_o / 2 |w_o - v_o|^2 holds w_o at v_o h_o / (h_o + factor): the flat filters shrink and are picked."""
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


def test_depgraph_averages_over_coupled_layers() -> None:
    """Summed, the channels that only the last stage of a padded network has go first, as few layers hold them."""
    model = network_of("resnet8_a")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.normal_().mul_((module.in_channels * 9) ** -0.5)
    graph = Graph(model, images().input_shape)
    last = [name for name, conv in graph.convs.items() if conv.role == "closing"][-1]
    own = torch.tensor([int((torch.cat(list(graph.filter_sets.values())) == s).sum()) for s in graph.filter_sets[last]])
    assert own.unique().tolist() == [1, 2, 4], "sets of the last stage have different numbers of layers"

    def lost_first(settings: DepGraph) -> float:
        scores = settings.score(model, graph, {}, task_of(0))[last]
        return float((own[scores.argsort()[: len(own) // 2]] == 1).float().mean())

    assert lost_first(DepGraph(reduction="sum")) > 0.95
    assert lost_first(DepGraph()) < 0.8


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


def test_greg_refuses_a_schedule_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"at most 1 together, got 0\.5 and 0\.6"):
        GReg(pick_share=0.5, push_share=0.6)
    with pytest.raises(ValueError, match=r"needs 0 < pick_limit <= ceiling, got 2 and 1\.0"):
        GReg(pick_limit=2)


# ---- Taylor, step by step --------------------------------------------------------------------------------------------


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


# ---- slimming --------------------------------------------------------------------------------------------------------


def test_slimming_starts_from_half_scales_without_decay() -> None:
    model, graph = one_layer([[1.0], [2.0]])
    learner = Slimming(lam=0.01).learner(model, graph, task_of(0))
    scale = model.get_parameter("1.weight")
    assert Slimming.start == "init"
    assert scale.tolist() == [0.5, 0.5]
    zero_gradients(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.2)
    learner.before_step(dataclasses.replace(one_step(model), optimizer=optimizer))
    optimizer.step()
    torch.testing.assert_close(scale.detach(), torch.tensor([0.49, 0.49]))


def test_slimming_selects_the_channels_of_a_stream_at_their_readers() -> None:
    """Folded scales leave the outputs as they are; a channel that one reader drops stays for the others."""
    trainer, settings = trainer_of("slimming"), Slimming(lam=0.01)
    train(trainer, until=trainer.steps_per_epoch)
    model, learner = trainer.model.eval(), trainer.learner
    x = images().samples(4, split="all", device="cpu")[0]
    with torch.no_grad():
        before = model(x)
        learner.finish(model)
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    graph, state = Graph(model, images().input_shape), learner.state_dict()
    assert {graph.convs[name].role for name in state["read"]} == {"inner"}
    assert all(bool((scale_I < 0.5).any()) for scale_I in state["read"].values())
    plan = meet(settings.planner(model, graph, state, task_of(0)), graph, Budget(share=0.3)).plan
    for name, layer in plan.items():
        if not bool(layer.kept_O.all()):
            assert graph.convs[name].role == "inner"
        if not bool(layer.kept_GI.all()) and name in state["read"]:
            gone = ~layer.kept_GI[0]
            assert float(state["read"][name][gone].abs().max()) <= float(state["read"][name][~gone].abs().min())
    assert any(not bool(layer.kept_GI.all()) for name, layer in plan.items() if name in state["read"])


# ---- soft FPGM -------------------------------------------------------------------------------------------------------


def test_fpgm_zeroes_the_central_filters_and_removes_the_zeroed_ones() -> None:
    model, graph = one_layer([[9.0, 0.9], [10.0, 0.0], [9.0, -0.9]])
    learner = FPGM().learner(model, graph, task_of(0, Budget(share=0.25)))
    learner.after_epoch(model)
    assert filter_norms(model)[1] == 0
    plan = FPGM().planner(model, graph, learner.state_dict(), task_of(0))(0.25)
    assert plan["0"].kept_O.tolist() == [True, False, True], "although the zero filter is far from the others"


# ---- coupled group norms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["resnet8", "bottleneck", "vgg6"])
def test_depgraph_has_the_groups_and_the_penalty_of_torch_pruning(network: str) -> None:
    """Not with padded shortcuts: Torch-Pruning leaves the padded half of a stream out of its groups."""
    model = network_of(network)
    graph = Graph(model, images().input_shape)
    energy_S = group_energies(coupled_weights(model, graph), graph.set_count, "mean")
    importance = tp.importance.GroupMagnitudeImportance(p=2, normalizer="mean")
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    x = torch.zeros(2, *images().input_shape)
    pruner = tp.pruner.GroupNormPruner(model, x, importance=importance, reg=0.01, ignored_layers=linear)
    names = {module: name for name, module in model.named_modules()}
    seen = []
    for group in pruner.DG.get_all_groups(ignored_layers=linear):
        root = names[group[0].dep.target.module]
        ours = energy_S[graph.filter_sets[root]]
        torch.testing.assert_close(importance(group), ours / ours.mean(), rtol=1e-5, atol=1e-6)
        seen.append(graph.filter_sets[root])
    assert len(torch.cat(seen)) == len(energy_S)
    other = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    zero_gradients(model)
    pruner.regularize(model)
    theirs = {name: parameter.grad for name, parameter in model.named_parameters()}
    zero_gradients(model)
    DepGraph(reg=0.01).learner(model, graph, task_of(0)).before_step(one_step(model))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, other[name])
        torch.testing.assert_close(parameter.grad, theirs[name], rtol=1e-5, atol=1e-7, msg=name)


def test_depgraph_shrinks_the_group_that_the_loss_does_not_need_in_every_layer() -> None:
    """Channel 1 of the first layer is small and not used; its filter, scale and reader go together."""
    model, graph = two_layers(
        torch.tensor([[2.0, 1.0], [0.3, 0.3], [1.0, 2.0]]), torch.tensor([[2.0, 0.3, 1.0], [1.0, 0.3, 2.0]])
    )
    first, second, scale = (model.get_parameter(name) for name in ("0.weight", "3.weight", "1.weight"))
    start = [weight.detach().clone() for weight in (first, second, scale)]
    useful = torch.tensor([0, 2])
    settings = DepGraph(reg=0.02, alpha=4)
    learner = settings.learner(model, graph, task_of(0))

    def loss() -> Tensor:
        """Holds what channels 0 and 2 need, and the second layer's filters, where they are."""
        ties = ((first, 0), (second, 1), (scale, 0))
        return sum(
            ((weight - begin).index_select(dim, useful).square().sum() for (weight, dim), begin in zip(ties, start, strict=True)),
            torch.zeros(()),
        )  # fmt: skip

    descend(model, learner, loss, steps=300, lr=0.1)
    assert all(float(weights.detach().norm()) < 0.01 for weights in (first[1], second[:, 1], scale[1]))
    assert bool((first[useful].flatten(1).norm(dim=1) > 0.8 * start[0][useful].flatten(1).norm(dim=1)).all())
    assert learner.metrics()["empty_sets"] == pytest.approx(1 / 5)
    assert settings.planner(model, graph, {}, task_of(0))(0.1)["0"].kept_O.tolist() == [True, False, True]


def test_depgraph_counts_what_reads_a_channel() -> None:
    """By its own weights filter 0 is the largest; nobody reads it."""
    model, graph = two_layers(torch.tensor([[3.0], [2.0], [2.5]]), torch.tensor([[0.0, 4.0, 4.0], [0.0, 4.0, 4.0]]))
    summed = DepGraph(reduction="sum", ranking="global").score(model, graph, {}, task_of(0))["0"]
    assert summed.tolist() == [9 + 1, 4 + 1 + 32, 6.25 + 1 + 32]
    mean = DepGraph().score(model, graph, {}, task_of(0))["0"]
    torch.testing.assert_close(mean, summed / summed.max(), msg="three weights are coupled to each filter")
    assert order_of_removal(DepGraph(), model, graph)[0] == 0


# ---- learned thresholds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["resnet8", "resnet8_a", "bottleneck", "vgg6"])
@pytest.mark.parametrize("scope", ["network", "prunable"])
def test_lapp_counts_the_macs_under_a_mask_and_their_slope(network: str, scope: Literal["network", "prunable"]) -> None:
    model = network_of(network)
    graph = Graph(model, images().input_shape)
    macs = MaskedMacs(model, graph, Budget(share=0.5, scope=scope), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    mask_S = (torch.rand(graph.set_count, generator=generator) < 0.7).float().requires_grad_()
    kept_S = mask_S.detach().bool()
    plan = PruningPlan(
        {
            name: ConvPlan.from_mask(kept_S[ids][:, None].expand(-1, graph.convs[name].channels))
            for name, ids in graph.filter_sets.items()
        }
    )
    left, slope_S = macs(mask_S)
    assert 1 - float(left.detach()) == pytest.approx(graph.cut(plan, scope), abs=1e-6)
    (expected_S,) = torch.autograd.grad(left, mask_S)
    torch.testing.assert_close(slope_S, expected_S, rtol=1e-5, atol=1e-8)


def test_lapp_lowers_the_threshold_where_the_loss_needs_the_filters_and_raises_it_where_macs_are() -> None:
    """Loss and MACs move a threshold by hand-computed amounts: straight through the step of the mask."""
    model, graph = two_layers(torch.eye(2), torch.eye(2))
    learner = LAPP(threshold_lr=0.1, prune_share=0.5).learner(model, graph, task_of(0, Budget(share=0.5)))
    state = {**learner.state_dict(), "threshold_L": torch.tensor([0.5, 0.5])}
    zero_gradients(model)
    scale = model.get_parameter("1.weight")
    scale.data.copy_(torch.tensor([2.0, 1.0]))
    learner.load_state_dict({**state, "unmasked": torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])})
    scale.grad = torch.tensor([-0.5, 0.2])  # taking the mask from 1 to 0 changes the loss by +1.0 and -0.2
    learner.before_step(one_step(model, index=0, total=10**9))
    torch.testing.assert_close(learner.state_dict()["threshold_L"], torch.tensor([0.5 - 0.1 * 0.8, 0.5]))
    zero_gradients(model)
    learner.load_state_dict(state)
    learner.before_step(one_step(model, index=9, total=10))
    # 16 pixels: the layers cost 64 and 64, the classifier 4; half of it is too much; each of 2 filters is in 2 products
    excess, slope_L = 0.5, torch.tensor([(64 + 64) / 132, (64 + 4) / 132])
    torch.testing.assert_close(learner.state_dict()["threshold_L"], 0.5 + 0.1 * 2 * (excess + LINEAR) * slope_L)


def test_lapp_masks_a_filter_and_gives_it_back_as_it_would_be_unmasked() -> None:
    model, graph = one_layer([[1.0], [2.0], [3.0]])
    learner = LAPP().learner(model, graph, task_of(0, Budget(share=0.5)))
    scale, shift = model.get_parameter("1.weight"), model.get_parameter("1.bias")
    zero_gradients(model)
    learner.load_state_dict({**learner.state_dict(), "threshold_L": torch.tensor([0.75])})
    learner.after_step(one_step(model))
    assert scale.tolist() == [0, 1, 1]
    with torch.no_grad():
        scale.add_(torch.tensor([0.25, 0.5, 0.0]))  # what the optimizer does
        shift.add_(torch.tensor([0.5, 0.0, 0.0]))
    learner.after_step(one_step(model))
    assert scale.tolist() == [0, 1.5, 1]
    assert shift.tolist() == [0, 0, 0]
    learner.load_state_dict({**learner.state_dict(), "threshold_L": torch.tensor([0.25])})
    learner.after_step(one_step(model))
    assert scale.tolist() == [1.25, 1.5, 1]
    assert shift.tolist() == [0.5, 0, 0]


def test_lapp_meets_the_constraint_step_by_step_with_rates_of_its_own_for_each_layer() -> None:
    schedule = dataclasses.replace(SCHEDULE, epochs=8, epoch_images=96)
    settings, budget = LAPP(threshold_lr=0.1), Budget(share=0.5)
    trainer = trainer_of("lapp", settings, schedule)
    train(trainer, until=trainer.total)
    left = [entry["macs_left"] for entry in trainer.history]
    assert left[0] > 0.9
    assert left[0] > left[2] > left[-1]
    assert left[-1] <= 1 - budget.share
    assert trainer.history[-1]["fixed"] == 1
    graph, state = Graph(trainer.model, images().input_shape), trainer.learner.state_dict()
    planner = settings.planner(trainer.model, graph, state, task_of(0, budget))
    plan = meet(planner, graph, budget).plan
    assert budget.share <= graph.cut(plan) <= 1 - left[-1] + 1e-6
    for name, layer in plan.items():
        assert bool((state["mask_S"][graph.filter_sets[name][~layer.kept_O]] == 0).all())
        assert bool((trainer.model.get_parameter(f"{graph.convs[name].bn}.weight")[~layer.kept_O] == 0).all())
    rates = {round(float((~layer.kept_O).float().mean()), 2) for layer in plan.values()}
    assert len(rates) >= 3


def test_lapp_trains_a_bypass_that_is_merged_into_the_centre_of_the_kernel() -> None:
    """SGD with momentum and decay on kernel and bypass moves their sum as a doubled gradient of the centre does."""
    model = network_of("resnet8")
    graph = Graph(model, images().input_shape)
    learner = LAPP().learner(model, graph, task_of(0, Budget(share=0.5)))
    weight = model.get_parameter("stage_1.0.conv_a.weight")
    kernel, bypass = (nn.Parameter(tensor) for tensor in (weight.detach().clone(), torch.zeros(weight.shape[:2])))
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    merged, apart = torch.optim.SGD([weight], **settings), torch.optim.SGD([kernel, bypass], **settings)
    for index in range(3):
        zero_gradients(model)
        weight.grad = torch.randn_like(weight)
        kernel.grad, bypass.grad = weight.grad.clone(), centre(weight.grad).clone()
        learner.before_step(dataclasses.replace(one_step(model, index, 10), optimizer=merged))
        merged.step()
        apart.step()
    with torch.no_grad():
        centre(kernel).add_(bypass)
    torch.testing.assert_close(weight, kernel)


# ---- dynamic structured pruning --------------------------------------------------------------------------------------


def test_group_sparse_penalises_redundant_filters_and_spares_the_most_important() -> None:
    """lam (1 - norm / largest) times the unit vector of the group: filter, scale and shift."""
    model, graph = one_layer([[12.0, 0.0], [0.0, 0.0], [2.0, 1.0]])
    weight, scale, shift = (model.get_parameter(name) for name in ("0.weight", "1.weight", "1.bias"))
    scale.data.copy_(torch.tensor([3.0, 0.0, 2.0]))
    shift.data.copy_(torch.tensor([4.0, 0.0, 0.0]))
    zero_gradients(model)
    GroupSparse(lam=0.26).learner(model, graph, task_of(0, Budget(share=0.5))).before_step(one_step(model))
    factor = 0.26 * (1 - 3 / 13) / 3  # the groups' norms are 13, 0 and 3
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad.flatten(1), factor * torch.tensor([[0.0, 0.0], [0.0, 0.0], [2.0, 1.0]]))
    torch.testing.assert_close(scale.grad, factor * torch.tensor([0.0, 0.0, 2.0]))
    torch.testing.assert_close(shift.grad, torch.zeros(3))


def test_group_sparse_drives_the_filter_that_the_loss_does_not_need_to_zero() -> None:
    model, graph = one_layer([[2.0, 1.0], [0.5, 0.5], [1.0, 2.0]])
    parts = [model.get_parameter(name) for name in ("0.weight", "1.weight", "1.bias")]
    start = [part.detach().clone() for part in parts]
    learner = GroupSparse(lam=0.1).learner(model, graph, task_of(0, Budget(share=0.3)))

    def loss() -> Tensor:
        moved = [(part - begin)[[0, 2]].square().sum() for part, begin in zip(parts, start, strict=True)]
        return torch.stack(moved).sum()

    descend(model, learner, loss, steps=400, lr=0.1)
    assert filter_norms(model)[1] <= 2 * 0.1 * 0.1
    assert min(filter_norms(model)[0], filter_norms(model)[2]) > 2.1
    learner.after_epoch(model)
    assert filter_norms(model)[1] == 0
    assert learner.metrics()["masked_share"] == pytest.approx(1 / 3)


def test_group_sparse_removes_more_and_more_for_good_until_the_budget_is_met() -> None:
    trainer, settings, budget = trainer_of("group_sparse"), GroupSparse(), Budget(share=0.5)
    masks = []
    for epoch in range(1, 5):
        train(trainer, until=epoch * trainer.steps_per_epoch)
        masks.append(torch.cat(list(trainer.learner.state_dict()["mask"].values())).bool())
    graph = Graph(trainer.model, images().input_shape)
    kept = [int(mask.sum()) for mask in masks]
    assert kept[0] > kept[1] > kept[2] == kept[3]
    assert all(bool((before | ~after).all()) for before, after in itertools.pairwise(masks))
    plan = meet(settings.planner(trainer.model, graph, {}, task_of(0, budget)), graph, budget).plan
    scores = settings.score(trainer.model, graph, {}, task_of(0))
    assert all(bool((scores[name][~layer.kept_O] == 0).all()) for name, layer in plan.items())
    for name, layer in plan.items():
        mask = trainer.learner.state_dict()["mask"][name].bool()
        assert not bool(mask[~layer.kept_O].any())
