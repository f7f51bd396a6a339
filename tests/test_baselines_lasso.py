"""Slimming and SSL on cases worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from learning_cases import descend, one_step, train, trainer_of, two_layers, zero_gradients
from method_cases import (
    images,
    network_of,
    one_layer,
    task_of,
)
from torch import Tensor, nn

from baselines.slimming import Slimming, selectors
from baselines.ssl import SSL
from suite.contract import (
    Budget,
    Step,
)  # fmt: skip
from suite.graph import Graph
from suite.select import meet


def test_slimming_drives_the_scale_of_a_useless_channel_to_zero() -> None:
    """The penalty alone moves the scale of channel 1.

    Channel 0 separates the classes, and the classifier does not read channel 1.
    """
    torch.manual_seed(0)
    model, graph = one_layer([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    model.get_parameter("5.weight").data.copy_(torch.tensor([[3.0, 0.0], [-3.0, 0.0]]))
    scale = model.get_parameter("1.weight")
    scale.data.fill_(1.0)
    model.train()
    settings, lr = Slimming(lam=0.05), 0.1
    learner = settings.learner(model, graph, task_of(0))
    optimizer = torch.optim.SGD([p for name, p in model.named_parameters() if not name.startswith("5")], lr=lr)
    for index in range(300):
        labels = torch.randint(2, (32,))
        x = torch.randn(32, 3, 4, 4) + torch.tensor([2.0, 0.0, 0.0])[:, None, None] * (
            1 - 2 * labels[:, None, None, None]
        )
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        learner.before_step(Step(model, optimizer, x, labels, lr, index, 300))
        optimizer.step()
    useful, useless = scale.detach().abs().tolist()
    assert useless <= lr * settings.lam + 1e-6
    assert useful > 0.5
    planner = settings.planner(model, graph, learner.state_dict(), task_of(0))
    assert planner(1.0)["0"].kept_O.tolist() == [True, False]
    assert learner.metrics()["scales_below_0.01"] == 0.5


def test_slimming_without_batch_norm_is_refused_by_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="slimming needs a batch norm behind every convolution; 0 has none"):
        Slimming().learner(model, Graph(model, (3, 4, 4)), task_of(0))
    with pytest.raises(ValueError, match="lam must be at least 0, got -1"):
        Slimming(lam=-1)


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


def test_slimming_selects_channels_of_a_bottleneck_at_the_first_convolution_of_each_block() -> None:
    inner, readers = selectors(Graph(network_of("bottleneck"), (3, 32, 32)))
    assert readers == ["3.conv1", "4.conv1", "5.conv1"]
    assert set(readers) < set(inner)


def test_slimming_selects_the_channels_of_a_stream_at_their_readers() -> None:
    """Folding the scales leaves the outputs as they are."""
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


def test_ssl_empties_the_filter_and_the_channel_that_the_loss_does_not_need() -> None:
    """The lasso alone decides about filter 2 and channel 1.

    The loss is least at W = target, which has neither of the two.
    """
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
    """A layer whose best channel goes keeps the best channel that it can still read."""
    model, graph = two_layers(torch.tensor([[1.0, 1.0], [3.0, 3.0]]), torch.tensor([[9.0, 1.0], [9.0, 2.0]]))
    plan = SSL().planner(model, graph, {}, task_of(0))(1.0)
    assert plan["0"].mask_OI.tolist() == [[False, False], [True, True]]
    assert plan["3"].mask_OI.tolist() == [[False, False], [False, True]]
    assert graph.macs(plan).total == 16 * (2 + 1) + 2
