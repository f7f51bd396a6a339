"""Methods that fit layers to sampled inputs (LASSO, ThiNet), and grouped kernel pruning."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from learning_cases import two_layers
from method_cases import images, network_of, task_of
from torch import Tensor, nn

from baselines._samples import channel_products, read, sampled_products, walk
from baselines.equal_gkp import EqualGKP, equal_groups, kernel_scores
from baselines.lasso_one_pass import LassoOnePass, lasso_order
from baselines.thinet_one_pass import ThiNetOnePass, greedy_order, rescaled, sole_readers
from suite.contract import Budget, ConvPlan, Pruner, PruningPlan, Task
from suite.graph import Graph
from suite.select import meet

# ---- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "geometry",
    [{"padding": 1}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}, {"padding": (2, 0)}, {"stride": 3}],
)
def test_a_pixel_is_the_product_of_what_it_reads(geometry: Any) -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 4, 3, bias=False, **geometry), torch.randn(2, 3, 9, 7)
    with torch.no_grad():
        y = conv(x)
        height, width = y.shape[2:]
        everywhere = torch.cartesian_prod(torch.arange(height), torch.arange(width)).T
        shares = (everywhere + 0.5) / torch.tensor([height, width])[:, None]
        got = read(conv, x, shares[:, None].expand(2, 2, -1)).float() @ conv.weight.flatten(1).T
    torch.testing.assert_close(got.view(2, height, width, 4).permute(0, 3, 1, 2), y, rtol=1e-5, atol=1e-5)


def test_channel_products_are_sums_over_samples_and_filters() -> None:
    torch.manual_seed(0)
    x, y, w, v = torch.randn(50, 3, 9), torch.randn(50, 4, 9), torch.randn(5, 3, 9), torch.randn(5, 4, 9)
    brought_x, brought_y = torch.einsum("nik,oik->noi", x, w), torch.einsum("nck,ock->noc", y, v)
    expected = torch.einsum("noi,noc->ic", brought_x, brought_y)
    got = channel_products(x.flatten(1).T @ y.flatten(1), w, v)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)


def test_samples_are_the_same_in_both_networks_and_those_of_their_seed() -> None:
    conv, x = nn.Conv2d(2, 3, 3, padding=1), torch.randn(7, 2, 8, 8)

    def products(y: Tensor, seed: int = 3) -> Tensor:
        return sampled_products(conv, x, y, 5, torch.Generator().manual_seed(seed))

    whole = products(x)
    torch.testing.assert_close(products(x.clone()), whole)
    torch.testing.assert_close(products(2 * x), 2 * whole)
    assert not torch.allclose(products(x, seed=4), whole)


def test_walking_visits_every_layer_with_its_input_and_leaves_the_network_as_it_was() -> None:
    model = network_of("resnet8").eval()
    graph = Graph(model, images().input_shape)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pictures = images().samples(4, split="all", device="cpu")[0]
    inputs: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, got, __, name=name: inputs.update({name: got[0]}))
        for name in graph.convs
    ]
    with torch.no_grad():
        model(pictures)
    for hook in hooks:
        hook.remove()
    expected = dict(inputs)
    seen = {name: x for name, _, x in walk(model, graph, pictures)}
    assert list(seen) == list(graph.convs)
    assert all(torch.equal(seen[name], expected[name]) for name in seen)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# ---- LASSO and ThiNet ------------------------------------------------------------------------------------------------


def planted(useful: Tensor, seed: int) -> tuple[nn.Module, Graph, Task]:
    """Two 1x1 convolutions on images of one pixel. The second reads 8 channels, but 3 of them say all.

    The others are mixtures of these and have small weights, so the output is a function of the 3, though not with the
    weights that these have.
    """
    torch.manual_seed(seed)
    first, second = nn.Conv2d(6, 8, 1, bias=False), nn.Conv2d(8, 20, 1, bias=False)
    first.weight.data.normal_()
    useless = torch.tensor([i for i in range(8) if i not in useful])
    mixture = nn.functional.normalize(torch.randn(5, 3), dim=1)
    first.weight.data[useless] = torch.einsum("uk,kihw->uihw", mixture, first.weight.data[useful])
    second.weight.data[:, useless] *= 0.2
    model = nn.Sequential(first, nn.BatchNorm2d(8), second, nn.Flatten(1), nn.Linear(20, 2)).eval()
    x = torch.randn(500, 6, 1, 1)
    task = Task(train_epoch=lambda epoch: iter(()), samples=lambda n: (x[:n], torch.zeros(n).long()), seed=seed)
    return model, Graph(model, (6, 1, 1)), task


def error(model: nn.Module, pruned: nn.Module, task: Task) -> float:
    """Relative error of the second convolution's output."""
    x = task.samples(500)[0]
    with torch.no_grad():
        y, got = model[:3](x), pruned[:3](x)  # type: ignore[index]
    return float((y - got).norm() / y.norm())


def pruned_to(channels: Tensor, model: nn.Module) -> tuple[nn.Module, PruningPlan]:
    """The network whose second convolution reads these channels only, with the weights that it has."""
    kept = torch.zeros(1, 8, dtype=torch.bool)
    kept[0, channels] = True
    plan = PruningPlan({"2": ConvPlan(torch.zeros(20).long(), kept, torch.ones(20).bool())})
    pruned = copy.deepcopy(model)
    pruned.get_parameter("2.weight").data.mul_(kept[:, :, None, None])
    return pruned, plan


@pytest.mark.parametrize("seed", range(5))
def test_lasso_recovers_planted_channels_and_least_squares_gives_their_output(seed: int) -> None:
    useful = torch.randperm(8, generator=torch.Generator().manual_seed(seed))[:3].sort().values
    model, graph, task = planted(useful, seed)
    settings = LassoOnePass(images=500, positions=1)
    planner = settings.planner(model, graph, {}, task)
    plan = next(plan for knob in range(101) if (plan := planner(knob / 100)).get("2") and plan["2"].kept_GI.sum() == 3)
    assert plan["2"].kept_GI[0].nonzero()[:, 0].tolist() == useful.tolist()
    pruned, same = pruned_to(useful, model)
    assert plan == same
    assert error(model, pruned, task) > 0.1
    fitted = copy.deepcopy(model)
    settings.reconstruct(fitted, graph, graph.settle(plan), task)
    assert error(model, fitted, task) < 1e-4


def test_lasso_lets_channels_in_by_what_they_explain() -> None:
    """Channels enter in the order of their norms.

    Independent channels of norms 1, 3, 2 with weights of norm 1 each enter as 1, 2, 0; channel 3 is always 0.
    """
    gram = torch.diag(torch.tensor([1.0, 9.0, 4.0, 0.0], dtype=torch.float64))
    weights = torch.eye(4, dtype=torch.float64)[:, :, None]
    assert lasso_order(gram, weights).tolist() == [3, 0, 2, 1]


def test_lasso_leaves_out_one_of_two_equal_channels_to_the_end() -> None:
    """Channels 0 and 1 bring the same, so one does for both, although alone each explains more than channel 2."""
    gram = torch.tensor([[4.0, 4.0, 0.0], [4.0, 4.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    order = lasso_order(gram, torch.eye(3, dtype=torch.float64)[:, :, None]).tolist()
    assert order[0] in (0, 1)
    assert order[1] == 2


def test_thinet_removes_what_costs_least_together() -> None:
    """Channel 0 goes first (2 < 2.2 < 2.5).

    Then 1, although alone it costs most: it undoes most of what removing 0 did.
    """
    gram = torch.tensor([[2.0, -2.0, 0.0], [-2.0, 2.5, 0.0], [0.0, 0.0, 2.2]], dtype=torch.float64)
    assert greedy_order(gram, torch.zeros(1)).tolist() == [0, 1, 2]
    assert gram.diagonal().argsort().tolist() == [0, 2, 1]


@pytest.mark.parametrize("seed", range(3))
def test_thinet_removes_the_channel_whose_removal_changes_the_output_least(seed: int) -> None:
    model, graph, task = planted(torch.tensor([0, 1, 2]), seed)
    settings = ThiNetOnePass(images=500, positions=1)
    (removed,) = (~settings.planner(model, graph, {}, task)(0.01)["2"].kept_GI[0]).nonzero()[:, 0].tolist()
    every = torch.arange(8)
    errors = [error(model, pruned_to(every[every != i], model)[0], task) for i in range(8)]
    assert removed == min(range(8), key=errors.__getitem__)


def test_thinet_scales_channels_by_least_squares() -> None:
    model, graph, task = planted(torch.tensor([0, 1, 2]), 0)
    pruned, plan = pruned_to(torch.tensor([0, 2, 5]), model)
    fitted, weight = copy.deepcopy(model), model.get_parameter("2.weight").detach()
    ThiNetOnePass(images=500, positions=1).reconstruct(fitted, graph, graph.settle(plan), task)
    assert error(model, fitted, task) < error(model, pruned, task)
    x = task.samples(500)[0]
    with torch.no_grad():
        hidden, y = model[:2](x)[:, :, 0, 0], model[:3](x).flatten()  # type: ignore[index]
    brought = torch.stack([hidden[:, i : i + 1] * weight[:, i, 0, 0] for i in (0, 2, 5)], -1).flatten(0, 1)
    scale = torch.linalg.lstsq(brought, y).solution
    expected = weight[:, [0, 2, 5]] * scale[:, None, None]
    torch.testing.assert_close(fitted.get_parameter("2.weight")[:, [0, 2, 5]].detach(), expected, rtol=1e-3, atol=1e-5)


def test_thinet_doubles_a_channel_whose_twin_is_gone() -> None:
    one = torch.ones(3, 1, 1, dtype=torch.float64)
    xx, xy = torch.tensor([[7.0]]).double(), torch.tensor([[7.0, 7.0]]).double()
    torch.testing.assert_close(rescaled(one, one.expand(3, 2, 1), xx, xy), 2 * one, rtol=1e-5, atol=0)


def test_thinet_prunes_only_what_one_layer_reads() -> None:
    residual = Graph(network_of("resnet8"), images().input_shape)
    assert sole_readers(residual) == [name for name in residual.convs if name.endswith("conv_b")]
    plain = Graph(network_of("vgg6"), images().input_shape)
    assert sole_readers(plain) == list(plain.convs)[1:]
    bottleneck = Graph(network_of("bottleneck"), images().input_shape)
    assert sole_readers(bottleneck) == [name for name in bottleneck.convs if name.endswith(("conv2", "conv3"))]


@pytest.mark.parametrize("network", ["resnet8", "vgg6"])
@pytest.mark.parametrize("settings", [LassoOnePass(images=128), ThiNetOnePass(images=128)])
def test_reconstruction_brings_the_whole_network_nearer_to_what_it_was(settings: Pruner, network: str) -> None:
    model = network_of(network).eval()
    graph, task = Graph(model, images().input_shape), task_of(0)
    plan = meet(settings.planner(model, graph, {}, task), graph, Budget(share=0.4)).plan
    masked, fitted = copy.deepcopy(model), copy.deepcopy(model)
    for name, layer in plan.items():
        masked.get_parameter(f"{name}.weight").data.mul_(layer.mask_OI[:, :, None, None])
    settings.reconstruct(fitted, graph, plan, task)
    x = images().samples(256, split="all", device="cpu")[0][128:]
    with torch.no_grad():
        wanted = model(x)
        errors = [float((pruned(x) - wanted).norm()) for pruned in (masked, fitted)]
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("name", ["images", "positions"])
@pytest.mark.parametrize("kind", [LassoOnePass, ThiNetOnePass])
def test_nothing_to_look_at_is_refused(kind: type[Pruner], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        kind(**{name: 0})


# ---- grouped kernel pruning ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("filters", "most", "expected"), [(8, 4, 4), (6, 4, 3), (7, 4, 1), (4, 8, 4), (5, 1, 1)])
def test_groups_are_of_equal_size_even_where_clusters_are_not(filters: int, most: int, expected: int) -> None:
    """All filters but one are alike, so k-means alone would leave them together."""
    torch.manual_seed(0)
    w = 0.01 * torch.randn(filters, 5, dtype=torch.float64)
    w[0] += 10
    sizes = equal_groups(w, most, seed=0).bincount()
    assert sizes.tolist() == [filters // expected] * expected


def test_groups_are_clusters_where_these_are_equal() -> None:
    centres = torch.eye(4, dtype=torch.float64)
    wanted = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
    got = equal_groups(centres[wanted] + 0.01 * torch.arange(8)[:, None], 4, seed=1)
    assert torch.equal(got[:, None] == got, wanted[:, None] == wanted)


def test_kernels_that_are_small_and_like_others_have_low_scores() -> None:
    """Two groups of one filter. In the first, channels 0 and 1 are alike, and 2 is smaller, but alone.

    Norms 2, 2, 1 with mean 5/3; mean distances 3/2, 3/2, 3 with mean 2: scores 1.95, 1.95, 2.1. In the second, norms
    3, 1, 2 with mean 2 and distances 3/2, 3/2, 1 with mean 4/3: scores 2.625, 1.625, 1.75.
    """
    w = torch.tensor([[[2.0], [2.0], [-1.0]], [[3.0], [1.0], [2.0]]], dtype=torch.float64)
    scores = kernel_scores(w, torch.tensor([0, 1]))
    expected = torch.tensor([[1.95, 1.95, 2.1], [2.625, 1.625, 1.75]], dtype=torch.float64)
    torch.testing.assert_close(scores, expected)


def test_equal_gkp_plans_the_planted_groups_and_their_own_channels() -> None:
    """Large and various kernels tell two groups.

    Filters 0 and 2 have them in channels 0 to 2, filters 1 and 3 in channels 3 to 5.
    """
    large, small = torch.tensor([5.0, -6.0, 7.0]), torch.tensor([0.1, 0.1, 0.1])
    second_OI = torch.stack([torch.cat([large, small]), torch.cat([small, large])]).repeat(2, 1)
    model, graph = two_layers(torch.randn(6, 2), second_OI)
    layer = EqualGKP(groups=2).planner(model, graph, {}, task_of(0))(0.5)["3"]
    kept = [layer.kept_GI[layer.filter_group_O[o]].nonzero().flatten().tolist() for o in range(4)]
    assert kept == [[0, 1, 2], [3, 4, 5], [0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("network", ["resnet8", "vgg6"])
def test_every_group_of_a_layer_keeps_as_many_channels(network: str) -> None:
    model = network_of(network)
    graph = Graph(model, images().input_shape)
    planner = EqualGKP(groups=4).planner(model, graph, {}, task_of(0))
    for knob in (0.2, 0.5, 0.8, 1.0):
        shares = []
        for name, layer in planner(knob).items():
            assert layer.filter_group_O.bincount().tolist() == [graph.convs[name].filters // 4] * 4
            (kept,) = set(layer.kept_GI.sum(1).tolist())
            shares.append((kept - 1) / (graph.convs[name].channels - 1))
            assert kept >= 1
            assert abs(shares[-1] - (1 - knob)) <= 1 / (graph.convs[name].channels - 1)
        assert len(shares) == sum(conv.prunable for conv in graph.convs.values())
    different = planner(0.5)
    assert any(len(layer.canonical().kept_GI) == 4 for layer in different.values())


def test_no_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="groups must be at least 1, got 0"):
        EqualGKP(groups=0)
