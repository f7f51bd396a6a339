"""Networks of all families and idioms: masked and packed networks agree."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import coverage_table
import pytest
import torch
from families import FAMILIES, IDIOM_SHAPE, IDIOMS, LARGE, Net, draw_weights, family, masked, random_plan
from method_cases import task_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from suite import methods
from suite.contract import Budget, ConvPlan, PruningPlan
from suite.graph import Graph
from suite.measure.counting import count_macs, count_params
from suite.pack import PackedNetwork, check_dense, load_full, masks, pack, per_group, plain, tuned, unpack
from suite.select import meet

FAST = [name for name in FAMILIES if name not in LARGE]


@functools.cache
def prepared(name: str) -> tuple[nn.Module, Graph]:
    model, shape = family(name)
    return model, Graph(model, shape)


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert got.shape == expected.shape
    assert float((got - expected).detach().abs().max()) <= tolerance * max(1.0, float(expected.detach().abs().max()))


@torch.no_grad()
def check(model: nn.Module, graph: Graph, plan: PruningPlan) -> PackedNetwork:
    """All that holds for any plan on any network."""
    x = torch.randn(3, *graph.input_shape, generator=torch.Generator().manual_seed(1)).double()
    packed, reference = pack(model, graph, plan), masked(model, graph, plan, settled=False)
    expected = reference(x)
    close(packed(x), expected)
    full = copy.deepcopy(model)
    unpack(packed, full)
    close(full(x), expected)
    close(per_group(packed)(x), expected)
    assert count_params(packed) == sum(int(mask.sum()) for mask in masks(packed, model).values())
    close(packed.train()(x), reference.train()(x), 1e-9)
    return packed


@pytest.mark.parametrize("name", FAST)
def test_families_of_torchvision(name: str) -> None:
    model, graph = prepared(name)
    check(model, graph, random_plan(graph, "intra_channel", 3, 0.3, seed=len(name)))


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["filter", "channel", "intra_channel"])
@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_torchvision_in_every_granularity(name: str, granularity: str) -> None:
    model, shape = family(name)
    graph = Graph(model, shape)
    for seed in range(3):
        check(model, graph, random_plan(graph, granularity, 3, (0.1, 0.3, 0.6)[seed], seed))


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2", "densenet", "regnet_y"])
def test_multiply_accumulates_are_those_that_counters_find(name: str) -> None:
    model, graph = prepared(name)
    assert count_macs(model, graph.input_shape).macs == graph.dense_macs.total
    plan = random_plan(graph, "intra_channel", 2, 0.3, seed=3)
    assert count_macs(per_group(pack(model, graph, plan)), graph.input_shape).macs == graph.macs(plan).total


@pytest.mark.parametrize("idiom", IDIOMS)
def test_idioms(idiom: str) -> None:
    model = draw_weights(Net(idiom))
    graph = Graph(model, IDIOM_SHAPE)
    check_dense(model, graph)
    for seed, granularity in enumerate(("filter", "intra_channel")):
        check(model, graph, random_plan(graph, granularity, 2, 0.4, seed))
    check(model, graph, random_plan(graph, "filter", 1, 1.1, 0))  # nothing is left


def test_a_part_without_gradient_has_none_in_the_packed_network() -> None:
    model = draw_weights(Net("no gradient")).train()
    packed = pack(model, Graph(model, IDIOM_SHAPE), PruningPlan({}))
    for network in (model, packed):
        network(
            torch.randn(2, *IDIOM_SHAPE, generator=torch.Generator().manual_seed(0)).double()
        ).square().sum().backward()
    own = {name: parameter.grad for name, parameter in model.named_parameters()}
    for slot in (slot for slot in packed.slots if slot.full in own):
        expected = own[slot.full]
        assert expected is not None
        gradient = packed.body.get_parameter(slot.packed).grad
        assert gradient is not None
        close(gradient, slot.read(expected).view(gradient.shape))


@pytest.mark.parametrize("idiom", ["swish", "hard swish"])
def test_a_product_that_is_zero_where_the_convolution_is_makes_no_gate(idiom: str) -> None:
    assert list(Graph(Net(idiom), IDIOM_SHAPE).convs) == ["a", "b", "c"]


RESULTS: dict[str, Callable[[Tensor], Any]] = {
    "softmax": lambda maps: maps.mean((2, 3)).softmax(1),
    "log softmax": lambda maps: F.log_softmax(F.adaptive_avg_pool2d(maps, 1).flatten(1), 1),
    "view": lambda maps: maps.view(-1, 2, 4, 8, 6),
    "split": lambda maps: maps.split(4, 1),
    "unbind": lambda maps: maps.view(-1, 2, 4, 8, 6).unbind(1),
    "squeeze": lambda maps: maps.amax((1, 2), keepdim=True).squeeze((1, 2)),
    "permute": lambda maps: maps.permute(0, 2, 3, 1).reshape(len(maps), -1, 4),
    "pixel shuffle": lambda maps: F.pixel_shuffle(maps, 2),
}
"""Operators that make the network's result of the maps of its last convolution."""


class Resulting(nn.Module):
    """Two convolutions, the second of which makes the result."""

    def __init__(self, result: str) -> None:
        super().__init__()
        self.a, self.b, self.result = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), result

    def forward(self, x: Tensor) -> Any:
        return RESULTS[self.result](self.b(F.relu(self.a(x))))


@pytest.mark.parametrize("result", RESULTS)
@torch.no_grad()
def test_a_convolution_that_makes_the_result_keeps_its_filters(result: str) -> None:
    model = draw_weights(Resulting(result))
    graph, x = Graph(model, IDIOM_SHAPE), torch.randn(3, *IDIOM_SHAPE).double()
    assert list(graph.convs) == ["a"]
    check_dense(model, graph)
    for removed in (0.4, 1.1):
        plan = random_plan(graph, "filter", 1, removed, seed=1)
        assert plan
        for got, expected in zip(
            tree_leaves(pack(model, graph, plan)(x)), tree_leaves(masked(model, graph, plan)(x)), strict=True
        ):
            close(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("idiom", IDIOMS)
@torch.no_grad()
def test_idioms_in_every_granularity(idiom: str) -> None:
    model = draw_weights(Net(idiom))
    graph = Graph(model, IDIOM_SHAPE)
    for seed, granularity in enumerate(("filter", "channel", "intra_channel") * 4):
        check(model, graph, random_plan(graph, granularity, 2, 0.4, seed))


@pytest.mark.parametrize("idiom", IDIOMS)
@torch.no_grad()
def test_executions_of_idioms(idiom: str) -> None:
    model = draw_weights(Net(idiom))
    graph = Graph(model, IDIOM_SHAPE)
    plan = random_plan(graph, "intra_channel", 2, 0.4, 7)
    x = torch.randn(2, *graph.input_shape).double()
    network, _ = tuned(pack(model, graph, plan), x, execution="padded", layout="channels_last")
    close(network(x), masked(model, graph, plan)(x), 1e-9)


@pytest.mark.parametrize("idiom", ["convolution at two sizes", "convolution of two inputs", "batch norm twice"])
@torch.no_grad()
def test_calls_of_one_layer_share_it(idiom: str) -> None:
    model = draw_weights(Net(idiom))
    graph = Graph(model, IDIOM_SHAPE)
    plan = random_plan(graph, "filter", 1, 0.4, 9)
    packed, x = pack(model, graph, plan), torch.randn(2, *graph.input_shape).double()
    names = [str(node.target) for node in packed.body.graph.nodes if node.op == "call_module"]
    assert max(names.count(name) for name, _ in packed.body.named_modules()) > 1
    for network in (plain(packed), plain(packed, model)):
        close(network(x), packed(x))
        assert count_params(network) == count_params(packed)
    assert count_macs(per_group(packed), graph.input_shape).macs == graph.macs(plan).total


def test_filters_of_a_convolution_of_its_own_output_are_tied_to_its_inputs() -> None:
    graph = Graph(Net("convolution twice"), IDIOM_SHAPE)
    assert graph.filter_sets["b"].tolist() == graph.filter_sets["a"].tolist() == graph.input_sets["b"].tolist()
    assert graph.convs["b"].macs == count_macs(nn.Conv2d(8, 8, 3, padding=1), (8, 8, 6)).macs * 2


def test_linear_layers_of_maps_are_convolutions_with_the_state_of_linear_layers() -> None:
    model, own = family("convnext")[0], family("convnext")[0]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    graph = Graph(model, (3, 32, 32))
    assert [graph.convs[f"features.1.0.block.{index}"].role for index in (3, 5)] == ["inner", "closing"]
    assert model.get_parameter("features.1.0.block.3.weight").shape == (64, 16, 1, 1)
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    own.load_state_dict(state)
    model.load_state_dict(own.state_dict())
    x = torch.randn(2, 3, 32, 32).double()
    close(model(x), own(x))
    plan = random_plan(graph, "filter", 1, 0.4, 2)
    packed = pack(model, graph, plan)
    load_full(packed, state)
    close(packed(x), masked(model, graph, plan)(x))


@pytest.mark.parametrize(("scope", "share"), [("inner", 0.6), ("untied", 0.8), ("coupled", 0.8)])
def test_most_of_a_convnext_can_be_removed(scope: str, share: float) -> None:
    model, graph = prepared("convnext")
    planner = methods.get("l1_filter").for_task("", "", scope=scope).planner(model, graph, {}, task_of(0))
    plan = meet(planner, graph, Budget(share=share)).plan
    assert count_macs(pack(model, graph, plan), graph.input_shape).macs == graph.macs(plan).total


def test_a_linear_layer_that_is_not_of_channels_is_refused_by_name() -> None:
    class Spatial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mix, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(6, 6), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mix(self.conv(x)).mean((2, 3)))

    model = Spatial()
    with pytest.raises(ValueError, match=r"cannot be followed through 'mix' .*its input is not"):
        Graph(model, IDIOM_SHAPE)
    assert type(model.mix) is nn.Linear


# ---- table of the page -----------------------------------------------------------------------------------------------


def percent(cell: str) -> float:
    return float(cell.removesuffix("%"))


def test_the_page_has_a_row_for_each_network() -> None:
    heading, *rows = coverage_table.stored().items()
    assert heading[1][:4] == ["filter", "channel", "intra-channel", "reach"]
    assert [name for name, _ in rows] == list(coverage_table.networks())
    for name, (*own, reach, rival, theirs) in rows:
        assert own == ["exact"] * 3 or rival != "exact", f"{name}: Torch-Pruning prunes what this suite does not"
        assert name not in FAMILIES or theirs == coverage_table.NONE or percent(reach) >= 0.9 * percent(theirs), name


@pytest.mark.slow
@pytest.mark.parametrize("name", coverage_table.networks())
def test_the_page_has_the_cells_of_this_code(name: str) -> None:
    model, shape = coverage_table.networks()[name]()
    assert coverage_table.stored()[name][:4] == coverage_table.own_cells(model, shape)


# ---- never another network -------------------------------------------------------------------------------------------


class Idiosyncratic(nn.Module):
    """A convolution, and one thing that no plain network does."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        if how == "hook":
            self.conv.register_forward_hook(lambda module, images, maps: 2 * maps)
        if how == "two names":
            self.scale = self.again = nn.Parameter(torch.full((1, 4, 1, 1), 2.0))
        self.relu = nn.ReLU()

    def get_extra_state(self) -> dict[str, str]:
        """Return what no tensor holds."""
        return {"how": self.how}

    def set_extra_state(self, state: dict[str, str]) -> None:
        self.how = state["how"]

    def forward(self, images: Tensor) -> Any:
        x = self.conv(images)
        if self.how == "mode" and self.training:
            x = F.pad(self.conv(images), (1, 1))
        elif self.how == "batch" and len(x) == 1:
            x = 2 * x
        elif self.how == "float":
            x = x.float()
        elif self.how == "two names":
            x = x * self.scale
        elif self.how in ("sum of slices", "relu of a slice"):
            even, odd = x[:, :, ::2, ::2], x[:, :, 1::2, 1::2]
            x = (even + odd if self.how == "sum of slices" else self.relu(even)).view(len(x), 4, 9)[..., None]
        elif self.how == "expanded":
            x = (x.mean((2, 3), keepdim=True).expand(-1, -1, 6, 6) * x).view(len(x), 4, 36)[..., None]
        x = x.mean((2, 3))
        logits = self.head(x)
        return (
            (logits, x) if self.how == "aux" and self.training else {"logits": logits} if self.how == "dict" else logits
        )


@pytest.mark.parametrize("how", ["", "aux", "dict", "two names", "sum of slices", "relu of a slice", "expanded"])
def test_packing_without_a_cut_is_the_network(how: str) -> None:
    model = Idiosyncratic(how)
    graph, state = Graph(model, (3, 8, 8)), torch.random.get_rng_state()
    check_dense(model, graph)
    assert torch.equal(state, torch.random.get_rng_state())
    full = copy.deepcopy(model)
    unpack(pack(model, graph, PruningPlan({})), full)
    assert all(torch.equal(a, b) for a, b in zip(full.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("mode", r"in train mode is not what its trace computes .* reads self.training in .*test_networks.py:\d+"),
        ("batch", "in eval mode is not what its trace computes .* control flow by the batch"),
        ("hook", "in eval mode .* conv has a forward hook, which packing removes"),
        ("float", "does not run on float64 images"),
    ],
)
def test_a_network_that_differs_from_its_trace_is_refused(how: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"Idiosyncratic {words}"):
        check_dense(Idiosyncratic(how), Graph(Idiosyncratic(how), (3, 8, 8)))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_submodule_of_torchscript_is_refused() -> None:
    model: Any = Idiosyncratic("relu of a slice")
    model.relu = torch.jit.script(model.relu)
    with pytest.raises(ValueError, match="channels of Idiosyncratic cannot be followed through"):
        Graph(model, (3, 8, 8))


def test_hooks_stay_with_the_network() -> None:
    model, calls = Idiosyncratic(""), list[str]()
    model.head.register_full_backward_hook(lambda *_: calls.append("backward"))
    packed = pack(model, Graph(model, (3, 8, 8)), PruningPlan({}))
    packed(torch.randn(1, 3, 8, 8)).sum().backward()
    assert not calls


class Noisy(nn.Module):
    """Operators of train mode alone: dropout, noise, an in-place sum, a further output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.head = nn.Conv2d(3, 8, 3), nn.Dropout(0.5), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.conv(x))
        if self.training:
            x += 0.1 * torch.randn_like(x)
            x = self.drop(x)
        logits = self.head(x.mean((2, 3)))
        return (logits, x) if self.training else logits.softmax(1)


@torch.no_grad()
def test_operators_of_train_mode_stay_in_the_packed_network_and_leave_the_deployed_one() -> None:
    model: Any = draw_weights(Noisy())
    model.drop.p = 0.5
    graph, x = Graph(model, (3, 8, 8)), torch.randn(4, 3, 8, 8).double()
    check_dense(model, graph)
    packed = pack(model, graph, random_plan(graph, "filter", 1, 0.4, 1))
    close(packed(x), masked(model, graph, packed.plan)(x))
    assert not torch.equal(packed.train()(x), packed(x))
    deployed = per_group(packed)
    called = {str(node.target): node.target for node in deployed.graph.nodes}
    assert called.keys().isdisjoint({"drop", "train_or_eval_0", "train_or_eval_1"})
    assert torch.randn_like not in called.values()
    close(per_group(packed)(x), packed.eval()(x))
    assert count_macs(per_group(packed), graph.input_shape).macs == graph.macs(packed.plan).total


# ---- plain modules ---------------------------------------------------------------------------------------------------


def macs_by_hooks(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Count as thop and ptflops do: by hooks on nn.Conv2d and nn.Linear, all other classes are free."""
    counts = []

    def count(layer: nn.Module, images: object, maps: Tensor) -> None:
        counts.append(maps[0].numel() * layer.get_parameter("weight")[0].numel())

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    network(torch.zeros(1, *shape).to(next(network.parameters())))
    for hook in hooks:
        hook.remove()
    return sum(counts)


@pytest.mark.parametrize("name", ["vgg", "mobilenet_v2", "resnet"])
@torch.no_grad()
def test_plain_networks_compute_the_same(name: str) -> None:
    model, graph = prepared(name)
    x = torch.randn(3, *graph.input_shape, generator=torch.Generator().manual_seed(1)).double()
    for granularity in ("filter", "intra_channel"):
        packed = pack(model, graph, random_plan(graph, granularity, 2, 0.3, seed=5))
        for result in (plain(packed), plain(packed, model)):
            close(result(x), packed(x))
            assert count_params(result) == count_params(packed)
            assert count_macs(result, graph.input_shape).macs == graph.macs(packed.plan).total
            assert macs_by_hooks(result, graph.input_shape) == graph.macs(packed.plan).total
        assert macs_by_hooks(packed, graph.input_shape) < graph.macs(packed.plan).total
    if name == "vgg":
        assert type(plain(packed, model)) is type(model)


@pytest.mark.parametrize("name", ["resnext", "regnet_x", "regnet_y", "efficientnet", "densenet"])
@torch.no_grad()
def test_filter_pruning_gives_a_smaller_network_of_the_same_class(name: str) -> None:
    (model, graph), own = prepared(name), family(name)[0]
    planner = methods.get("l1_filter").for_task("", "").planner(model, graph, {}, task_of(0))
    packed = pack(model, graph, meet(planner, graph, Budget(share=0.2, refill=True)).plan)
    result = plain(packed, own)
    assert type(result) is type(own)
    assert {type(layer) for layer in result.modules()} == {type(layer) for layer in own.modules()}
    close(result(torch.ones(2, *graph.input_shape).double()), packed(torch.ones(2, *graph.input_shape).double()))
    assert macs_by_hooks(result, graph.input_shape) == graph.macs(packed.plan).total


@pytest.mark.parametrize("groups", [1, 2])
@torch.no_grad()
def test_linear_layers_of_maps_are_smaller_in_the_class(groups: int) -> None:
    (model, graph), own = prepared("convnext"), family("convnext")[0]
    kept_GI = torch.ones(groups, 16).bool()
    kept_GI[0, ::2] = groups == 1
    plan = PruningPlan({"features.1.0.block.3": ConvPlan(torch.arange(64) % groups, kept_GI, torch.arange(64) % 3 > 0)})
    packed = pack(model, graph, plan)
    result = plain(packed, own)
    assert type(result) is type(own)
    for index in (3, 5):
        assert isinstance(result.get_submodule(f"features.1.0.block.{index}"), nn.Linear) == (groups == 1)
    x = torch.randn(2, 3, 32, 32).double()
    close(result(x), masked(model, graph, plan)(x))
    assert count_params(result) == count_params(packed) < count_params(own)
