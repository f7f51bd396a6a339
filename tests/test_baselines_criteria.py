"""The idea of each training-free criterion, on cases worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from method_cases import network_of, one_layer, order_of_removal, task_of
from torch import Tensor, nn

from baselines._directions import directions
from baselines.centrality import Centrality
from baselines.hrank import HRank
from baselines.l1_filter import L1Filter
from baselines.l2_filter import L2Filter
from baselines.similarity import Similarity, similarities
from baselines.taylor_once import TaylorOnce
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
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
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
    scores = TaylorOnce(batches=1, batch_size=32).score(model, graph, {}, task_with(x, labels))["0"]
    torch.testing.assert_close(scores, true.square(), rtol=1e-2, atol=0)
    assert scores.argsort().tolist() == true.abs().argsort().tolist() != [3, 2, 1, 0]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_taylor_averages_squares_over_batches() -> None:
    model, graph, x, labels = small_outputs()

    def of(start: int, batches: int) -> Tensor:
        settings = TaylorOnce(batches=batches, batch_size=16)
        return settings.score(model, graph, {}, task_with(x[start:], labels[start:]))["0"]

    torch.testing.assert_close(of(0, 2), (of(0, 1) + of(16, 1)) / 2)


def test_taylor_takes_tied_filters_as_one_gate() -> None:
    """Scaling the output of all members of a set by 1 - e changes the loss by e times the root of their common score."""
    model = network_of("resnet8").double().eval()
    graph = Graph(model, (3, 8, 8))
    x, labels = torch.rand(8, 3, 8, 8).double(), torch.randint(10, (8,))
    scores = TaylorOnce(batches=1, batch_size=8, scope="coupled").score(model, graph, {}, task_with(x, labels))
    layers = [name for name in graph.convs if 5 in graph.filter_sets[name]]
    assert len(layers) > 1
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


# ---- similarity and centrality ----------------------------------------------------------------------------------------


def test_the_direction_of_a_filter_is_the_pattern_of_its_best_rank_one_approximation() -> None:
    pattern, channels = torch.tensor([3.0, 0.0, 0.0, -4.0]), torch.tensor([-2.0, 1.0, 5.0])
    weight = torch.stack([channels[:, None] * pattern, -channels[:, None] * pattern]).view(2, 3, 2, 2)
    expected = torch.tensor([[-0.6, 0.0, 0.0, 0.8], [0.6, 0.0, 0.0, -0.8]], dtype=torch.float64)
    torch.testing.assert_close(directions(weight), expected)
    noisy = directions(weight + 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    assert float((noisy * expected).sum(1).min()) > 0.99
    torch.testing.assert_close(directions(weight[:, :, :1, :1])[0], torch.tensor([-2.0, 1.0, 5.0]).double() / 30**0.5)


def test_similarity_removes_one_of_two_parallel_filters_first_although_both_are_large() -> None:
    """Pairs and distances: 0-2 0 and 3-4 0.2 (1 is closest to 3, but 3 to 4), then 1-3 0.4, then 0-1 1 - 0.8 / sqrt(2)."""
    model, graph = one_layer([[9.0, 9.0, 0.0], [0.0, 0.8, 0.6], [8.0, 8.0, 0.0], [0.0, 0.0, 0.5], [0.6, 0.0, 0.8]])
    scores = Similarity().score(model, graph, {}, task_of(0))["0"]
    assert scores.tolist() == pytest.approx([3, 2 + (1 - 0.8 / 2**0.5) / 2, 0, 1.2, 0.1], abs=1e-5)
    assert order_of_removal(Similarity(), model, graph) == [2, 4, 3, 1, 0]
    assert order_of_removal(L1Filter(), model, graph)[-2:] == [2, 0]


def test_similarity_of_opposite_filters_is_least() -> None:
    model, graph = one_layer([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    assert similarities(directions(model.get_parameter("0.weight")), None)[0].tolist() == [1, -1, 0]
    assert order_of_removal(Similarity(), model, graph)[0] == 2


@pytest.mark.parametrize("columns", [9, 40, 64])
def test_nystrom_is_exact_when_its_columns_span_all_directions(columns: int) -> None:
    """64 columns are all; 9 suffice, because 3x3 patterns have 9 entries."""
    torch.manual_seed(0)
    direction = directions(torch.randn(64, 16, 3, 3))
    torch.testing.assert_close(similarities(direction, columns), similarities(direction, None), rtol=1e-9, atol=1e-9)
    model = network_of("vgg6")
    graph = Graph(model, (3, 32, 32))
    exact, nystrom = (Similarity(columns=c).score(model, graph, {}, task_of(0)) for c in (None, columns))
    for name in graph.convs:
        assert torch.equal(exact[name], nystrom[name])


def test_nystrom_with_few_columns_is_an_approximation() -> None:
    direction = directions(torch.randn(64, 16, 3, 3, generator=torch.Generator().manual_seed(0)))
    exact = similarities(direction, None)
    errors = [float((similarities(direction, columns) - exact).norm()) for columns in (2, 5, 8, 9)]
    assert errors[0] > errors[1] > errors[2] > 1 > 1e-6 > errors[3]


def test_centrality_removes_the_most_common_filter_first_and_the_most_isolated_last() -> None:
    """Filter 1 lies between 0 and 2; filter 3 is orthogonal to all. The norms say the opposite."""
    half = 3**0.5 / 2
    model, graph = one_layer([[5.0, 0.0, 0.0], [9 * half, 4.5, 0.0], [2.5, 5 * half, 0.0], [0.0, 0.0, 0.1]])
    scores = Centrality().score(model, graph, {}, task_of(0))["0"]
    degree = torch.tensor([half + 0.5, 2 * half, half + 0.5, 0.0])
    torch.testing.assert_close(scores, (1 - degree / 3).double())
    order = order_of_removal(Centrality(), model, graph)
    assert (order[0], order[-1]) == (1, 3)
    norms = order_of_removal(L1Filter(), model, graph)
    assert (norms[0], norms[-1]) == (3, 1)


# ---- uniform width ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["resnet8", "resnet8_a"])
def test_uniform_width_takes_the_same_share_of_every_layer(network: str) -> None:
    model = network_of(network)
    graph = Graph(model, (3, 8, 8))
    plan = UniformWidth().planner(model, graph, {}, task_of(0))(0.5)
    shares = {name: float((~plan[name].kept_O).double().mean()) for name in graph.convs}
    assert all(abs(share - 0.5) <= 1 / 16 for share in shares.values()), shares
    inner = next(name for name, conv in graph.convs.items() if conv.role == "inner")
    norms = model.get_parameter(f"{inner}.weight").abs().sum((1, 2, 3))
    assert norms[plan[inner].kept_O].min() > norms[~plan[inner].kept_O].max()


# ---- bad settings ----------------------------------------------------------------------------------------------------


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="taylor_once's batches must be at least 1, got 0"):
        TaylorOnce(batches=0)
    with pytest.raises(ValueError, match="taylor_once's batch_size must be at least 1, got -2"):
        TaylorOnce(batch_size=-2)
    with pytest.raises(ValueError, match="hrank's images must be at least 1, got 0"):
        HRank(images=0)
    with pytest.raises(ValueError, match=r"similarity's columns must be at least 1, or None .* got 0"):
        Similarity(columns=0)
