"""Networks of the families of torchvision, idioms of CNNs, random weights and plans: shared by tests and benchmarks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models as zoo
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import _efficientnet_conf
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.vgg import make_layers
from torchvision.ops import FrozenBatchNorm2d
from torchvision.transforms import Normalize

from suite.contract import ConvPlan, PruningPlan
from suite.graph import Graph

# ---- weights, plans and the masked network ---------------------------------------------------------------------------


def draw_weights(model: nn.Module) -> nn.Module:
    """Draw weights and statistics of `model` in float64, in place; it has no dropout then, and is in eval mode."""
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


def random_plan(graph: Graph, granularity: str, groups: int, removed: float, seed: int) -> PruningPlan:
    """Return a plan of the granularity; one layer in five is untouched."""
    generator = torch.Generator().manual_seed(seed)

    def kept(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) >= removed

    layers = {}
    for name, conv in graph.convs.items():
        if float(torch.rand(1, generator=generator)) < 0.2:
            continue
        plan = ConvPlan.full(conv.filters, conv.channels)
        if granularity == "filter":
            plan = ConvPlan(plan.filter_group_O, plan.kept_GI, kept(conv.filters))
        elif granularity == "channel":
            plan = ConvPlan(plan.filter_group_O, kept(1, conv.channels), plan.kept_O)
        else:
            group_O = torch.randint(groups, (conv.filters,), generator=generator)
            plan = ConvPlan(group_O, kept(groups, conv.channels), kept(conv.filters))
        layers[name] = plan
    return PruningPlan(layers)


@torch.no_grad()
def masked(model: nn.Module, graph: Graph, plan: PruningPlan, *, settled: bool = True) -> nn.Module:
    """Return the masked network, written without the package under test.

    settled  also mask what the rules of the graph remove beyond the plan; else the result does not depend on most of them
    """
    result = copy.deepcopy(model)
    state, live = result.state_dict(), graph.live(plan)
    layers, left = (live.layers, live.channels) if settled else (plan, live.nonzero)
    for name, layer in layers.items():
        result.get_parameter(f"{name}.weight").mul_(layer.mask_OI[:, :, None, None])
    for node, rule in graph.operators.items():
        keys = (f"{node.target}.weight", f"{node.target}.bias")
        if rule.kind in ("conv", "bn", "grouped"):
            for key in keys[1:] if rule.kind != "bn" else keys:
                if key in state:
                    state[key].mul_(left[node])
    return result


# ---- families --------------------------------------------------------------------------------------------------------

AUX = {"init_weights": False, "aux_logits": False}
REGNET = {"depth": 6, "w_0": 16, "w_a": 16.0, "w_m": 2.0, "group_width": 8}
FAMILIES: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "alexnet": (64, lambda: zoo.alexnet(num_classes=10)),
    "vgg": (32, lambda: zoo.VGG(make_layers([16, "M", 32, "M", 32, "M", 64, "M", 64, "M"], True), 10, False)),
    "resnet": (32, lambda: zoo.ResNet(BasicBlock, [1, 1, 1, 1], 10)),
    "resnext": (32, lambda: zoo.ResNet(Bottleneck, [1, 1, 1, 1], 10, groups=32, width_per_group=4)),
    "wide_resnet": (32, lambda: zoo.ResNet(Bottleneck, [1, 1, 1, 1], 10, width_per_group=128)),
    "densenet": (32, lambda: zoo.DenseNet(8, (2, 2, 2, 2), 16, num_classes=10)),
    "googlenet": (32, lambda: zoo.googlenet(num_classes=10, **AUX)),
    "inception_v3": (75, lambda: zoo.inception_v3(num_classes=10, **AUX)),
    "squeezenet": (32, lambda: zoo.squeezenet1_1(num_classes=10)),
    "mobilenet_v2": (32, lambda: zoo.mobilenet_v2(num_classes=10, width_mult=0.25)),
    "mobilenet_v3": (32, lambda: zoo.mobilenet_v3_small(num_classes=10, width_mult=0.25)),
    "shufflenet_v2": (32, lambda: zoo.ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 64], 10)),
    "mnasnet": (32, lambda: zoo.MNASNet(0.35, 10)),
    "efficientnet": (
        32,
        lambda: zoo.EfficientNet(
            _efficientnet_conf("efficientnet_b0", width_mult=0.25, depth_mult=0.3)[0], 0.2, num_classes=10
        ),
    ),
    "regnet_y": (32, lambda: zoo.RegNet(BlockParams.from_init_params(**REGNET, se_ratio=0.25), 10)),
    "regnet_x": (32, lambda: zoo.RegNet(BlockParams.from_init_params(**REGNET), 10)),
    "convnext": (32, lambda: zoo.ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 2)], num_classes=10)),
}
"""Family of torchvision -> size of the images, and a small network of its classes."""
LARGE = ("inception_v3", "wide_resnet")
"""Families without a small network."""


def family(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return a network of the family with random weights, and the shape of its images."""
    size, build = FAMILIES[name]
    with torch.random.fork_rng():
        model = build()
    if name in ("alexnet", "vgg"):  # their own classifiers have a gigabyte of weights
        model.classifier = nn.Linear(9216 if name == "alexnet" else 64 * 49, 10)
    return draw_weights(model), (3, size, size)


# ---- idioms ----------------------------------------------------------------------------------------------------------


class Padded(nn.Conv2d):
    """A convolution with a forward method of its own, as TensorFlow pads."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, x.shape[3] % 2 + 1, 0, 1))
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Activated(nn.BatchNorm2d):
    """A batch norm with an activation inside."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class Net(nn.Module):
    """Two convolutions with an idiom between them, and a linear head."""

    def __init__(self, idiom: str) -> None:
        super().__init__()
        self.idiom = idiom
        self.a, self.b, self.c = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8))
        self.bn, self.norm, self.layer = nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.LayerNorm(8)
        self.depthwise, self.grouped = nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.reduce, self.tokens, self.wide = nn.Conv2d(16, 8, 1), nn.Linear(8, 8), nn.Linear(8, 16)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.dense = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8), nn.Hardsigmoid())
        self.prelu, self.frozen = nn.PReLU(8), FrozenBatchNorm2d(8)
        self.plain_bn, self.same = nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 8, 4, padding="same")
        self.reflect = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.padded, self.activated = Padded(8, 8, 3, 2), Activated(8)
        self.up, self.across = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv1d(1, 1, 3, padding=1)
        if "slopes" in idiom:
            self.slopes = nn.Parameter(torch.randn(8))
        if "scale" in idiom or idiom == "channels last":
            self.scale = nn.Parameter(torch.randn(8, 1, 1))
        self.normalize, self.plain_shift = Normalize([0.1, 0.5] * 4, [0.3, 0.2] * 4), torch.randn(8, 1, 1)
        if "buffer" in idiom:
            self.register_buffer("shift", torch.randn(8))
        self.register_buffer("mean", torch.randn(1, 3, 1, 1))
        self.mean: Tensor
        self.in_place = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 5)
        self._delete_unused()

    @torch.no_grad()
    def _delete_unused(self) -> None:
        called = set()
        hooks = [
            module.register_forward_hook(lambda *_, name=name: called.add(name))
            for name, module in self.named_children()
        ]
        self.eval()(torch.zeros(1, *IDIOM_SHAPE))
        for hook in hooks:
            hook.remove()
        for name in dict(self.named_children()).keys() - called:
            delattr(self, name)

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


def _linear_of_maps(net: Net, x: Tensor) -> Tensor:
    y = net.tokens(F.relu(net.wide(net.b(x).permute(0, 2, 3, 1)))[..., ::2])
    return net.tokens(y + x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _dense_gate(net: Net, x: Tensor) -> Tensor:
    return x * net.dense(x.mean((2, 3))).view(x.size(0), -1, 1, 1)


def _by_size(net: Net, x: Tensor) -> Tensor:
    return F.avg_pool2d(x, x.size()[3]) if x.shape[3] < 100 and x.size(1) == 8 else x


def _checked(net: Net, x: Tensor) -> Tensor:
    assert isinstance(x, Tensor)
    return net.b(x)


def _channel_attention(net: Net, x: Tensor) -> Tensor:
    gate = net.across(x.mean((2, 3))[:, None]).sigmoid().transpose(1, 2)
    return x * gate[..., None].expand_as(x)


def _leaky(net: Net, x: Tensor) -> Tensor:
    return net.b(torch.where(x > 0, x, 0.1 * x))


def _zeros(net: Net, x: Tensor) -> Tensor:
    return net.reduce(torch.cat([x, torch.zeros_like(x)], 1))


def _made_constants(net: Net, x: Tensor) -> Tensor:
    mean, std = (torch.tensor(each, device=x.device).view(1, -1, 1, 1) for each in ([0.1, 0.5] * 4, [0.3, 0.2] * 4))
    return net.b((x - mean) / std.type_as(x)) * x.new_tensor(0.5)


def _made_zeros(net: Net, x: Tensor) -> Tensor:
    zeros = torch.zeros(x.size(0), 8, x.size(2), x.size(3), dtype=x.dtype, device=x.device)
    return net.reduce(torch.cat([zeros[:, :4], x, zeros[:, 4:]], 1))


def _no_gradient(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        mean, scale = x.mean(1, keepdim=True), net.b(F.relu(x)).mean((2, 3), keepdim=True)
    return net.b((x - mean) * scale)


def _batch_norm_twice(net: Net, x: Tensor) -> Tensor:
    return net.bn(net.b(F.relu(net.bn(x)))) + net.reduce(torch.cat([x, x], 1))


def _sizes(net: Net, x: Tensor) -> Tensor:
    small = net.b(F.max_pool2d(x, 2))
    return net.b(F.relu(net.b(x))) + F.interpolate(small, scale_factor=2) * net.b(x).sigmoid()


def _swish(net: Net, x: Tensor) -> Tensor:
    y = net.b(x)
    return y * torch.sigmoid(y)


def _hard_swish(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.b(x))
    return y * F.relu6(y + 3) / 6


def _moved_positions(net: Net, x: Tensor) -> Tensor:
    x = torch.roll(x.flip(3), (1, -2), (2, 3)).narrow(3, 0, 4)
    return net.b(x.index_select(2, torch.tensor([0, 5, 1])))


def _keywords(net: Net, x: Tensor) -> Tensor:
    x = torch.div(input=net.in_place(input=net.b(x)), other=2)
    pooled = F.adaptive_avg_pool2d(input=x, output_size=1)
    flat = torch.flatten(input=pooled, start_dim=1) + torch.reshape(pooled, (x.shape[0], 8))
    return net.head(flat + torch.reshape(pooled, (x.size(0), -1)) * torch.mean(input=x, dim=(2, 3)))


def _two_sizes(net: Net, x: Tensor) -> Tensor:
    return torch.cat([net.b(level).flatten(2).mean(2) for level in (x, F.max_pool2d(x, 2))], 1)


IDIOM_SHAPE = (3, 8, 6)
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
    "linear layer of maps": _linear_of_maps,
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
    "layer with a forward method": lambda net, x: net.activated(net.padded(net.activated(net.b(x)))),
    "train mode": lambda net, x: net.b(0.9 * F.relu(x) + 0.1 if net.training else x),
    "eval mode": lambda net, x: x if net.training else x.softmax(1),
    "isinstance": _checked,
    "slopes": lambda net, x: net.b(F.prelu(x, net.slopes)),
    "view of slopes": lambda net, x: x + net.b(x) * net.slopes.view(1, -1, 1, 1),
    "channel attention": _channel_attention,
    "transposed convolution": lambda net, x: net.b(net.up(x)),
    "where": _leaky,
    "zeros": _zeros,
    "zeros of a size": _made_zeros,
    "tensors made in forward": _made_constants,
    "tensor as attribute": lambda net, x: net.b(x - net.plain_shift),
    "view of a buffer": lambda net, x: net.b(x - net.get_buffer("shift").view(1, -1, 1, 1)),
    "Normalize of torchvision": lambda net, x: net.b(net.normalize(x)),
    "no gradient": _no_gradient,
    "index": lambda net, x: net.b(x[:, torch.arange(7, -1, -1)]),
    "dropout function": lambda net, x: F.dropout(net.b(x), 0.0, training=net.training),
    "convolution head": lambda net, x: net.b(x).mean((2, 3)),
    "two heads": lambda net, x: torch.cat([net.head(x.mean((-2, -1))), net.b(x).amax((2, 3))], 1),
    "ReLU module twice": lambda net, x: net.in_place(net.b(net.in_place(x))),
    "convolution twice": lambda net, x: net.b(F.relu(net.b(x))),
    "convolution of two inputs": lambda net, x: net.b(x) + net.b(F.relu(net.c(x))),
    "convolution at two sizes": _sizes,
    "batch norm twice": _batch_norm_twice,
    "PReLU twice": lambda net, x: net.prelu(net.b(net.prelu(x))),
    "grouped twice": lambda net, x: net.b(net.grouped(F.relu(net.grouped(x)))),
    "linear layer twice": lambda net, x: net.head(F.relu(net.tokens(F.relu(net.tokens(x.mean((2, 3))))))),
    "head at two sizes": _two_sizes,
    "flat view": lambda net, x: net.head(F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)),
    "flat method": lambda net, x: net.head(F.adaptive_avg_pool2d(x, 1).flatten(1)),
    "swish": _swish,
    "hard swish": _hard_swish,
    "range without zero": lambda net, x: net.b(F.hardtanh(x, 0.5, 2)),
    "moved positions": _moved_positions,
    "positions in parts": lambda net, x: net.b(sum(x.chunk(2, 3))),
    "largest positions, channels last": lambda net, x: net.b(x.permute(0, 2, 3, 1).topk(2, 2)[0].permute(0, 3, 1, 2)),
    "largest positions": lambda net, x: net.b(x.topk(2, 3)[0]),
    "roll of channels and positions": lambda net, x: net.b(torch.roll(x, (8, 1), (1, 3))),
    "keywords": _keywords,
    "log softmax": lambda net, x: F.log_softmax(net.b(x).mean((2, 3)), 1),
}
