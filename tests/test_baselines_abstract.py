"""LAPP and dynamic structured pruning on cases worked out by hand."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Literal

import pytest
import torch
from learning_cases import (
    SCHEDULE,
    descend,
    filter_norms,
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
from torch import Tensor, nn

from baselines._macs import MaskedMacs
from baselines.group_sparse import GroupSparse
from baselines.lapp import LAPP, LINEAR, centre
from suite.contract import Budget, ConvPlan, PruningPlan
from suite.graph import Graph
from suite.select import meet


@pytest.mark.parametrize("network", ["resnet8", "resnet8_a", "bottleneck", "vgg6", "depthwise", "convolution_head"])
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
    """Loss and MACs move a threshold by amounts computed by hand."""
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
    """Kernel plus bypass moves as the kernel with a doubled gradient of the centre."""
    model = network_of("resnet8")
    graph = Graph(model, images().input_shape)
    learner = LAPP().learner(model, graph, task_of(0, Budget(share=0.5)))
    weight = model.get_parameter("stage_1.0.conv_a.weight")
    kernel, bypass = (nn.Parameter(tensor) for tensor in (weight.detach().clone(), torch.zeros(weight.shape[:2])))
    merged, apart = (
        torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)
        for parameters in ([weight], [kernel, bypass])
    )
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


def test_group_sparse_penalises_redundant_filters_and_spares_the_most_important() -> None:
    """The gradient is lam (1 - norm / largest) times the group's unit vector.

    A group is filter, scale and shift.
    """
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
