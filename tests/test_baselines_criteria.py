"""The idea of each training-free criterion, on cases worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_methods import network_of, one_layer, order_of_removal, task_of
from torch import Tensor, nn

from baselines.hrank import HRank
from baselines.l1_filter import L1Filter
from baselines.l2_filter import L2Filter
from baselines.taylor import Taylor
from baselines.uniform_width import UniformWidth
from suite.contract import Task
from suite.graph import Graph


def task_with(images: Tensor, labels: Tensor) -> Task:
    """A task whose training images are these."""
    return dataclasses.replace(task_of(0), samples=lambda n: (images[:n], labels[:n]))


def test_l2_filter_prefers_one_large_weight_to_many_small_ones() -> None:
    model, graph = one_layer([[3.0, 3.0], [0.0, 5.0], [1.0, -1.0], [4.0, -4.0]])
    scores = L2Filter().score(model, graph, {}, task_of(0))["0"]
    torch.testing.assert_close(scores, torch.tensor([18.0, 25.0, 2.0, 32.0]).sqrt())
    assert order_of_removal(L2Filter(), model, graph) == [2, 0, 1, 3]
    assert order_of_removal(L1Filter(), model, graph) == [2, 1, 0, 3]


# ---- Taylor ----------------------------------------------------------------------------------------------------------


def small_outputs() -> tuple[nn.Sequential, Graph, Tensor, Tensor]:
    """Four filters that add little to the logits, so that the loss is almost linear in them; largest weights first."""
    torch.manual_seed(0)
    model, graph = one_layer([[8.0, 4.0], [4.0, 4.0], [2.0, 1.0], [1.0, 1.0]])
    assert isinstance(model, nn.Sequential)
    norm, head = model[1], model[5]
    norm.weight.data = torch.tensor([1.0, 2.0, 4.0, 8.0]) * 1e-4
    norm.bias.data = torch.tensor([1.0, -1.0, 2.0, 1.0]) * 1e-4
    norm.running_mean.fill_(0.5)
    head.weight.data = torch.tensor([[1.0, 2.0, 0.5, 3.0], [-1.0, 1.0, 0.0, -2.0]])
    return model.double(), graph, torch.rand(32, 2, 4, 4).double(), torch.randint(2, (32,))


def loss_without(model: nn.Sequential, filters: list[int], x: Tensor, labels: Tensor) -> float:
    """The loss when the batch norm gives 0 for these filters."""
    keep = torch.ones(4, dtype=x.dtype)
    keep[filters] = 0
    with torch.no_grad():
        out = model[:2](x) * keep[:, None, None]
        return float(nn.functional.cross_entropy(model[2:](out), labels))


def test_taylor_is_the_squared_loss_change_of_removing_a_filter() -> None:
    model, graph, x, labels = small_outputs()
    model.eval()
    dense = loss_without(model, [], x, labels)
    true = torch.tensor([loss_without(model, [o], x, labels) - dense for o in range(4)], dtype=torch.float64)
    model.train()
    scores = Taylor(batches=1, batch_size=32).score(model, graph, {}, task_with(x, labels))["0"]
    torch.testing.assert_close(scores, true.square(), rtol=1e-2, atol=0)
    assert scores.argsort().tolist() == true.abs().argsort().tolist() != [3, 2, 1, 0]
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_taylor_averages_squares_over_batches() -> None:
    model, graph, x, labels = small_outputs()

    def of(start: int, batches: int) -> Tensor:
        settings = Taylor(batches=batches, batch_size=16)
        return settings.score(model, graph, {}, task_with(x[start:], labels[start:]))["0"]

    torch.testing.assert_close(of(0, 2), (of(0, 1) + of(16, 1)) / 2)


def test_taylor_takes_tied_filters_as_one_gate() -> None:
    """Scaling the output of all members of a set by 1 - e changes the loss by e times the root of their common score."""
    model = network_of("resnet8").double()
    graph = Graph(model, (3, 8, 8))
    x, labels = torch.rand(8, 3, 8, 8).double(), torch.randint(10, (8,))
    scores = Taylor(batches=1, batch_size=8).score(model, graph, {}, task_with(x, labels))
    layers = [name for name in graph.convs if 5 in graph.filter_sets[name]]
    assert len(layers) > 1
    model.eval()
    losses = []
    for sign in (1, -1):
        changed = network_of("resnet8").double().eval()
        for name in layers:
            norm = changed.get_submodule(str(graph.convs[name].bn))
            for parameter in norm.parameters():
                parameter.data[graph.filter_sets[name] == 5] *= 1 + sign * 1e-6
        losses.append(nn.functional.cross_entropy(changed(x), labels).item())
    slope = (losses[0] - losses[1]) / 2e-6
    for name in layers:
        torch.testing.assert_close(
            scores[name][graph.filter_sets[name] == 5], torch.tensor([slope**2]).double(), rtol=1e-4, atol=0
        )


# ---- HRank -----------------------------------------------------------------------------------------------------------


def test_hrank_ranks_a_rank_one_map_last_although_its_weights_are_largest() -> None:
    """Channel 0 is an outer product, channel 1 has rank 2, channel 2 has full rank; filter 3 sees nothing positive."""
    model, graph = one_layer([[0.0, 0.0, 1.0], [9.0, 0.0, 0.0], [0.0, 2.0, 0.0], [-5.0, 0.0, 0.0]])
    model.get_parameter("0.bias").data.zero_()
    line = torch.tensor([1.0, 2.0, 3.0, 4.0])
    one = line[:, None] * line
    two = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))
    x = torch.stack([one, two, torch.eye(4)]).expand(6, 3, 4, 4)
    task = task_with(x, torch.zeros(6, dtype=torch.int64))
    assert HRank(images=6).score(model, graph, {}, task)["0"].tolist() == [4, 1, 2, 0]
    planner = HRank(images=6).planner(model, graph, {}, task)
    assert planner(0.5)["0"].kept_O.tolist() == [True, False, True, False]


def test_hrank_averages_over_images_of_several_chunks() -> None:
    model, graph = one_layer([[1.0], [2.0]])
    model.get_parameter("0.bias").data.zero_()
    x = torch.eye(4).repeat(40, 1, 1, 1)
    x[:10, :, 1:] = 0
    scores = HRank(images=40).score(model, graph, {}, task_with(x, torch.zeros(40)))["0"]
    assert scores.tolist() == [(10 * 1 + 30 * 4) / 40] * 2


def test_hrank_takes_the_map_behind_the_residual_sum() -> None:
    """A branch that adds 0 to the stream has the stream's map, not its own of rank 0."""
    model = network_of("resnet8")
    graph = Graph(model, (3, 8, 8))
    closing = next(name for name, conv in graph.convs.items() if conv.role == "closing")
    stem = next(name for name, conv in graph.convs.items() if conv.role == "stem")
    for parameter in model.get_submodule(str(graph.convs[closing].bn)).parameters():
        parameter.data.zero_()
    scores = HRank(images=4).score(model, graph, {}, task_of(0))
    assert torch.equal(scores[closing], scores[stem])
    assert bool((scores[stem] > 0).any())


# ---- uniform width ---------------------------------------------------------------------------------------------------


def test_uniform_width_takes_the_same_share_of_every_set_of_coupled_layers() -> None:
    model = network_of("resnet8")
    graph = Graph(model, (3, 8, 8))
    plan = UniformWidth().planner(model, graph, {}, task_of(0))(0.5)
    shares = {name: float((~plan[name].kept_O).double().mean()) for name in graph.convs}
    assert all(abs(share - 0.5) < 1 / 16 for share in shares.values()), shares
    inner = next(name for name, conv in graph.convs.items() if conv.role == "inner")
    norms = model.get_parameter(f"{inner}.weight").abs().sum((1, 2, 3))
    assert norms[plan[inner].kept_O].min() > norms[~plan[inner].kept_O].max()


# ---- bad settings ----------------------------------------------------------------------------------------------------


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="taylor's batches must be at least 1, got 0"):
        Taylor(batches=0)
    with pytest.raises(ValueError, match="taylor's batch_size must be at least 1, got -2"):
        Taylor(batch_size=-2)
    with pytest.raises(ValueError, match="hrank's images must be at least 1, got 0"):
        HRank(images=0)
