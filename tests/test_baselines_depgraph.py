"""DepGraph on cases worked out by hand, and beside Torch-Pruning."""

from __future__ import annotations

import pytest
import torch
import torch_pruning as tp
from learning_cases import (
    descend,
    one_step,
    two_layers,
    zero_gradients,
)
from method_cases import (
    images,
    network_of,
    order_of_removal,
    task_of,
)
from torch import Tensor, nn

from baselines.depgraph import DepGraph, coupled_weights, group_energies
from suite.graph import Graph


def test_depgraph_averages_over_coupled_layers() -> None:
    """Summed energies remove first the channels that only the last stage has."""
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


@pytest.mark.parametrize("network", ["resnet8", "bottleneck", "vgg6"])
def test_depgraph_has_the_groups_and_the_penalty_of_torch_pruning(network: str) -> None:
    """Padded shortcuts are left out.

    Torch-Pruning has no groups for the padded half of a stream.
    """
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
    """Filter, scale and reader of an unused channel go together."""
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
