"""The channel graph: exact MACs, roles, ties, and what is left under a plan."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.transforms import Resize

from suite.contract import Budget, ConvPlan, PruningPlan
from suite.graph import Graph
from suite.models import build


def graph_of(name: str, size: int) -> Graph:
    with torch.device("meta"):  # 138 million weights of a VGG-16 need not be drawn to count them
        model = build(name, 1000 if size == 224 else 10)
    return Graph(model, (3, size, size))


# ---- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "convs", "total"),
    [
        ("resnet20", 32, 40_812_544, 40_813_184),
        ("resnet56", 32, 125_747_200, 125_747_840),
        ("resnet18", 224, 1_813_561_344, 1_814_073_344),
        ("resnet50", 224, 4_087_136_256, 4_089_184_256),
        ("vgg16_bn", 224, 15_346_630_656, 15_346_630_656 + 25_088 * 4096 + 4096 * 4096 + 4096 * 1000),
    ],
)
def test_exact_macs(name: str, size: int, convs: int, total: int) -> None:
    graph = graph_of(name, size)
    assert graph.dense_macs.total == total
    assert sum(conv.macs for conv in graph.convs.values()) == convs


@pytest.mark.parametrize(
    ("name", "macs", "weights"), [("resnet20", 40_108_032, 267_264), ("resnet56", 125_042_688, 847_872)]
)
def test_the_convolutions_that_count_as_prunable(name: str, macs: int, weights: int) -> None:
    graph = graph_of(name, 32)
    assert graph.dense_macs.prunable == macs
    assert sum(c.filters * c.channels * c.kernel for c in graph.convs.values() if c.prunable) == weights


def test_what_is_known_of_one_convolution() -> None:
    conv = graph_of("resnet20", 32).convs["stage_2.0.conv_a"]
    assert (conv.bn, conv.filters, conv.channels, conv.kernel) == ("stage_2.0.bn_a", 32, 16, 9)
    assert (conv.positions, conv.input_elements) == (16 * 16, 16 * 32 * 32)
    assert conv.macs == 16 * 16 * 9 * 32 * 16
    assert conv.macs_per_kernel == 16 * 16 * 9


def test_a_cut_has_the_scope_of_its_budget() -> None:
    graph = graph_of("resnet8", 32)
    stem, shortcut = graph.convs["conv_1_3x3"], graph.convs["stage_3.0.downsample.0"]
    half = torch.arange(64) % 2 == 0
    plan = PruningPlan({shortcut.name: ConvPlan(torch.zeros(64, dtype=torch.int64), torch.ones(1, 32).bool(), half)})
    assert graph.cut(plan, "prunable") == 0
    assert graph.cut(plan, "network") == pytest.approx(shortcut.macs / 2 / graph.dense_macs.total)
    inner = graph.convs["stage_1.0.conv_a"]
    plan = PruningPlan({inner.name: ConvPlan.from_mask(torch.arange(16) % 2 == torch.zeros(16, 1))})
    assert graph.macs(plan).prunable == graph.dense_macs.prunable - inner.macs // 2
    assert stem.role == "stem"
    cut = graph.cut(plan, "prunable")
    assert graph.meets(plan, Budget(share=cut, scope="prunable"))
    assert not graph.meets(plan, Budget(share=cut, scope="network"))


# ---- roles and ties --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet20", "resnet20_a", "resnet18", "resnet50", "vgg16", "vgg16_bn"])
def test_roles(name: str) -> None:
    graph = graph_of(name, 32)
    last = {"resnet20": "conv_b", "resnet20_a": "conv_b", "resnet18": "conv2", "resnet50": "conv3"}.get(name)
    roles = {conv.name: conv.role for conv in graph.convs.values()}
    for position, (layer, role) in enumerate(roles.items()):
        if position == 0:
            expected = "stem"
        elif "downsample" in layer:
            expected = "shortcut"
        else:
            expected = "closing" if layer.split(".")[-1] == last else "inner"
        assert role == expected, layer
    shortcuts = {"resnet20": 2, "resnet18": 3, "resnet50": 4}.get(name, 0)
    assert list(roles.values()).count("shortcut") == shortcuts


def test_coupled_filters_with_convolutional_shortcuts() -> None:
    sets = graph_of("resnet20", 32).filter_sets
    for stage in (1, 2, 3):
        first = "conv_1_3x3" if stage == 1 else f"stage_{stage}.0.downsample.0"
        for block in range(3):
            assert torch.equal(sets[f"stage_{stage}.{block}.conv_b"], sets[first])
    independent = [ids for layer, ids in sets.items() if layer.endswith("conv_a")]
    streams = [sets["conv_1_3x3"], sets["stage_2.0.conv_b"], sets["stage_3.0.conv_b"]]
    numbers = torch.cat([*independent, *streams])
    assert len(numbers.unique()) == len(numbers) == 3 * (16 + 32 + 64) + 16 + 32 + 64


def test_coupled_filters_with_padded_shortcuts() -> None:
    sets = graph_of("resnet8_a", 32).filter_sets
    one, two, three = sets["conv_1_3x3"], sets["stage_2.0.conv_b"], sets["stage_3.0.conv_b"]
    assert torch.equal(sets["stage_1.0.conv_b"], one)
    assert torch.equal(two[8:24], one)
    assert torch.equal(three[16:48], two)
    assert len(torch.cat([one, two, three]).unique()) == 64
    assert len(torch.cat([sets[f"stage_{stage}.0.conv_a"] for stage in (1, 2, 3)] + [three]).unique()) == 64 + 112


def test_nothing_is_coupled_in_a_chain() -> None:
    graph = graph_of("vgg6", 32)
    numbers = torch.cat(list(graph.filter_sets.values()))
    assert len(numbers.unique()) == len(numbers) == sum(conv.filters for conv in graph.convs.values())


@pytest.mark.parametrize("name", ["resnet8", "resnet8_a", "vgg6", "resnet20"])
def test_each_input_channel_names_the_filters_that_make_it(name: str) -> None:
    """Removing one filter set leaves those who read it with just the other channels."""
    graph = graph_of(name, 32)
    assert set(graph.input_sets) > set(graph.filter_sets)
    assert bool((graph.input_sets[next(iter(graph.convs))] == -1).all())
    for number in (0, 5, int(torch.cat(list(graph.filter_sets.values())).max())):
        plan = {
            layer: ConvPlan.full(conv.filters, conv.channels)
            & ConvPlan.from_mask((ids != number)[:, None].expand(-1, conv.channels))
            for (layer, conv), ids in zip(graph.convs.items(), graph.filter_sets.values(), strict=True)
        }
        live = graph.live(PruningPlan(plan))
        for layer in graph.convs:
            assert torch.equal(live.layers[layer].kept_GI.any(0), graph.input_sets[layer] != number), layer


# ---- what a plan leaves ----------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Two channels, 1x1 kernels: y = stem(x); head(y + second(first(y)))."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = (nn.Conv2d(channels, 2, 1) for channels in (3, 2, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        y = y + self.second(torch.relu(self.first(y)))
        return self.head(torch.flatten(self.pool(y), 1))


def test_what_is_left_worked_out_by_hand() -> None:
    graph = Graph(Residual(), (3, 4, 4))
    plan = PruningPlan(
        {
            "stem": ConvPlan.from_mask(torch.tensor([[1, 1, 1], [0, 0, 0]])),
            "first": ConvPlan.from_mask(torch.tensor([[0, 1], [1, 1]])),  # filter 0 reads what is always zero
            "second": ConvPlan.from_mask(
                torch.tensor([[1, 1], [1, 0]])
            ),  # so filter 1 does too, and channel 1 of the sum is 0
        }
    )
    settled = graph.settle(plan)
    assert settled["stem"].mask_OI.tolist() == [[True, True, True], [False, False, False]]
    assert settled["first"].mask_OI.tolist() == [[False, False], [True, False]]
    assert settled["second"].mask_OI.tolist() == [[False, True], [False, False]]
    live = graph.live(plan)
    channels = {node.name: live.channels[node].tolist() for node in live.channels}
    assert channels["add"] == channels["flatten"] == [True, False]
    assert channels["first"] == [False, True]
    assert graph.macs(plan).total == 16 * (3 + 1 + 1) + 5
    assert graph.macs(plan).prunable == 16 * 2
    assert graph.dense_macs.total == 16 * (6 + 4 + 4) + 10


def test_a_filter_that_nobody_reads_goes_with_all_that_only_it_reads() -> None:
    graph = graph_of("vgg6", 32)
    names = list(graph.convs)
    last, before = graph.convs[names[-1]], graph.convs[names[-2]]
    reads = torch.ones(last.filters, last.channels, dtype=torch.bool)
    reads[:, 5] = False
    plan = PruningPlan({last.name: ConvPlan.from_mask(reads)})
    left = graph.settle(plan)
    assert left[before.name].kept_O.tolist() == [channel != 5 for channel in range(before.filters)]
    assert set(left) == {last.name, before.name}
    saved = last.filters * last.macs_per_kernel + before.channels * before.macs_per_kernel
    assert graph.dense_macs.total - graph.macs(plan).total == saved


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, padding=1), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 2 * width, 1), nn.BatchNorm2d(2 * width)
        self.shortcut = nn.Sequential(nn.Conv2d(channels, 2 * width, 1, stride), nn.BatchNorm2d(2 * width))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(out)))))
        return torch.relu(out + self.shortcut(x))


def bottleneck() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), Bottleneck(4, 3, 1),
        Bottleneck(6, 4, 2), nn.AvgPool2d(2), nn.Flatten(1), nn.Linear(8 * 9, 7), nn.ReLU(), nn.Linear(7, 2),
    )  # fmt: skip


@functools.cache
def network(name: str) -> tuple[nn.Module, Graph]:
    """In float64, with weights and shifts such that nothing is cut off and nothing cancels."""
    model = (bottleneck() if name == "bottleneck" else build(name, 10)).double().eval()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 1 / max(1, parameter[0].numel()) if parameter.ndim > 1 else 0.0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        elif isinstance(module, nn.Linear):  # its outputs live, even where no input does
            nn.init.ones_(module.bias)
    return model, Graph(model, (3, 28, 28) if name == "bottleneck" else (3, 32, 32))


NETWORKS = ("resnet8", "resnet8_a", "vgg6", "bottleneck")


def random_plan(graph: Graph, removed: float, groups: int, seed: int) -> PruningPlan:
    """Groups, channels and filters at random; some layers are untouched."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    layers = {}
    for name, conv in graph.convs.items():
        if rand(1) < 0.8:
            group_O = torch.randint(groups, (conv.filters,), generator=generator)
            layers[name] = ConvPlan(group_O, rand(groups, conv.channels) >= removed, rand(conv.filters) >= removed)
    return PruningPlan(layers)


plans = given(
    name=st.sampled_from(NETWORKS),
    removed=st.sampled_from([0.1, 0.5, 0.8, 0.95]),
    groups=st.integers(1, 4),
    seed=st.integers(0, 10_000),
)


def contains(graph: Graph, larger: PruningPlan, smaller: PruningPlan) -> bool:
    """Every kernel that `smaller` leaves is one that `larger` leaves."""
    full = {name: ConvPlan.full(conv.filters, conv.channels) for name, conv in graph.convs.items()}
    return all(
        not bool((smaller.get(name, every).mask_OI & ~larger.get(name, every).mask_OI).any())
        for name, every in full.items()
    )


@plans
@settings(max_examples=40)
def test_settling_only_removes_and_does_so_once(name: str, removed: float, groups: int, seed: int) -> None:
    graph = network(name)[1]
    plan = random_plan(graph, removed, groups, seed)
    settled = graph.settle(plan)
    assert contains(graph, plan, settled)
    assert graph.settle(settled) == settled
    assert graph.macs(settled) == graph.macs(plan)


@plans
@settings(max_examples=40)
def test_removing_more_never_costs_more(name: str, removed: float, groups: int, seed: int) -> None:
    graph = network(name)[1]
    one, two = (random_plan(graph, removed / 2, groups, 2 * seed + index) for index in (0, 1))
    both, left = graph.macs(one & two), graph.macs(one)
    assert both.total <= left.total <= graph.dense_macs.total
    assert both.prunable <= left.prunable <= graph.dense_macs.prunable
    assert contains(graph, graph.settle(one), graph.settle(one & two))


@plans
@settings(max_examples=40)
def test_what_is_left_is_just_what_takes_part(name: str, removed: float, groups: int, seed: int) -> None:
    """With positive weights and images nothing cancels: a kernel takes part where the output has a gradient in it."""
    model, graph = network(name)
    plan = random_plan(graph, removed, groups, seed)
    full = {layer: ConvPlan.full(conv.filters, conv.channels) for layer, conv in graph.convs.items()}
    kept = {layer: plan.get(layer, every).mask_OI for layer, every in full.items()}
    masked = {
        f"{layer}.weight": model.get_parameter(f"{layer}.weight").detach() * mask_OI[:, :, None, None]
        for layer, mask_OI in kept.items()
    }
    linear = {f"{n}.weight": m.weight.detach() for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    leaves = {layer: weight.requires_grad_() for layer, weight in (masked | linear).items()}
    torch.func.functional_call(model, leaves, torch.ones(1, *graph.input_shape).double()).sum().backward()
    settled, macs = graph.settle(plan), 0
    for layer, conv in graph.convs.items():
        gradient = leaves[f"{layer}.weight"].grad
        assert gradient is not None
        part = kept[layer] & (gradient.abs().sum((2, 3)) > 0)
        assert torch.equal(settled.get(layer, full[layer]).mask_OI, part), layer
        macs += int(part.sum()) * conv.macs_per_kernel
    for layer in linear:
        gradient = leaves[layer].grad
        assert gradient is not None
        macs += int((gradient != 0).sum())
    assert graph.macs(plan).total == macs


# ---- what is refused -------------------------------------------------------------------------------------------------


class Straight(torch.autograd.Function):
    """Rounding with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


with warnings.catch_warnings():
    warnings.simplefilter("ignore")

    @torch.jit.script
    def squared(x: Tensor) -> Tensor:
        return x * x


class Applied(nn.Module):
    """A convolution and a linear layer, put together by `how`."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.pool = nn.Conv2d(3, 3, 3, padding=1), nn.AdaptiveAvgPool2d(1)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(3, 2)
        self.bn, self.resize = nn.BatchNorm2d(3), Resize(8)
        if "attention" in how:
            self.attention = nn.MultiheadAttention(3, 1, batch_first=True)
        elif how == "recurrent":
            self.rnn = nn.GRU(3, 3, batch_first=True)
        elif how == "parameter twice":
            self.spare = nn.Parameter(torch.ones(3, 1, 1))
        elif how == "views of a parameter":
            self.spare = nn.Parameter(torch.ones(3))
        elif how == "own weight":
            self.kernels = nn.Parameter(torch.ones(3, 3, 1, 1))
        elif how == "never":
            self.aux, self.aux_2 = (nn.Sequential(nn.Conv2d(3, 3, 1), nn.Linear(3, 3)) for _ in range(2))
        elif how in ("never read", "parameter as a result"):
            self.spare = nn.Parameter(torch.ones(3))
        elif how == "dead":
            self.side = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Any:
        if self.how == "image decides" and x.sum() > 0:
            return x
        x = self.conv(x)
        if self.how == "attention":
            tokens = x.flatten(2).transpose(1, 2)
            x = self.attention(tokens, tokens, tokens)[0].mean(1)[..., None, None]
        elif self.how == "fused attention":
            x = nn.functional.scaled_dot_product_attention(x, x, x)
        elif self.how == "product":
            x = torch.einsum("nchw,ndhw->nchw", x, x)
        elif self.how == "recurrent":
            x = self.rnn(x.flatten(2).transpose(1, 2))[0].mean(1)[..., None, None]
        elif self.how == "flat rows":
            return self.head(nn.functional.interpolate(x, (3, 3)).flatten(1, 2))
        elif self.how == "parameter twice":
            x = x * self.spare + self.spare
        elif self.how == "view":
            view = x[:, :2]
            x = torch.cat([self.relu(x), view], 1)[:, :3]
        elif self.how == "part":
            x[:, 0] = 0
        elif self.how == "layer and function":
            x = x * self.bn.weight[:, None, None]
        elif self.how == "views of a parameter":
            view = self.spare.view(1, 3, 1, 1)
            x = x * view + view
        elif self.how == "weight with other settings":
            x = x + nn.functional.conv2d(x, self.conv.weight, self.conv.bias, padding=2, dilation=2)
        elif self.how == "own weight":
            x = nn.functional.conv2d(x, self.kernels)
        elif self.how == "no gradient":
            with torch.no_grad():
                x += 1
        elif self.how == "autocast":
            with torch.autocast("cpu"):
                x = torch.relu(x)
        elif self.how == "transform":
            x = self.resize(x)
        elif self.how == "checkpoint":
            x = torch.utils.checkpoint.checkpoint(self.bn, x, use_reentrant=True)
        elif self.how == "autograd function":
            x = Straight.apply(x)
        elif self.how == "script":
            x = squared(x)
        elif self.how == "made tensor":
            x = x + torch.ones(len(x), 3, 1, 1)
        elif self.how == "computed buffer":
            x = x / (self.bn.get_buffer("running_var") + 1)[:, None, None]
        elif self.how == "parameters alone":
            return x.mean((2, 3)) @ self.head.weight.t()
        elif self.how == "functional norm":
            x = nn.functional.batch_norm(x, self.bn.running_mean, self.bn.running_var, training=self.training)
        elif self.how == "dead":
            self.side(x)
        logits = self.head(torch.flatten(self.pool(self.bn(x)), 1))
        return (logits, self.spare) if self.how == "parameter as a result" else logits


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("image decides", r"Applied cannot be traced by torch.fx: .* with torch.where \(.*test_graph.py:\d+\)"),
        ("attention", r"Applied is a transformer \(attention computes attention\)"),
        ("fused attention", "Applied is a transformer"),
        ("product", "'einsum'.*it has no rule; write it with nn.Conv2d"),
        ("recurrent", "'rnn'.*it has weights and no rule"),
        ("flat rows", "'head'.*channels in the last dimension"),
        ("parameter twice", "'spare'.*several times"),
        ("view", r"'relu' \(ReLU.* changes in place what 'cat.*' reads later; set inplace=False"),
        ("part", r"Applied assigns to a part of a tensor; write it with torch.cat, .*test_graph.py:\d+"),
        (
            "made tensor",
            r"Applied makes a tensor with one entry for each image; let its first dimension be 1.*test_graph.py",
        ),
        (
            "computed buffer",
            "Applied reads a tensor .* computed from parameters and buffers alone; register it as a buffer",
        ),
        ("autocast", r"Applied computes in torch.autocast, .* call the network inside of autocast .*test_graph.py"),
        ("transform", r"Applied calls Resize of torchvision; transform the images before the network .*test_graph.py"),
        ("layer and function", r"'bn.weight' several times \(in bn and mul\)"),
        ("views of a parameter", r"'spare' several times \(in add and mul\)"),
        (
            "weight with other settings",
            "'conv2d'.*no call of a whole layer with its own settings, but a function of conv.weight",
        ),
        ("own weight", "'conv2d'.*but a function of kernels"),
        ("no gradient", "Applied changes a tensor in place without gradient; .*test_graph.py"),
        ("autograd function", "Applied computes in an autograd.Function"),
        ("checkpoint", r"Applied calls torch.utils.checkpoint with use_reentrant=True; set use_reentrant=False"),
        ("script", r"Applied calls a function of torch.jit.script, .* remove the decorator \(.*test_graph.py"),
        ("parameters alone", "'t'.*it computes on parameters and buffers alone"),
        ("functional norm", "Applied calls batch_norm with self.training; write it as a module"),
        (
            "never",
            "Applied computes nothing with aux and aux_2 in eval mode, so 48 .* delete each first .aux = aux_2 = None",
        ),
        ("never read", "Applied computes nothing with the parameter spare"),
        ("dead", "Applied computes nothing with side"),
        ("parameter as a result", "Applied returns 'spare', a parameter or constant; return only what is computed"),
    ],
)
def test_a_network_that_cannot_be_followed_is_refused(how: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        Graph(Applied(how), (3, 8, 8))
    assert "\n" not in str(error.value)


def left_over(how: str) -> nn.Module:
    model: Any = nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
    )
    if how == "mask":
        torch.nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)
    elif how == "parametrization":
        torch.nn.utils.parametrizations.weight_norm(model[2])
    elif how == "weight norm":
        with pytest.warns(FutureWarning):
            torch.nn.utils.weight_norm(model[2])
    elif how == "one parameter":
        model[2].weight = model[0].weight
    elif how == "one storage":
        model[2].weight = nn.Parameter(model[0].weight.data)
    elif how == "one buffer":
        model[3].running_mean = model[1].running_mean
    elif how == "wrapped":
        return nn.DataParallel(model)
    elif how == "exported":
        return torch.export.export(model, (torch.zeros(2, 3, 8, 8),)).module()
    return model


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("mask", "0 of Sequential has a mask of torch.nn.utils.prune: torch.nn.utils.prune.remove first"),
        ("parametrization", "2 of Sequential is parametrized"),
        ("weight norm", "2 of Sequential has WeightNorm: torch.nn.utils.remove_weight_norm first"),
        ("one parameter", "0.weight and 2.weight of Sequential are one parameter"),
        ("one storage", "0.weight and 2.weight of Sequential are one parameter"),
        ("one buffer", "1.running_mean and 3.running_mean of Sequential are one tensor"),
        ("wrapped", r"DataParallel is no network of its own; give the network inside, .module"),
        ("exported", "GraphModule is an exported program, which has no layers; give the module that was exported"),
    ],
)
def test_weights_that_are_no_plain_parameters_are_refused(how: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Graph(left_over(how), (3, 8, 8))


def test_a_network_without_convolution_is_refused() -> None:
    with pytest.raises(ValueError, match="Sequential has no convolution to prune"):
        Graph(nn.Sequential(nn.Flatten(1), nn.Linear(192, 2)), (3, 8, 8))


@pytest.mark.parametrize(("name", "shape"), [("resnet8", (1, 32, 32)), ("vgg16", (3, 16, 16))])
def test_images_that_do_not_fit_are_refused(
    name: str, shape: tuple[int, int, int], capfd: pytest.CaptureFixture
) -> None:
    with pytest.raises(ValueError, match=rf"takes no images of shape \[{shape[0]}, {shape[1]}, {shape[2]}\]"):
        Graph(build(name, 10), shape)
    assert capfd.readouterr().err == ""


def test_a_plan_of_another_network_is_refused_with_layer_and_shapes() -> None:
    graph = graph_of("resnet8", 32)
    with pytest.raises(ValueError, match=r"the plan names 'features\.0', which is no convolution of this network"):
        graph.check(PruningPlan({"features.0": ConvPlan.full(16, 3)}))
    wrong = PruningPlan({"stage_2.0.conv_a": ConvPlan.full(16, 16)})
    with pytest.raises(ValueError, match=r"stage_2\.0\.conv_a is for \(16, 16\) .* it has \(32, 16\)") as error:
        graph.macs(wrong)
    assert "\n" not in str(error.value)
    for use in (graph.check, graph.live, graph.settle, graph.macs, graph.cut):
        with pytest.raises(ValueError, match=r"stage_2\.0\.conv_a"):
            use(wrong)
