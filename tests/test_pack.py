"""The key test of the project: the packed network computes what the masked one does, evaluated and trained."""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from families import draw_weights, masked, random_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from suite import data
from suite.contract import ConvPlan, PruningPlan
from suite.graph import Graph
from suite.measure.counting import count_macs, count_params
from suite.models import build
from suite.pack import PackedNetwork, header, load, load_full, masks, pack, per_group, save, unpack
from suite.pack.modules import PackedConv
from suite.schedule import Schedule
from suite.trainer import Trainer

SMALL = ("resnet8", "resnet8_a", "vgg6")
LARGE = ("resnet20_a", "resnet18", "resnet50", "vgg16_bn")


@functools.cache
def prepared(name: str) -> tuple[nn.Module, Graph]:
    """A network in float64 with random weights and batch-norm statistics. Tests work on copies of it."""
    with torch.device("meta"):
        model = build(name, 10)
        if name == "vgg16_bn":  # its own classifier has a gigabyte of weights
            model.classifier = nn.Sequential(nn.Linear(25_088, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 10))
    draw_weights(model.to_empty(device="cpu"))
    return model, Graph(model, (3, 32, 32))


@functools.cache
def images(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()


def without(graph: Graph, *endings: str) -> PruningPlan:
    """All filters of the layers whose names end so are removed."""
    return PruningPlan(
        {
            name: ConvPlan.from_mask(torch.zeros(conv.filters, conv.channels))
            for name, conv in graph.convs.items()
            if name.endswith(endings)
        }
    )


@torch.no_grad()
def assert_equal(got: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert got.dtype == torch.float64
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


@torch.no_grad()
def check(name: str, plan: PruningPlan) -> PackedNetwork:
    """All that holds for any plan on any network."""
    model, graph = prepared(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()} if name in SMALL else {}
    packed, reference, x = pack(model, graph, plan), masked(model, graph, plan), images(2)
    assert packed.plan == graph.settle(plan)
    assert not packed.training
    expected = reference(x)
    assert_equal(packed(x), expected)
    folded, plain = per_group(packed), per_group(packed, fold=False)
    assert_equal(folded(x), expected)
    assert_equal(plain(x), expected)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())

    full = copy.deepcopy(model)
    unpack(packed, full)
    assert_equal(full(x), expected)
    here = masks(packed, model)
    for key, parameter in full.named_parameters():
        assert torch.equal(here[key], parameter != 0), key
        layer = key.removesuffix(".weight").removesuffix(".bias")
        if not isinstance(model.get_submodule(layer), nn.Linear):
            assert torch.equal(parameter, reference.get_parameter(key)), key

    assert count_params(packed) == sum(int(mask.sum()) for mask in here.values())
    assert count_macs(plain, graph.input_shape).macs == graph.macs(plan).total
    for key, tensor in before.items():
        assert torch.equal(model.state_dict()[key], tensor)

    packed.train()
    reference.train()
    outputs = []
    for network in (packed, reference):
        torch.manual_seed(0)  # for dropout
        outputs.append(network(images(4)))
    assert_equal(outputs[0], outputs[1], 1e-9)
    assert_equal(packed.eval()(x), reference.eval()(x), 1e-9)  # with the running statistics that this has moved
    assert not model.training
    return packed


random_plans = given(
    granularity=st.sampled_from(["filter", "channel", "intra_channel"]),
    groups=st.integers(1, 4),
    removed=st.sampled_from([0.2, 0.6, 0.85, 0.97]),
    seed=st.integers(0, 10_000),
)


@pytest.mark.parametrize("name", SMALL)
@random_plans
@settings(max_examples=12)
def test_packed_equals_masked(name: str, granularity: str, groups: int, removed: float, seed: int) -> None:
    check(name, random_plan(prepared(name)[1], granularity, groups, removed, seed))


@pytest.mark.parametrize("removed", [0.6, 0.95])
@pytest.mark.parametrize("name", LARGE)
def test_packed_equals_masked_in_large_networks(name: str, removed: float) -> None:
    check(name, random_plan(prepared(name)[1], "intra_channel", 3, removed, seed=int(100 * removed)))


@pytest.mark.parametrize(
    ("name", "granularity"),
    [("resnet20_a", "filter"), ("resnet18", "channel"), ("resnet50", "filter"), ("vgg16_bn", "channel")],
)
def test_packed_equals_masked_in_large_networks_without_groups(name: str, granularity: str) -> None:
    check(name, random_plan(prepared(name)[1], granularity, 1, 0.6, seed=3))


# ---- what vanishes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "endings"),
    [
        ("resnet8", ("stage_1.0.conv_b",)),
        ("resnet8", ("stage_2.0.conv_a",)),
        ("resnet8", ("stage_2.0.conv_b", "stage_3.0.conv_a")),
        ("resnet8_a", ("stage_1.0.conv_a", "stage_3.0.conv_b")),
        ("resnet20_a", ("1.conv_a", "2.conv_b")),
        ("resnet18", ("layer1.0.conv1", "layer2.1.conv2")),
        ("resnet50", ("layer1.1.conv2", "layer3.2.conv3")),
    ],
)
def test_entire_residual_branches_vanish(name: str, endings: tuple[str, ...]) -> None:
    plan = without(prepared(name)[1], *endings)
    packed = check(name, plan)
    modules = dict(packed.body.named_modules())
    assert all(layer not in modules for layer in plan)
    assert len(list(packed.convs())) < len(prepared(name)[1].convs) - len(plan)


@pytest.mark.parametrize("name", ["resnet8", "resnet8_a", "resnet18"])
def test_the_trunk_of_a_residual_network_vanishes(name: str) -> None:
    """With the stem gone all is gone; with the shortcuts gone the branches are what is left."""
    graph = prepared(name)[1]
    check(name, without(graph, "downsample.0"))
    packed = check(name, without(graph, next(iter(graph.convs))))
    assert list(packed.convs()) == []


@pytest.mark.parametrize("name", [*SMALL, "vgg16_bn"])
def test_a_network_without_any_filter_is_its_bias(name: str) -> None:
    model, graph = prepared(name)
    packed = check(name, without(graph, ""))
    assert list(packed.convs()) == []
    if name in SMALL:
        bias = model.get_parameter("classifier.bias")
        assert torch.equal(packed(images(2)), bias.expand(2, -1))
        assert count_macs(packed, graph.input_shape).macs == 0


@pytest.mark.parametrize("name", SMALL)
def test_a_single_channel_is_left_of_everything(name: str) -> None:
    graph = prepared(name)[1]
    one = {layer: torch.zeros(conv.filters, conv.channels) for layer, conv in graph.convs.items()}
    for mask_OI in one.values():
        mask_OI[0, 0] = 1
    packed = check(name, PruningPlan({layer: ConvPlan.from_mask(mask_OI) for layer, mask_OI in one.items()}))
    assert all(conv.union_take.length == 1 and sum(conv.filters_G) == 1 for conv in packed.convs())


@pytest.mark.parametrize("name", SMALL)
def test_groups_that_read_disjoint_channels(name: str) -> None:
    graph = prepared(name)[1]
    layers = {}
    for layer, conv in graph.convs.items():
        groups = min(4, conv.channels)
        filters, channels = torch.arange(conv.filters) % groups, torch.arange(conv.channels) % groups
        layers[layer] = ConvPlan.from_mask(filters[:, None] == channels)
    packed = check(name, PruningPlan(layers))
    assert max(len(conv.weights) for conv in packed.convs()) == 4
    macs = [count_macs(network, graph.input_shape).macs for network in (per_group(packed), packed)]
    assert macs[1] == graph.dense_macs.total > 3 * macs[0]  # the union of the groups is the whole layer


@pytest.mark.parametrize("name", SMALL)
def test_an_empty_plan_is_the_dense_network(name: str) -> None:
    model, graph = prepared(name)
    packed = check(name, PruningPlan({}))
    assert packed.plan == PruningPlan({})
    assert count_params(packed) == count_params(model)
    assert count_macs(packed, graph.input_shape).macs == count_macs(model, graph.input_shape).macs


class ReadAgain(nn.Module):
    """A sum whose branch is gone: the stem's output is read again after the ReLU."""

    def __init__(self, relu: nn.Module) -> None:
        super().__init__()
        self.stem, self.branch, self.relu = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), relu
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        z = self.relu(y + self.branch(y))
        return self.head(torch.flatten(self.pool(z + y), 1))


@pytest.mark.parametrize("relu", [nn.ReLU, nn.ReLU6])
@torch.no_grad()
def test_nothing_is_changed_in_place(relu: type[nn.ReLU] | type[nn.ReLU6]) -> None:
    model = ReadAgain(relu(inplace=True)).double().eval()
    graph = Graph(model, (3, 32, 32))
    plan = without(graph, "branch")
    assert_equal(pack(model, graph, plan)(images(2)), masked(model, graph, plan)(images(2)))


def test_packing_shares_nothing_with_the_network() -> None:
    model, graph = prepared("vgg16_bn")
    packed = pack(model, graph, PruningPlan({}))
    packed.train()
    assert not any(module.training for module in model.modules())
    own = {tensor.data_ptr() for tensor in packed.state_dict().values()}
    assert not own & {tensor.data_ptr() for tensor in model.state_dict().values() if tensor.numel()}


def test_a_plan_that_does_not_fit_is_refused() -> None:
    model, graph = prepared("resnet8")
    with pytest.raises(ValueError, match=r"stage_1\.0\.conv_a is for \(4, 16\)"):
        pack(model, graph, PruningPlan({"stage_1.0.conv_a": ConvPlan.full(4, 16)}))


def test_the_inference_form_shares_nothing_with_the_packed_network() -> None:
    model, graph = prepared("resnet8")
    packed = pack(model, graph, random_plan(graph, "intra_channel", 2, 0.5, 0)).train()
    before = {key: tensor.clone() for key, tensor in packed.state_dict().items()}
    folded = per_group(packed)
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert all(parameter.requires_grad for parameter in packed.parameters())
    assert packed.training
    assert not folded.training
    for parameter in folded.parameters():
        parameter.zero_()
    assert all(torch.equal(tensor, before[key]) for key, tensor in packed.state_dict().items())


@torch.no_grad()
def test_load_full_takes_other_weights() -> None:
    model, graph = prepared("resnet8")
    plan = random_plan(graph, "intra_channel", 2, 0.5, 0)
    packed = pack(model, graph, plan)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.mul_(1.1)
    load_full(packed, other.state_dict())
    assert_equal(packed(images(2)), masked(other, graph, plan)(images(2)))


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_masked_and_packed_training_are_equal(name: str) -> None:
    model, graph = copy.deepcopy(prepared(name)[0]), prepared(name)[1]
    packed = pack(model, graph, random_plan(graph, "intra_channel", 3, 0.5, seed=5))
    unpack(packed, model)
    keep = masks(packed, model)

    @torch.no_grad()
    def mask_again() -> None:
        for key, parameter in model.named_parameters():
            parameter.mul_(keep[key])

    batches = data.load("digits").train("all", batch=16, seed=0, device="cpu", limit=64)
    schedule = Schedule(epochs=1, lr=0.05, momentum=0.9, weight_decay=1e-2)
    start = model.get_parameter("classifier.weight").detach().clone()
    for trainer in (Trainer(packed, batches, schedule), Trainer(model, batches, schedule, after_step=mask_again)):
        trainer.model.train()
        for x, labels in batches.epoch(0):
            trainer.advance(x.double(), labels)
    trained = copy.deepcopy(model)
    unpack(packed, trained)
    for key, parameter in model.named_parameters():
        assert_equal(trained.get_parameter(key), parameter, 1e-9)
    assert float((model.get_parameter("classifier.weight").detach() - start).abs().max()) > 1e-3
    assert_equal(packed.eval()(images(2)), model.eval()(images(2)), 1e-9)


# ---- one file --------------------------------------------------------------------------------------------------------


def saved(name: str, path: Path) -> PackedNetwork:
    model, graph = prepared(name)
    packed = pack(model, graph, random_plan(graph, "intra_channel", 3, 0.6, seed=1))
    save(packed, path, model=name, classes=10, input_shape=(3, 32, 32), about={"label": "a run"})
    return packed


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_a_packed_network_survives_its_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "packed.safetensors"
    packed = saved(name, path)
    again = load(path)
    assert isinstance(again, nn.Module)
    assert not again.training
    assert again.plan == packed.plan
    assert torch.equal(again(images(2)), packed(images(2)))
    assert torch.equal(per_group(again)(images(2)), per_group(packed)(images(2)))
    save(packed, str(path), model=name, classes=10, input_shape=(3, 32, 32), about={"label": "a run"})
    assert torch.equal(load(str(path))(images(2)), load(path)(images(2)))
    assert header(path) == {"model": name, "classes": 10, "input_shape": [3, 32, 32], "label": "a run"}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@torch.no_grad()
def test_a_network_of_which_nothing_is_left_survives_its_file(tmp_path: Path) -> None:
    model, graph = prepared("resnet8")
    packed = pack(model, graph, without(graph, ""))
    save(packed, tmp_path / "packed", model="resnet8", classes=10, input_shape=(3, 32, 32), about={})
    assert torch.equal(load(tmp_path / "packed")(images(2)), packed(images(2)))


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"model": "resnet20", "classes": 3}, "classes, model in the header of a packed network is its own"),
        ({"mean": 0.5}, "mean and std lists of numbers, .*mean"),
        ({"labels": {0: "a"}}, "labels a list of strings: .*labels"),
        ({"std": torch.ones(3)}, "the header of a packed network is JSON, .*Tensor"),
        ({"loss": float("nan")}, "the header of a packed network is JSON"),
    ],
)
def test_a_header_that_no_reader_takes_is_not_written(about: dict[str, Any], reason: str, tmp_path: Path) -> None:
    model = build("resnet8", 10)
    packed = pack(model, Graph(model, (3, 32, 32)), PruningPlan({}))
    with pytest.raises(ValueError, match=reason) as raised:
        save(packed, tmp_path / "packed", model="resnet8", classes=10, input_shape=(3, 32, 32), about=about)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "no.safetensors"))):
        load(tmp_path / "no.safetensors")
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))} is no regular file"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["text", "plain safetensors", "cut short", "nothing"])
def test_a_file_that_is_no_packed_network_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "packed.safetensors"
    if content == "plain safetensors":
        save_file({"weight": torch.zeros(2)}, path)
    elif content == "cut short":
        saved("vgg6", path)
        path.write_bytes(path.read_bytes()[:-8])
    else:
        path.write_bytes(b"some words" * (content == "text"))
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is no packed network of this suite"):
        load(path)


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    model, graph = prepared("vgg6")
    path = tmp_path / "packed.safetensors"
    save(pack(model, graph, PruningPlan({})), path, model="resnet8", classes=10, input_shape=(3, 32, 32), about={})
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} does not fit resnet8"):
        load(path)
    save(pack(model, graph, PruningPlan({})), path, model="vgg7", classes=10, input_shape=(3, 32, 32), about={})
    with pytest.raises(ValueError, match=r"unknown model 'vgg7' \(did you mean vgg6\?\)"):
        load(path)


@pytest.mark.parametrize("name", ["resnet20", "vgg6"])
@pytest.mark.parametrize("groups", [1, 3])
def test_training_with_channels_last_computes_the_same(name: str, groups: int) -> None:
    """Channels are then taken by 1x1 convolutions, or not at all, with weights of 0."""
    torch.manual_seed(0)
    model = build(name, 10).double().train()
    graph = Graph(model, (3, 32, 32))
    layers = {}
    for conv in (conv for conv in graph.convs.values() if conv.prunable):
        kept_GI = torch.rand(groups, conv.channels) < 0.4
        kept_GI[:, 0] = True
        layers[conv.name] = ConvPlan(torch.arange(conv.filters) % groups, kept_GI, torch.rand(conv.filters) < 0.8)
    plain = pack(model, graph, PruningPlan(layers)).train()
    other = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    for network, x in ((plain, images), (other, images.contiguous(memory_format=torch.channels_last))):
        network(x).square().sum().backward()
    gradients = dict(other.named_parameters())
    for parameter_name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[parameter_name].grad, parameter.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["resnet8", "vgg6"])
def test_training_by_groups_computes_the_same(name: str, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = build(name, 10).double().train()
    graph = Graph(model, (3, 32, 32))
    layers = {
        conv.name: ConvPlan(
            torch.arange(conv.filters) % 4,
            torch.rand(4, conv.channels) < 0.4,
            torch.ones(conv.filters, dtype=torch.bool),
        )
        for conv in graph.convs.values()
        if conv.prunable
    }
    plain = pack(model, graph, PruningPlan(layers)).train().to(memory_format=layout)
    other = copy.deepcopy(plain)
    other.split()
    split = {conv.weights[0].shape[2:] for conv in other.convs() if conv.splits}
    assert split == {(3, 3)}
    assert not all(conv.splits for conv in other.convs() if len(conv.weights) > 1), "narrow layers stay whole"
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64).contiguous(memory_format=layout)
    outputs = [network(images) for network in (plain, other)]
    assert_equal(outputs[1], outputs[0], 1e-9)
    for output in outputs:
        output.square().sum().backward()
    gradients = dict(other.named_parameters())
    for parameter_name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[parameter_name].grad, parameter.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("kernel", "stride", "filters", "reads", "splits"),
    [
        (3, 1, 12, 20, True),
        (3, 1, 11, 20, False),  # 99 products a value
        (1, 1, 100, 20, True),
        (3, 2, 44, 20, False),
        (3, 2, 45, 20, True),
        (3, 1, 64, 60, True),
        (3, 1, 64, 61, False),  # more than three quarters of the union
    ],
)
def test_a_layer_is_split_if_its_groups_save_products(
    kernel: int, stride: int, filters: int, reads: int, splits: bool
) -> None:
    reads_G = [torch.arange(reads), torch.arange(80 - reads, 80)]
    conv = PackedConv(nn.Conv2d(80, 2 * filters, kernel, stride), reads_G, [filters, filters], 80)
    conv.split()
    union = len(torch.cat(reads_G).unique())
    assert conv.splits == splits == (filters * kernel**2 >= 100 * stride**2 and reads <= 0.75 * union)
