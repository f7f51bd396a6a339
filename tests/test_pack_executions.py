"""Every execution computes what the packed network does, whatever the order of the channels; the choice is made by timing."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import random_plan
from test_pack import SMALL, images, prepared, without
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional

from suite.contract import ConvPlan, PruningPlan
from suite.graph import Graph
from suite.measure.memory import peak_bytes
from suite.pack import (
    Choice,
    PackedNetwork,
    executions,
    load_choices,
    operations,
    pack,
    per_group,
    save_choices,
    trial,
    tune,
    tuned,
    tuned_for,
)
from suite.pack import layer as layers
from suite.pack.choice import Layout
from suite.pack.executions import EXECUTIONS, offered
from suite.pack.layer import TILES, Layer, Operands
from suite.pack.modules import GroupedConv, PackedConv, Spread, SumInto, Take, is_channels_last
from suite.pack.operations import FusedConv, PerGroup, Read, Reorder, Whole
from suite.pack.slices import slice_rank

NETWORKS = (*SMALL, "resnet18", "resnet50", "vgg16_bn")
DTYPES = (torch.float64, torch.float32)
ON_CPU = [name for name in EXECUTIONS if name not in TILES]


def packed_of(
    name: str, groups: int = 3, removed: float = 0.5, seed: int = 1, plan: PruningPlan | None = None
) -> PackedNetwork:
    model, graph = prepared(name)
    return pack(model, graph, plan or random_plan(graph, "intra_channel", groups, removed, seed))


@torch.no_grad()
def assert_tuned(packed: PackedNetwork, dtype: torch.dtype, **how: object) -> tuple[nn.Module, Choice]:
    x = images(3).to(dtype)
    expected, before = packed(images(3)), x.clone()
    network, choice = tuned(packed, x, **how)  # type: ignore[arg-type]
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        for _ in range(2):  # what is summed in place must not be anything that lives on
            error = (network(given).double() - expected).abs().max()
            assert float(error) < (1e-9 if dtype == torch.float64 else 1e-3) * max(1.0, float(expected.abs().max()))
    assert torch.equal(x, before)
    return network, choice


@pytest.mark.parametrize("execution", ON_CPU)
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_execution_computes_the_same(
    name: str, execution: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executions, "WIDEST", 99)  # these networks have few channels to round
    for groups, removed in ((1, 0.3), (2, 0.5), (4, 0.6)):
        packed = packed_of(name, groups, removed)
        _, choice = assert_tuned(packed, dtype, execution=execution)
        if groups > 1:
            many = [conv for conv in packed.convs() if len(conv.weights) > 1]
            # Without a residual stream, groups together read every channel that lives.
            least = int(name != "vgg6") if execution == "union" else len(many)
            assert list(choice.layers.values()).count(execution) >= least


@pytest.mark.parametrize("name", NETWORKS[3:])
@pytest.mark.parametrize("execution", ["groups", "padded", "rounded"])
def test_executions_of_large_networks(name: str, execution: str) -> None:
    assert_tuned(packed_of(name, 2, 0.6), torch.float32, execution=execution)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_fastest_computes_the_same(name: str, dtype: torch.dtype) -> None:
    packed = packed_of(name)
    _, choice = assert_tuned(packed, dtype)
    for layer, milliseconds in choice.layer_ms.items():
        assert milliseconds[choice.layers[layer]] <= trial.GATHERS_X * min(milliseconds.values())
    assert choice.layout_ms[choice.layout] == min(choice.layout_ms.values())
    assert list(choice.layers) == [name for name, m in packed.body.named_modules() if name in choice.layers]
    again = assert_tuned(packed, dtype, choice=choice)[1]
    assert again == choice


@pytest.mark.parametrize(
    ("name", "endings"),
    [
        ("resnet8", ("stage_2.0.conv_b",)),
        ("resnet8_a", ("stage_1.0.conv_b", "stage_3.0.conv_a")),
        ("resnet8", ("downsample.0",)),
    ],
)
def test_where_branches_vanish(name: str, endings: tuple[str, ...]) -> None:
    for execution in (None, "padded"):
        assert_tuned(packed_of(name, plan=without(prepared(name)[1], *endings)), torch.float64, execution=execution)


def test_a_network_without_convolutions() -> None:
    network, choice = assert_tuned(packed_of("resnet8", plan=without(prepared("resnet8")[1], "")), torch.float64)
    assert choice.layers == {}
    assert network(images(3)).shape == (3, 10)


class Shared(nn.Module):
    """Sums that must not be in place: the addend is the branch's input and is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        z = torch.relu(self.a(y) + y)
        return self.head(torch.flatten(self.pool(torch.relu(z + self.b(y)) + y), 1))


@pytest.mark.parametrize("execution", ON_CPU)
def test_what_is_read_again_is_not_overwritten(execution: str) -> None:
    torch.manual_seed(0)
    model = Shared().double().eval()
    graph = Graph(model, (3, 32, 32))
    for plan in (PruningPlan({}), random_plan(graph, "intra_channel", 2, 0.4, 3)):
        assert_tuned(pack(model, graph, plan), torch.float32, execution=execution)


class ImageSum(nn.Module):
    """A residual sum with the images themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1), nn.Linear(3, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.b(self.a(x)) + x), 1))


def test_images_are_not_overwritten_in_the_layout_that_is_theirs_already() -> None:
    torch.manual_seed(0)
    model = ImageSum().double().eval()
    packed = pack(model, Graph(model, (3, 32, 32)), PruningPlan({}))
    _, choice = tuned(packed, images(3).float())
    for layout in ("contiguous", "channels_last"):
        assert_tuned(packed, torch.float32, choice=dataclasses.replace(choice, layout=layout))


class Normalised(nn.Module):
    """A batch norm that is not the only one to read its convolution, so that it cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 7, 3), nn.BatchNorm2d(7)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        return self.head(torch.flatten(self.pool(self.bn(y) + y), 1))


@pytest.mark.parametrize("execution", ON_CPU)
def test_a_batch_norm_that_stays_gets_its_channels_in_order(execution: str) -> None:
    torch.manual_seed(0)
    model = Normalised().double().eval()
    nn.init.uniform_(model.bn.bias)
    kept_GI = torch.arange(8)[None] % 2 == torch.arange(2)[:, None]
    plan = PruningPlan({"b": ConvPlan(torch.arange(7) // 4, kept_GI, torch.ones(7, dtype=torch.bool))})
    assert_tuned(pack(model, Graph(model, (3, 32, 32)), plan), torch.float32, execution=execution)


def test_sums_and_relus_are_part_of_the_convolution() -> None:
    network, _ = assert_tuned(packed_of("resnet8", 2, 0.4), torch.float32, execution="padded")
    assert isinstance(network, fx.GraphModule)
    names = [str(node.target) for node in network.graph.nodes if node.op == "call_function"]
    assert not [name for name in names if "add" in name or "relu" in name]
    assert not [module for module in network.modules() if isinstance(module, nn.ReLU)]


@pytest.mark.parametrize("execution", ["groups", "union"])
def test_a_sum_that_no_operand_covers_is_part_of_the_convolution(execution: str) -> None:
    """Without the last filters of the closing layer, which a shortcut of option A lacks, too."""
    model, graph = prepared("resnet8_a")
    for kept_O in (torch.arange(32) < 20, torch.arange(32) > 26):
        plan = PruningPlan({"stage_2.0.conv_b": ConvPlan.full(32, 32).having(kept_O=kept_O)})
        packed = pack(model, graph, plan)
        assert any(isinstance(module, Spread) for module in packed.modules())
        network, _ = assert_tuned(packed, torch.float32, execution=execution)
        assert not any(isinstance(module, Spread | SumInto) for module in network.modules())


def test_a_shortcut_takes_its_channels_in_any_order() -> None:
    network, _ = assert_tuned(packed_of("resnet8_a", plan=PruningPlan({})), torch.float32, execution="whole")
    assert isinstance(network, fx.GraphModule)
    assert [node.name for node in network.graph.nodes if "in_order" in node.name] == ["flatten_in_order_0"]


# ---- one layer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_channels_by_position(layout: torch.memory_format) -> None:
    x = images(2).repeat(1, 4, 1, 1).contiguous(memory_format=layout)
    for wanted in ([4, 1, 1, 7], [2, 3, 4], list(range(12)), [5]):
        got = Take(torch.tensor(wanted), 12)(x)
        assert torch.equal(got, x[:, wanted])
        assert not is_channels_last(x) or is_channels_last(got) or got.shape[1] == 1
    assert torch.equal(Take(torch.tensor([4, 1]), 12)(x[:, :, ::2, ::2]), x[:, [4, 1], ::2, ::2])


def test_channels_are_reordered_in_their_own_memory() -> None:
    x = torch.randn(3, 300, 40, 9).contiguous(memory_format=torch.channels_last)
    read = Read(torch.randperm(300), 300)
    expected, memory = read(x), x.data_ptr()
    assert torch.equal(Reorder(read, 2**16)(x), expected)
    assert torch.equal(x, expected)
    assert x.data_ptr() == memory


def test_a_sum_reorders_what_is_added_in_place() -> None:
    packed = packed_of("resnet50", 2, 0.4)
    network, _ = assert_tuned(packed, torch.float32, execution="padded")
    assert [module for module in network.modules() if isinstance(module, Reorder)]


def grouped_of(packed: PackedNetwork) -> GroupedConv:
    """The first convolution of several groups, its batch norm left out."""
    return next(GroupedConv(conv) for conv in packed.convs() if len(conv.weights) > 1)


def layer_of(packed: PackedNetwork, x: Tensor) -> tuple[Layer, Operands]:
    conv = grouped_of(packed)
    width = sum(conv.filters_G)
    layer = Layer(
        name="it",
        conv=conv,
        reads_G=conv.reads_G,
        place_O=torch.arange(width),
        width=width,
        relu=False,
        rank=torch.zeros(width),
    )
    return layer, Operands(x=x, columns_C=torch.arange(x.shape[1]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SMALL)
def test_images_that_are_gathered_one_by_one(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(operations.PIECES, "any", 1)
    for execution in ("groups", "padded", "union"):
        assert_tuned(packed_of(name, 2, 0.5), dtype, execution=execution)


@torch.no_grad()
def test_gathering_does_not_take_the_memory_of_a_batch() -> None:
    packed = packed_of("vgg6", 3, 0.5)
    conv = grouped_of(packed)
    packed.float()
    width = int(torch.cat(conv.reads_G).max()) + 1
    x = torch.rand(64, width, 32, 32)
    layer, operands = layer_of(packed, x)
    module, columns_C = EXECUTIONS["padded"](layer, dataclasses.replace(operands, piece=2**13))
    assert isinstance(module, Whole)
    gathered, result = (len(x) * size * 32 * 32 * 4 for size in (module.read.take.length, len(columns_C)))
    assert result < peak_bytes(module, x) < result + gathered / 2


@torch.no_grad()
def test_no_execution_takes_more_memory_than_the_dense_network() -> None:
    x = images(64).float()
    dense, _ = tuned(packed_of("resnet8", 1, 0.0), x, execution="whole", layout="channels_last")
    packed, limit = packed_of("resnet8", 2, 0.6), peak_bytes(dense, x)
    for execution in ("whole", "union", "groups", "padded"):
        network, _ = tuned(packed, x, execution=execution, layout="channels_last", memory="least")
        assert {module.piece for module in network.modules() if hasattr(module, "piece")} == {2**16}
        assert peak_bytes(network, x) <= limit


def test_padding_makes_groups_equal() -> None:
    packed = packed_of("vgg6", 3, 0.5)
    conv = grouped_of(packed)
    width = int(torch.cat(conv.reads_G).max()) + 1
    layer, operands = layer_of(packed, torch.zeros(1, width, 8, 8).double())
    for name, multiple, multiple_read in (("padded", 1, 1), ("rounded", 16, 1), ("blocked", 16, 16)):
        module, columns_C = EXECUTIONS[name](layer, operands)
        assert isinstance(module, Whole)
        assert isinstance(module.conv, FusedConv)
        filters, channels = module.conv.weight.shape[:2]
        assert filters == len(columns_C) == -(-max(conv.filters_G) // multiple) * multiple * len(conv.weights)
        assert channels == -(-max(map(len, conv.reads_G)) // multiple_read) * multiple_read
        assert sorted(columns_C[columns_C >= 0].tolist()) == list(range(layer.width))
    assert isinstance(EXECUTIONS["groups"](layer, operands)[0], PerGroup)


@torch.no_grad()
def test_what_reads_by_position_lies_where_its_input_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors that pretend to lie on a GPU, which refuse an index on the CPU."""
    cuda = FakeTensorMode(allow_non_fake_inputs=True)

    def pretending(to: Callable[..., Any]) -> Callable[..., Any]:
        def placed(what: nn.Module | Tensor, *where: object, **layout: object) -> nn.Module | Tensor:
            with cuda:
                return to(what, *where, **layout)

        return placed

    packed = packed_of("vgg6", 3, 0.5)
    for kind in (nn.Module, Tensor):
        monkeypatch.setattr(kind, "to", pretending(kind.to))
    monkeypatch.setattr("suite.pack.executions.working_triton", lambda: None)
    monkeypatch.setattr(trial, "check", lambda name, got, expected: compared.append((got, expected)))
    monkeypatch.setattr(trial, "fastest_ms", lambda runs, device: dict.fromkeys(runs, 1.0))
    compared: list[tuple[Tensor, Tensor]] = []
    conv = grouped_of(packed)
    width = int(torch.cat(conv.reads_G).max()) + 1
    with cuda:
        x, other = (torch.empty(2, size, 8, 8, device="cuda").double() for size in (width, sum(conv.filters_G)))
    shuffled = torch.randperm(other.shape[1])
    layer, alone = layer_of(packed, x)
    summed = dataclasses.replace(alone, addend=other, addend_columns_C=shuffled)
    conv.to(x.device)
    for operands in (alone, summed):
        trial.choose(offered(layer, operands), layer, operands)
    assert len(compared) == 2 * 4
    assert all(got.is_cuda and got.shape == expected.shape for got, expected in compared)
    walk: Any = SimpleNamespace(_emit=lambda _, module, value: (None, module(value.tensor)))
    value: Any = SimpleNamespace(columns_C=shuffled, tensor=other, node=None)
    assert tune.Walk._in_order(walk, fx.Graph().placeholder("x"), 0, value).tensor.shape == other.shape


def test_rounding_is_offered_where_it_widens_little() -> None:
    x = torch.zeros(1, 64, 4, 4)
    for filters_G, wide in (([4, 4, 4, 4], False), ([30, 30], True), ([30, 17], False)):
        conv = GroupedConv(PackedConv(nn.Conv2d(64, 64, 1), [torch.arange(64) for _ in filters_G], filters_G, 64))
        places = torch.arange(sum(filters_G))
        layer = Layer(
            name="it", conv=conv, reads_G=conv.reads_G, place_O=places, width=len(places), relu=True, rank=places
        )
        assert ("rounded" in offered(layer, Operands(x=x, columns_C=torch.arange(64)))) == wide


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("name", ["resnet8", "resnet8_a", "vgg6"])
@torch.no_grad()
def test_padding_changes_nothing(name: str, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill outputs up to whole vectors, as on a GPU, in every execution and in sums."""
    draw = random.Random(groups)
    packed, filled = packed_of(name, groups, 0.5), []

    def padded(rows: Tensor, x: Tensor) -> Tensor:
        filled.append(-len(rows) % 8)
        return functional.pad(rows, (0, -len(rows) % 8), value=-1)

    for module in (executions, layers):
        monkeypatch.setattr(module, "vectors", padded)
    monkeypatch.setattr(trial, "fastest_ms", lambda runs, device: {key: draw.random() for key in runs})
    for _ in range(3):
        network, _ = tuned(packed, images(2))
        torch.testing.assert_close(network(images(2)), packed(images(2)))
    assert any(filled)


def test_a_gather_must_gain_more_than_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = packed_of("resnet8", 2, 0.5)
    for gain, gathers in ((1.03, False), (1.2, True)):
        monkeypatch.setattr(
            trial,
            "fastest_ms",
            lambda runs, device, gain=gain: {key: 1.0 if key == "padded" else gain for key in runs},
        )
        choice = tuned(packed, images(2))[1]
        assert ("padded" in choice.layers.values()) == gathers


def test_two_groups_always_read_slices() -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        reads_G = [torch.randperm(12, generator=generator)[:6].sort().values for _ in range(2)]
        order = slice_rank(reads_G, 12).argsort(stable=True)
        for reads in reads_G:
            assert int(torch.isin(order, reads).int().diff().eq(1).sum()) + int(torch.isin(order[:1], reads)) == 1


def test_more_groups_read_slices_where_they_can() -> None:
    apart = [torch.arange(g, 12, 4) for g in range(4)]
    order = slice_rank(apart, 12).argsort(stable=True)
    assert all(int(torch.isin(order, reads).int().diff().abs().sum()) <= 2 for reads in apart)
    mixed = [torch.tensor([0, 1, 2, 3]), torch.tensor([2, 3, 4, 5]), torch.tensor([0, 2, 4, 6])]
    order = slice_rank(mixed, 8).argsort(stable=True)
    slices = [int(torch.isin(order, reads).int().diff().abs().sum()) <= 2 for reads in mixed]
    assert sum(slices) == 2


def test_groups_read_slices_of_what_a_dense_layer_puts_out() -> None:
    """In a VGG the stem is dense, and the next layer's two groups alone read it."""
    network, _ = tuned(packed_of("vgg6", 2, 0.4, seed=4), images(2), execution="groups")
    grouped = [module for module in network.modules() if isinstance(module, PerGroup)]
    assert grouped
    assert all(read.take.contiguous for read in grouped[0].reads)


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_an_output_that_disagrees_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = packed_of("resnet8", 2, 0.5)
    right = EXECUTIONS["padded"]

    def wrong(layer: Layer, operands: Operands) -> tuple[nn.Module, Tensor]:
        module, columns_C = right(layer, operands)
        assert isinstance(module, Whole)
        assert isinstance(module.conv, FusedConv)
        module.conv.bias += 0.5
        return module, columns_C

    monkeypatch.setitem(EXECUTIONS, "padded", wrong)
    with pytest.raises(
        ValueError, match=r"^stage_\d\.\d\.conv_. as 'padded' disagrees .* largest error 0\.5, allowed \d"
    ):
        tuned(packed, images(2))
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"^the network disagrees .* largest error inf"):
        trial.check("the network", torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="largest error nan"):
        trial.check("it", torch.tensor([float("nan")]), torch.zeros(1))


@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_is_not_taken_for_an_error(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    with FakeTensorMode():
        exact, half = (torch.empty(1, device="cuda", dtype=dtype) for dtype in (torch.float32, torch.float16))
    assert trial.tolerance(exact) == (1e-2 if allowed else 1e-4)
    assert trial.tolerance(half) == trial.TOLERANCE[torch.float16]
    assert trial.tolerance(torch.zeros(1)) == 1e-4


def test_small_outputs_are_compared_too() -> None:
    with pytest.raises(ValueError, match=r"largest error 0\.01, allowed 1e-06"):
        trial.check("it", torch.full((2,), 0.02), torch.full((2,), 0.01))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_computes_the_same_to_its_rounding(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SECONDS", 0)
    packed, x = packed_of("resnet8", 2, 0.5), images(2)
    network, choice = tuned(packed, x.to(dtype))
    error = (network(x.to(dtype)).double() - packed(x)).abs().max()
    assert float(error) < trial.TOLERANCE[dtype] * float(packed(x).abs().max())
    assert choice.precision in ("fp16", "bf16")


def test_choices_are_stored(tmp_path: Path) -> None:
    packed = packed_of("resnet8", 2, 0.5)
    choices = [tuned(packed, images(count))[1] for count in (1, 2)]
    path = tmp_path / "packed.choices.json"
    save_choices(path, choices)
    assert load_choices(path) == choices
    assert [choice.batch for choice in choices] == [1, 2]
    assert sum(choices[0].columns()["executions"].values()) == len(list(packed.convs()))


@pytest.mark.parametrize("content", [b"", b"{}", b'[{"device": "cpu"}]', b"\xff\xfe", b"[3]"])
def test_a_damaged_file_of_choices_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "choices.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} holds no executions"):
        load_choices(path)


def test_a_choice_that_does_not_fit_is_refused() -> None:
    packed, other = packed_of("resnet8", 2, 0.5), packed_of("vgg6", 2, 0.5)
    _, choice = tuned(packed, images(2))
    with pytest.raises(ValueError, match="the choice of executions is of another network"):
        tuned(other, images(2), choice=choice)
    with pytest.raises(
        ValueError, match=r"is for \('cpu', 'fp64', 2, 'torch'\), and the images are \('cpu', 'fp32', 2, 'torch'\)"
    ):
        tuned(packed, images(2).float(), choice=choice)
    layers = {**choice.layers, next(iter(choice.layers)): "magic"}
    with pytest.raises(ValueError, match="execution 'magic' of conv_1_3x3 is not one of whole, union, groups"):
        tuned(packed, images(2), choice=dataclasses.replace(choice, layers=layers))
    with pytest.raises(ValueError, match="execution 'magic' is not one of whole, union"):
        tuned(packed, images(2), execution="magic")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"layout": "nhwc"}, "layout = 'nhwc' is unknown; choose from: contiguous, channels_last, None"),
        ({"memory": "low"}, "memory = 'low' is unknown; choose from: any, least"),
    ],
)
def test_a_setting_that_is_unknown_is_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        tuned(packed_of("resnet8", 2, 0.5), images(2), **how)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
            "the images are torch.uint8; take torch.float64, torch.float32, ",
        ),
        (torch.zeros(2, 1, 32, 32), r"the images are [2, 1, 32, 32], and this network takes batches [N, 3, H, W]"),
        (torch.zeros(3, 32, 32), r"the images are [3, 32, 32], and"),
        (torch.zeros(0, 3, 32, 32), r"the images are [0, 3, 32, 32], and"),
    ],
)
def test_images_that_do_not_fit_are_refused(x: Tensor, message: str) -> None:
    packed = packed_of("resnet8", 2, 0.5)
    with pytest.raises(ValueError, match=re.escape(message)):
        tuned(packed, x)
    with pytest.raises(ValueError, match=re.escape(message)):
        tuned_for(packed, x, "torch")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_one_execution_in_one_layout_times_nothing(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "least_ms", None)
    packed = packed_of("resnet8", 2, 0.5)
    for execution in ("groups", "union", "whole"):
        _, choice = assert_tuned(packed, torch.float32, execution=execution, layout=layout)
        assert (choice.layout, choice.layer_ms, choice.layout_ms) == (layout, {}, {})
        assert execution in choice.layers.values()
        assert assert_tuned(packed, torch.float32, choice=choice)[1] == choice


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_no_module_of_a_tuned_network_is_in_training_mode(layout: Layout) -> None:
    """In training a gather is a convolution, which takes many times as long."""
    network, _ = tuned(packed_of("resnet8", 2, 0.5), images(2).float(), execution="padded", layout=layout)
    modules = [
        (name, module) for name, module in network.named_modules() if not isinstance(module, torch.jit.ScriptModule)
    ]
    assert any(isinstance(module, Take) for _, module in modules)
    assert [name for name, module in modules if module.training] == []


class _Cast(nn.Module):
    """A network with a cast to fp32, which cannot run in fp64."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu().float()).mean((2, 3))


def test_a_network_with_a_cast_is_tuned() -> None:
    model, x = _Cast().eval(), torch.randn(2, 3, 8, 8)
    packed = pack(model, Graph(model, (3, 8, 8)), PruningPlan({})).eval()
    network, choice = tuned(packed, x)
    assert list(choice.layout_ms) == ["contiguous", "channels_last"]
    torch.testing.assert_close(network(x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no form of this network for torch can be built"):
        tuned_for(packed, x, "torch")


def test_the_packed_network_is_not_changed() -> None:
    packed = packed_of("resnet8", 2, 0.5)
    before = {key: tensor.clone() for key, tensor in packed.state_dict().items()}
    tuned(packed, images(2).float())
    assert all(torch.equal(tensor, before[key]) for key, tensor in packed.state_dict().items())
    assert torch.equal(per_group(packed)(images(2)), per_group(packed)(images(2)))
