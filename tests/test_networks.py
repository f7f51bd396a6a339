"""Networks of all families and idioms: masked and packed networks agree."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_pack import random_plan
from torch import Tensor, nn
from torchvision import models as zoo
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from suite.contract import PruningPlan
from suite.graph import Graph
from suite.measure.counting import count_macs, count_params
from suite.pack import PackedNetwork, check_dense, masks, pack, per_group, plain, tuned, unpack

PLAIN = {"init_weights": False, "aux_logits": False}
FAMILIES: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "alexnet": (64, lambda: zoo.alexnet(num_classes=10)),
    "vgg": (32, lambda: zoo.vgg11_bn(num_classes=10)),
    "resnet": (32, lambda: zoo.resnet18(num_classes=10)),
    "resnext": (64, lambda: zoo.ResNet(Bottleneck, [1, 1, 1, 1], 10, groups=32, width_per_group=4)),
    "wide_resnet": (64, lambda: zoo.ResNet(Bottleneck, [1, 1, 1, 1], 10, width_per_group=128)),
    "densenet": (64, lambda: zoo.DenseNet(8, (2, 2, 2, 2), 16, num_classes=10)),
    "googlenet": (64, lambda: zoo.googlenet(num_classes=10, **PLAIN)),
    "inception_v3": (80, lambda: zoo.inception_v3(num_classes=10, **PLAIN)),
    "squeezenet": (64, lambda: zoo.squeezenet1_1(num_classes=10)),
    "mobilenet_v2": (64, lambda: zoo.mobilenet_v2(num_classes=10, width_mult=0.5)),
    "mobilenet_v3": (64, lambda: zoo.mobilenet_v3_small(num_classes=10)),
    "shufflenet_v2": (64, lambda: zoo.shufflenet_v2_x0_5(num_classes=10)),
    "mnasnet": (64, lambda: zoo.mnasnet0_5(num_classes=10)),
    "efficientnet": (64, lambda: zoo.efficientnet_b0(num_classes=10)),
    "regnet_y": (64, lambda: zoo.regnet_y_400mf(num_classes=10)),
    "regnet_x": (64, lambda: zoo.regnet_x_400mf(num_classes=10)),
    "convnext": (32, lambda: zoo.ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 2)], num_classes=10)),
}
"""Family of torchvision -> size of the images, and a small network of its classes."""


def drawn(model: nn.Module) -> nn.Module:
    """The network in float64 with random weights and statistics, without dropout."""
    generator = torch.Generator().manual_seed(0)
    for key, tensor in model.double().eval().state_dict().items():
        if not tensor.is_floating_point():
            tensor.zero_()
        elif tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif key.endswith(("running_var", "weight")):
            tensor.uniform_(0.5, 1.5, generator=generator)
        else:
            tensor.normal_(0, 0.3, generator=generator)
    for module in model.modules():
        if "p" in vars(module):
            vars(module)["p"] = 0.0  # masked and packed networks draw other numbers
    return model


@functools.cache
def family(name: str) -> tuple[nn.Module, Graph]:
    size, build = FAMILIES[name]
    with torch.random.fork_rng():
        model = build()
    if name in ("alexnet", "vgg"):  # their own classifiers have a gigabyte of weights
        model.classifier = nn.Linear(9216 if name == "alexnet" else 25_088, 10)
    return drawn(model), Graph(model, (3, size, size))


@torch.no_grad()
def masked(model: nn.Module, graph: Graph, plan: PruningPlan) -> nn.Module:
    """The masked network, written without the package under test."""
    result = copy.deepcopy(model)
    state, live = result.state_dict(), graph.live(plan)
    for name, layer in live.layers.items():
        state[f"{name}.weight"].mul_(layer.mask_OI[:, :, None, None])
    for node, rule in graph.operators.items():
        keys = (f"{node.target}.weight", f"{node.target}.bias")
        if rule.kind in ("conv", "bn", "grouped"):
            for key in keys[1:] if rule.kind != "bn" else keys:
                if key in state:
                    state[key].mul_(live.nonzero[node])
    return result


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


@torch.no_grad()
def check(model: nn.Module, graph: Graph, plan: PruningPlan) -> PackedNetwork:
    """All that holds for any plan on any network."""
    x = torch.randn(3, *graph.input_shape, generator=torch.Generator().manual_seed(1)).double()
    packed, reference = pack(model, graph, plan), masked(model, graph, plan)
    expected = reference(x)
    close(packed(x), expected)
    full = copy.deepcopy(model)
    unpack(packed, full)
    close(full(x), expected)
    close(per_group(packed)(x), expected)
    assert count_params(packed) == sum(int(mask.sum()) for mask in masks(packed, model).values())
    close(packed.train()(x), reference.train()(x), 1e-9)
    return packed


@pytest.mark.parametrize("granularity", ["filter", "channel", "intra_channel"])
@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_torchvision(name: str, granularity: str) -> None:
    model, graph = family(name)
    check(model, graph, random_plan(graph, granularity, 3, 0.3, seed=len(name)))


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2", "densenet", "regnet_y", "squeezenet"])
def test_multiply_accumulates_are_those_that_counters_find(name: str) -> None:
    model, graph = family(name)
    assert count_macs(model, graph.input_shape).macs == graph.dense_macs.total
    plan = random_plan(graph, "intra_channel", 2, 0.3, seed=3)
    assert count_macs(per_group(pack(model, graph, plan)), graph.input_shape).macs == graph.macs(plan).total


class Net(nn.Module):
    """Two convolutions with an idiom between them, and a linear head."""

    def __init__(self, idiom: str) -> None:
        super().__init__()
        self.idiom = idiom
        self.a, self.b, self.c = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8))
        self.bn, self.norm, self.layer = nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.LayerNorm(8)
        self.depthwise, self.grouped = nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.reduce, self.tokens = nn.Conv2d(16, 8, 1), nn.Linear(8, 8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.dense = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8), nn.Hardsigmoid())
        self.prelu, self.frozen = nn.PReLU(8), FrozenBatchNorm2d(8)
        self.plain_bn, self.same = nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 8, 4, padding="same")
        self.reflect = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.scale = nn.Parameter(torch.randn(8, 1, 1))
        self.register_buffer("mean", torch.randn(1, 3, 1, 1))
        self.mean: Tensor
        self.in_place = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x = IDIOMS[self.idiom](self, self.a(x - self.mean))
        return x if x.ndim == 2 else self.head(self.c(x).mean((2, 3)))


def _shuffle(net: Net, x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    first, second = net.b(x).view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w).chunk(2, dim=1)
    return torch.cat([second, first[:, 1:], first[:, :1]], 1)


def _skip_read_again(net: Net, x: Tensor) -> Tensor:
    return net.b(net.in_place(x)) + x


def _added_in_place(net: Net, x: Tensor) -> Tensor:
    y = x
    x += net.b(x)
    return F.relu(x, True) + y


def _option_a(net: Net, x: Tensor) -> Tensor:
    return net.reduce(F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))


def _channels_last(net: Net, x: Tensor) -> Tensor:
    y = F.gelu(net.tokens(net.layer(net.depthwise(x)[:, ::2].permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
    return x + net.scale * y


def _dense_gate(net: Net, x: Tensor) -> Tensor:
    return x * net.dense(x.mean((2, 3))).view(x.size(0), -1, 1, 1)


def _by_size(net: Net, x: Tensor) -> Tensor:
    return F.avg_pool2d(x, x.size()[3]) if x.shape[3] < 100 and x.size(1) == 8 else x


IDIOMS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "methods": lambda net, x: net.b(x.relu().sigmoid()).clamp(0.1, 2),
    "silu": lambda net, x: F.silu(net.b(F.leaky_relu(net.bn(x), 0.1, True))),
    "sigmoid": lambda net, x: torch.sigmoid(net.b(nn.functional.softplus(x))),
    "prelu": lambda net, x: net.b(net.prelu(x)),
    "frozen batch norm": lambda net, x: net.b(net.frozen(x)),
    "batch norm without weights": lambda net, x: net.b(net.plain_bn(x)),
    "batch norm first": lambda net, x: x + net.b(F.relu(net.bn(F.relu(x) + x))),
    "group norm": lambda net, x: net.b(net.norm(x)),
    "layer norm": lambda net, x: net.b(net.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
    "channels last": _channels_last,
    "depthwise": lambda net, x: net.b(net.reduce(F.relu6(net.depthwise(net.bn(x))))),
    "grouped": lambda net, x: net.b(net.grouped(x)),
    "gate": lambda net, x: net.b(x) * torch.sigmoid(net.excite(F.relu(net.squeeze(F.adaptive_avg_pool2d(x, 1))))),
    "dense gate": _dense_gate,
    "spatial gate": lambda net, x: x * torch.sigmoid(x.mean(1, keepdim=True)),
    "concatenation": lambda net, x: net.reduce(torch.cat([x, net.b(x)], 1)),
    "shuffle": _shuffle,
    "roll": lambda net, x: net.b(torch.roll(x, 3, 1)),
    "upsampling": lambda net, x: F.interpolate(net.b(F.max_pool2d(x, 2)), scale_factor=2) + x,
    "option A": _option_a,
    "same": lambda net, x: net.same(x),
    "reflect": lambda net, x: net.reflect(x),
    "layer scale": lambda net, x: x + net.scale * net.b(x),
    "constants": lambda net, x: net.b((2 * x + 1) / 3 - x),
    "weighted sum": lambda net, x: torch.add(x, net.b(x), alpha=2),
    "broadcast sum": lambda net, x: x + F.adaptive_max_pool2d(net.b(x), 1),
    "maximum": lambda net, x: torch.maximum(x, net.b(x)),
    "softmax": lambda net, x: net.b(x.softmax(1)),
    "skip read again": _skip_read_again,
    "added in place": _added_in_place,
    "control flow": _by_size,
    "convolution head": lambda net, x: net.b(x).mean((2, 3)),
    "two heads": lambda net, x: torch.cat([net.head(x.mean((-2, -1))), net.b(x).amax((2, 3))], 1),
    "flat view": lambda net, x: net.head(F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)),
    "flat method": lambda net, x: net.head(F.adaptive_avg_pool2d(x, 1).flatten(1)),
}


@pytest.mark.parametrize("idiom", IDIOMS)
def test_idioms(idiom: str) -> None:
    model = drawn(Net(idiom))
    graph = Graph(model, (3, 8, 6))
    check(model, graph, PruningPlan({}))
    for seed, granularity in enumerate(("filter", "channel", "intra_channel", "filter")):
        check(model, graph, random_plan(graph, granularity, 2, 0.4, seed))
    check(model, graph, random_plan(graph, "filter", 1, 1.1, 0))  # nothing is left


@pytest.mark.parametrize("idiom", [*IDIOMS])
@torch.no_grad()
def test_executions_of_idioms(idiom: str) -> None:
    model = drawn(Net(idiom))
    graph = Graph(model, (3, 8, 6))
    plan = random_plan(graph, "intra_channel", 2, 0.4, 7)
    x = torch.randn(2, *graph.input_shape).double()
    network, _ = tuned(pack(model, graph, plan), x, execution="padded", layout="channels_last")
    close(network(x), masked(model, graph, plan)(x), 1e-9)


# ---- never another network -------------------------------------------------------------------------------------------


class Mode(nn.Module):
    """Its function depends on the mode, or an alias of a tensor that changes in place is read."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.conv(x).mean((2, 3))
        if self.how == "mode" and self.training:
            x = 2 * x
        logits = self.head(x)
        return (logits, x) if self.how == "aux" and self.training else logits


def test_a_network_that_differs_from_its_trace_is_refused() -> None:
    for how in ("", "aux"):
        check_dense(Mode(how), Graph(Mode(how), (3, 8, 8)))
    with pytest.raises(ValueError, match="Mode in train mode is not what its trace computes"):
        check_dense(Mode("mode"), Graph(Mode("mode"), (3, 8, 8)))


# ---- plain modules ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vgg", "mobilenet_v2", "resnet", "squeezenet"])
@torch.no_grad()
def test_plain_networks_compute_the_same(name: str) -> None:
    model, graph = family(name)
    x = torch.randn(3, *graph.input_shape, generator=torch.Generator().manual_seed(1)).double()
    for granularity in ("filter", "intra_channel"):
        packed = pack(model, graph, random_plan(graph, granularity, 2, 0.3, seed=5))
        for result in (plain(packed), plain(packed, model)):
            close(result(x), packed(x))
            assert count_params(result) == count_params(packed)
            assert count_macs(result, graph.input_shape).macs == graph.macs(packed.plan).total
    if name == "vgg":
        assert type(plain(packed, model)) is type(model)
