"""`python -m suite.measure` and `suite.export`: networks from anywhere, counted right; bad input in one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny_grid import call
from torch import Tensor, nn

from suite import pack as packing
from suite.contract import ConvPlan, PruningPlan
from suite.graph import Graph
from suite.measure import Timing, comparison, latency, networks, products
from suite.measure import __main__ as command
from suite.measure.counting import count_macs
from suite.measure.protocol import protocol
from suite.models import build
from suite.pack import export

SHAPE = (3, 8, 8)
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*is deprecated")


class Gathered(nn.Module):
    """A network as other people pack it: small convolutions on gathered channels, put together by index_add."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Conv2d(4, 3, 3, padding=1, stride=2)
        self.second = nn.Conv2d(5, 5, 3, padding=1, stride=2, bias=False)
        self.register_buffer("a", torch.tensor([0, 2, 4, 6]))
        self.register_buffer("b", torch.tensor([1, 2, 3, 5, 7]))
        self.register_buffer("order", torch.tensor([1, 3, 5, 7, 0, 2, 4, 6]))
        self.a: Tensor
        self.b: Tensor
        self.order: Tensor
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.cat([self.first(x.index_select(1, self.a)), self.second(x[:, self.b])], 1)
        total = torch.zeros_like(y).index_add_(1, self.order, y)
        return self.fc(total.mean((2, 3)))


MACS = 64 * 8 * 27 + 16 * 9 * (3 * 4 + 5 * 5) + 80
PARAMS = (8 * 27 + 8) + (3 * 4 * 9 + 3) + 5 * 5 * 9 + 90


def archive(folder: Path, how: str) -> Path:
    path, network = folder / f"{how}.any", Gathered().eval()
    if how == "exported":
        with path.open("wb") as file:
            torch.export.save(torch.export.export(network, (torch.zeros(2, *SHAPE),)), file)
        return path
    traced = torch.jit.script(network) if how == "scripted" else torch.jit.trace(network, torch.zeros(2, *SHAPE))
    torch.jit.save(torch.jit.freeze(traced) if how == "frozen" else traced, str(path))
    return path


@pytest.mark.parametrize("how", ["traced", "scripted", "frozen", "exported"])
def test_archives_of_others_are_counted_right(how: str, tmp_path: Path) -> None:
    network = networks.load(str(archive(tmp_path, how)))
    assert network.kind == ("exported" if how == "exported" else "torchscript")
    assert networks.check_fits(network, SHAPE) == 10
    assert network.macs(SHAPE) == MACS
    assert network.params == PARAMS
    assert (network.batch, network.input_shape) == ((2, SHAPE) if how == "exported" else (None, None))


class TwoNames(nn.Module):
    """A convolution with a second name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, 3, 1), nn.Linear(3, 10)
        self.again = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.again(self.a(x)).mean((2, 3)))


def test_a_weight_of_two_names_counts_once(tmp_path: Path) -> None:
    network, image = TwoNames().eval(), torch.zeros(1, *SHAPE)
    torch.export.save(torch.export.export(network, (image,)), str(tmp_path / "x.pt2"))
    torch.jit.save(torch.jit.trace(network, image), str(tmp_path / "x.ts"))
    for name in ("x.pt2", "x.ts"):
        loaded = networks.load(str(tmp_path / name))
        assert (loaded.params, loaded.macs(SHAPE)) == (12 + 40, 2 * 64 * 9 + 30)


def onnx_network(how: str, path: Path) -> None:
    """Convolution, batch norm and linear layer, 277 parameters, as exporters and quantizers write them."""
    make, kinds = onnx.helper, onnx.TensorProto
    shapes = {"w": (8, 3, 3, 3), "g": (8,), "b": (8,), "mean": (8,), "var": (8,), "h": (5, 8), "hb": (5,)}
    weights = [onnx.numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in shapes.items()]
    nodes = [
        make.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        make.make_node("BatchNormalization", ["c", "g", "b", "mean", "var"], ["n"]),
        make.make_node("GlobalAveragePool", ["n"], ["p"]),
        make.make_node("Flatten", ["p"], ["f"]),
        make.make_node("Gemm", ["f", "h", "hb"], ["y"], transB=1),
    ]
    ends = [make.make_tensor_value_info(n, kinds.FLOAT, ["N", *s]) for n, s in (("x", (3, 8, 8)), ("y", (5,)))]
    inputs = ends[:1]
    if how == "constant nodes":
        nodes = [*(make.make_node("Constant", [], [tensor.name], value=tensor) for tensor in weights), *nodes]
        weights = []
    elif how == "weights among the inputs":
        inputs = [*(make.make_tensor_value_info(n, kinds.FLOAT, s) for n, s in shapes.items()), *inputs]
    elif how == "quantized":
        integers = onnx.numpy_helper.from_array(np.ones(shapes["w"], np.int8), "w8")
        scale = onnx.numpy_helper.from_array(np.full(8, 0.1, np.float32), "scale")
        zero = onnx.numpy_helper.from_array(np.zeros(8, np.int8), "zero")
        nodes = [make.make_node("DequantizeLinear", ["w8", "scale", "zero"], ["w"], axis=0), *nodes]
        weights = [integers, scale, zero, *weights[1:]]
    model = make.make_model(
        make.make_graph(nodes, "g", inputs, ends[1:], weights), opset_imports=[make.make_opsetid("", 17)]
    )
    model.ir_version = 8
    onnx.save(model, path)


@pytest.mark.parametrize("how", ["plain", "constant nodes", "weights among the inputs", "quantized"])
def test_onnx_networks_of_others_are_counted_right(how: str, tmp_path: Path) -> None:
    onnx_network(how, tmp_path / "x.onnx")
    network = networks.load(str(tmp_path / "x.onnx"))
    assert (network.params, network.macs(SHAPE)) == (8 * 27 + 16 + 45, 64 * 8 * 27 + 40)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, (1, 5), groups=2, padding=(0, 2), dilation=(1, 2)), (4, 9, 9)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 5)),
        (nn.Sequential(nn.Flatten(1), nn.Linear(12, 7), nn.Linear(7, 2, bias=False)), (3, 2, 2)),
    ],
)
def test_products_of_a_run_in_closed_form(layer: nn.Module, shape: tuple[int, ...]) -> None:
    wanted = {4: 6 * 2 * 5 * 9 * 5, 3: 12 * 7 + 7 * 2}.get(shape[0])
    if isinstance(layer, nn.ConvTranspose2d):
        wanted = 5 * 5 * 4 * 6 * 9
    assert products.macs_of_run(layer, torch.zeros(1, *shape)) == wanted


def test_counts_of_a_run_that_disagree_are_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(products._ARGUMENTS, "aten::addmm")
    with pytest.raises(ValueError, match="the two MAC counters disagree: torch 84, its profiler 0"):
        products.macs_of_run(nn.Linear(12, 7), torch.zeros(1, 12))


@pytest.mark.parametrize(
    ("kind", "left", "right", "turned", "macs"),
    [
        ("MatMul", [6, 8], [1, 3, 8, 8], {}, 3 * 6 * 8 * 8),
        ("MatMul", [2, 3, 6, 8], [8, 5], {}, 2 * 3 * 6 * 5 * 8),
        ("Gemm", [8, 6], [5, 8], {"transA": 1, "transB": 1}, 6 * 5 * 8),
    ],
)
def test_onnx_products_in_closed_form(
    kind: str, left: list[int], right: list[int], turned: dict[str, Any], macs: int, tmp_path: Path
) -> None:
    make, float32 = onnx.helper, onnx.TensorProto.FLOAT
    factor = make.make_tensor("w", float32, right, torch.rand(right).flatten().tolist())
    x, y = (make.make_tensor_value_info(name, float32, size) for name, size in (("x", left), ("y", None)))
    graph = make.make_graph([make.make_node(kind, ["x", "w"], ["y"], **turned)], "g", [x], [y], [factor])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "x.onnx")
    assert products.macs_of_onnx(tmp_path / "x.onnx", torch.rand(left)) == macs


def test_an_operator_whose_products_are_unknown_gives_no_count() -> None:
    weight, window = torch.rand(4, 3, 1, 1), ([0, 0], [1, 1], [1, 1], 1, "none", [None], "")
    with pytest.raises(ValueError, match="mkldnn::_convolution_pointwise has products that are not counted here"):
        products.macs_of_run(
            lambda x: torch.ops.mkldnn._convolution_pointwise(x, weight, None, *window), torch.zeros(1, 3, 4, 4)
        )


@pytest.mark.parametrize(("kind", "domain"), [("ConvTranspose", ""), ("Einsum", ""), ("FusedConv", "com.microsoft")])
def test_an_onnx_node_whose_products_are_unknown_gives_no_count(kind: str, domain: str, tmp_path: Path) -> None:
    make, float32 = onnx.helper, onnx.TensorProto.FLOAT
    node = make.make_node(kind, ["x", "x"], ["y"], name="it", domain=domain)
    ends = [make.make_tensor_value_info(name, float32, [1, 3, 4, 4]) for name in "xy"]
    onnx.save(make.make_model(make.make_graph([node], "g", ends[:1], ends[1:])), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match=f"{kind} 'it' may have products that are not counted here"):
        products.macs_of_onnx(tmp_path / "x.onnx", torch.zeros(1, 3, 4, 4))


# ---- export ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-8 for the digits, two groups in each convolution but the stem."""
    path = tmp_path_factory.mktemp("packed") / "packed.safetensors"
    torch.manual_seed(0)
    model = build("resnet8", 10).eval()
    graph, draw = Graph(model, SHAPE_DIGITS), torch.Generator().manual_seed(0)
    layers = {}
    for name, conv in graph.convs.items():
        if conv.role != "stem":
            kept_GI = torch.rand(2, conv.channels, generator=draw) < 0.5
            layers[name] = ConvPlan(torch.arange(conv.filters) % 2, kept_GI, torch.ones(conv.filters).bool())
    packed = packing.pack(model, graph, PruningPlan(layers))
    packing.save(packed, path, model="resnet8", classes=10, input_shape=SHAPE_DIGITS, about={})
    return path


SHAPE_DIGITS = (3, 32, 32)


@pytest.mark.parametrize("to", ["pt2", "torchscript", "onnx"])
def test_an_export_computes_the_same_and_counts_the_same(to: str, packed_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "network"
    assert call(export.main, packed_file, "--to", to, "--out", out) == 0
    network, packed = networks.load(str(out)), packing.load(packed_file)
    assert network.kind == {"pt2": "exported"}.get(to, to)
    images = torch.randn(5, *SHAPE_DIGITS)
    with torch.inference_mode():
        torch.testing.assert_close(network.module(images), packed(images), rtol=1e-4, atol=1e-4)
    assert network.batch is None
    assert network.macs(SHAPE_DIGITS) == count_macs(packing.per_group(packed), SHAPE_DIGITS).macs
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("to", export.WRITERS)
def test_an_export_takes_any_batch_where_maps_are_one_pixel(to: str, tmp_path: Path) -> None:
    """There every map counts as channels_last, and is gathered row by row."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 8), nn.Conv2d(8, 8, 1), nn.Flatten(1), nn.Linear(8, 2)).eval()
    kept_GI = torch.arange(8)[None] % 2 == torch.arange(2)[:, None]
    plan = PruningPlan({"1": ConvPlan(torch.arange(8) % 2, kept_GI, torch.ones(8, dtype=torch.bool))})
    packed = packing.pack(model, Graph(model, SHAPE), plan)
    assert export.export(packed, SHAPE, to, tmp_path / "network") < export.TOLERANCE


def test_an_export_that_fails_says_so_in_one_line(
    packed_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(network: nn.Module, images: Tensor, path: Path) -> export.Runner:
        raise RuntimeError("no such operator\nand much more")

    monkeypatch.setitem(export.WRITERS, "pt2", failing)
    assert call(export.main, packed_file, "--to", "pt2", "--out", tmp_path / "x.pt2") == 2
    assert (
        capsys.readouterr().err
        == "suite.export: --to pt2 cannot write this network (no such operator); try another format\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_disagrees_is_not_written(
    packed_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(network: nn.Module, images: Tensor, path: Path) -> export.Runner:
        path.write_bytes(b"something")
        return lambda images: 1.01 * network(images)

    monkeypatch.setitem(export.WRITERS, "pt2", wrong)
    assert call(export.main, packed_file, "--to", "pt2", "--out", tmp_path / "x.pt2") == 2
    error = capsys.readouterr().err
    assert "disagrees with the packed one: largest error 1.00e-02" in error
    assert list(tmp_path.iterdir()) == []


def test_shapes_in_an_onnx_file_are_counted(tmp_path: Path) -> None:
    """A convolution, Gemm with its factor turned, and MatMul, made by hand; the batch is fixed at 2."""
    make, float32 = onnx.helper, onnx.TensorProto.FLOAT
    sizes = {"w": [4, 3, 3, 3], "g": [7, 4], "m": [7, 5]}
    weights = [
        make.make_tensor(name, float32, dims, torch.rand(dims).flatten().tolist()) for name, dims in sizes.items()
    ]
    nodes = [
        make.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        make.make_node("GlobalAveragePool", ["c"], ["p"]),
        make.make_node("Flatten", ["p"], ["f"]),
        make.make_node("Gemm", ["f", "g"], ["h"], transB=1),
        make.make_node("MatMul", ["h", "m"], ["y"]),
    ]
    ends = [make.make_tensor_value_info(name, float32, dims) for name, dims in (("x", [2, 3, 8, 8]), ("y", [2, 5]))]
    model = make.make_model(
        make.make_graph(nodes, "g", ends[:1], ends[1:], weights), opset_imports=[make.make_opsetid("", 17)]
    )
    model.ir_version = 8
    onnx.save(model, tmp_path / "x.onnx")
    network = networks.load(str(tmp_path / "x.onnx"))
    assert (network.kind, network.batch, network.input_shape) == ("onnx", 2, (3, 8, 8))
    assert network.macs((3, 8, 8)) == 4 * 27 * 16 + 28 + 35
    assert network.params == 108 + 28 + 35
    assert networks.PaddedModule(network.module, 2)(torch.rand(1, 3, 8, 8)).shape == (1, 5)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_measures_a_packed_network(packed_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--batch", 1, 2, "--protocol", "quick", "--threads", 1, "--layers")
    assert call(command.main, packed_file, *arguments, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    packed = packing.load(packed_file)
    graph = Graph(build("resnet8", 10), SHAPE_DIGITS)
    assert found["macs"] == graph.macs(packed.plan).total
    assert found["dense_macs"] == graph.dense_macs.total
    assert found["prunable_macs"] == graph.macs(packed.plan).prunable
    assert [row["batch"] for row in found["latency"]] == [1, 2]
    for row in found["latency"]:
        assert row["speedup_low_x"] <= row["speedup_x"] <= row["speedup_high_x"]
        assert row["execution"] in row["executions_ms"]
        assert {line["layer"] for line in row["losses"]["layers"]} == {*graph.convs, "(all else)"}
        assert "of the MACs and" in row["losses"]["text"]
    assert sum(layer["macs"] for layer in found["layers"]) == found["macs"]
    assert found["provenance"]["threads"] == 1


def test_fresh_processes_run_what_the_first_one_chose(
    packed_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process instead: the second call takes the executions and the layers' choices of the first, and tunes nothing."""
    arguments: list[packing.Choice | None] = []
    tuned = packing.tuned

    def noted(*network: Any, choice: packing.Choice | None = None, **how: Any) -> tuple[nn.Module, packing.Choice]:
        if not how:
            arguments.append(choice)
        return tuned(*network, choice=choice, **how)

    def measured(dense: object, other: object, *_: object) -> latency.Measurement:
        blocks = np.ones(6)
        return latency.Measurement(dense_ms=blocks, packed_ms=blocks, ratio=(1, 1, 1), null=(1, 1, 1))

    monkeypatch.setattr("suite.pack.trial.SECONDS", 0)
    monkeypatch.setattr(packing, "tuned", noted)
    monkeypatch.setattr(latency, "alternate", measured)
    monkeypatch.setattr(
        comparison, "fastest", lambda runs, device: ("", {name: 1.0 - (name == "tuned") for name in runs})
    )
    monkeypatch.setattr(comparison, "in_fresh_process", lambda function, job, report: function(job))
    networks.save_dense("resnet8", 10, SHAPE_DIGITS, tmp_path / "dense")
    duration = dataclasses.replace(protocol(Timing(protocol="quick")), processes=2)
    result = comparison.compare(tmp_path / "dense", packed_file, Timing(batch=1), also=("plain",), duration=duration)
    first, second = result.legs["eager"]
    assert set(first.executions_ms[1]) == {"groups", "union", "tuned"}
    assert first.chosen == second.chosen == ("tuned", "tuned")
    assert second.executions_ms == ({}, {})
    assert arguments == [None, None, *result.choices, *result.choices]
    assert set(result.limits) == {"dense_peak_bytes", "packed_peak_bytes", "dense_bound_ms", "bound_ms"}


def measured(file: Path, scratch: Path, *options: str) -> dict[str, Any]:
    """The values of the command, measured in this process and without timing."""
    return command.measure(command.parser().parse_args([str(file), "--batch", *options]), scratch)


def test_a_name_of_the_suite_or_of_a_header_is_no_file(
    packed_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of these names may be programs, and are not confined."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(archive(tmp_path, "traced"), "mine")
    shutil.copy("mine", "resnet8")
    macs = Graph(build("resnet8", 10), SHAPE_DIGITS).dense_macs.total
    for options in ((), ("--dense", "resnet8")):
        arguments = command.parser().parse_args([str(packed_file), *options])
        assert command._programs(arguments) == []
        assert measured(packed_file, tmp_path, *options)["dense_macs"] == macs
        with pytest.raises(ValueError, match="unknown model 'mine'"):
            command._dense(arguments, "mine", networks.load(str(packed_file)), 10, SHAPE_DIGITS, tmp_path)


def test_layers_of_a_program_are_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_macs", lambda *_: 1 / 0)
    with pytest.raises(ValueError, match="only packed networks of this suite have a plan to read"):
        measured(archive(tmp_path, "traced"), tmp_path, "--layers", "--shape", "3", "8", "8")


def test_a_dense_network_of_nothing_has_no_share(tmp_path: Path) -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    path = tmp_path / "mean"
    torch.jit.save(torch.jit.trace(Mean(), torch.zeros(2, *SHAPE)), str(path))
    values = measured(path, tmp_path, "--shape", "3", "8", "8", "--dense", str(path))
    assert (values["dense_macs"], values["dense_params"]) == (0, 0)
    assert not {"macs_cut_pct", "params_cut_pct"} & values.keys()


@pytest.mark.parametrize("also", ["onnxruntime", pytest.param("compile", marks=pytest.mark.slow)])
def test_other_compilers_are_tried_on_request(also: str, packed_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if also == "compile" and shutil.which("g++") is None:
        pytest.skip("needs g++, with which torch.compile builds CPU code")
    options = ("--batch", 2, "--protocol", "quick", "--threads", 1, "--json", "--also", also)
    status = call(command.main, packed_file, *options)
    captured = capsys.readouterr()
    assert status == 0, captured.err
    (row,) = json.loads(captured.out)["latency"]
    assert also in row["executions_ms"]


def test_the_command_measures_accuracy_beside_a_named_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = archive(tmp_path, "scripted")
    arguments = ("--dataset", "digits", "--dense", "resnet8", "--batch", 4, "--protocol", "quick", "--threads", 1)
    status = call(command.main, path, *arguments, "--report-to", -1)
    captured = capsys.readouterr()
    assert status == 0, captured.err
    assert "of the test images" in captured.out
    assert "from the data set digits" in " ".join(captured.out.split())
    assert "Executions: torchscript beside dense groups" in captured.out


@pytest.mark.parametrize(
    ("options", "mean", "std", "source"),
    [
        ((), None, None, "the data set digits"),
        (("--normalize", "imagenet"), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "--normalize imagenet"),
        (("--normalize", "half"), (0.5,) * 3, (0.5,) * 3, "--normalize half"),
        (("--mean", 0.1, 0.2, 0.3, "--std", 0.4), (0.1, 0.2, 0.3), (0.4,) * 3, "--mean --std"),
    ],
)
def test_images_are_normalised_as_the_network_was_trained(
    options: tuple[object, ...],
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    source: str,
    packed_file: Path,
) -> None:
    arguments = command.parser().parse_args([str(packed_file), "--dataset", "digits", *map(str, options)])
    network = networks.load(str(packed_file))
    header = dict(network.header or {})
    header.pop("mean", None)
    dataset, origin = command._dataset(arguments, dataclasses.replace(network, header=header))
    assert dataset is not None
    assert origin == source
    assert (dataset.mean, dataset.std) == (mean or dataset.mean, std or dataset.std)
    header |= {"mean": [0.5, 0.5, 0.5], "std": [1.0, 1.0, 1.0]}
    dataset, origin = command._dataset(arguments, dataclasses.replace(network, header=header))
    assert dataset is not None
    assert (dataset.mean, origin) == (mean or (0.5,) * 3, source if options else "the network's file")


@pytest.mark.parametrize(
    ("name", "content", "arguments", "message"),
    [
        ("absent", None, (), "does not exist; give a packed, TorchScript, exported (.pt2) or ONNX file"),
        ("text", b"hello", (), "is no network that is understood (packed, TorchScript, exported program, ONNX)"),
        ("empty", b"", (), "is no network that is understood"),
        ("weights", "weights", (), "weights alone are no network"),
        ("script", "scripted", (), "holds no input shape: give --shape C H W or --dataset NAME"),
        ("script", "scripted", ("--shape", 2, 8, 8), "takes no images of [2, 8, 8]"),
        ("script", "scripted", ("--shape", 0, 8, 8), "--shape 0 8 8: each must be at least 1"),
        ("script", "scripted", ("--shape", 3, 8, 8, "--dense", "nonsense"), "unknown model 'nonsense'"),
        ("script", "scripted", ("--dataset", "nonsense"), "unknown data set 'nonsense'"),
        ("script", "scripted", ("--shape", 3, 8, 8, "--layers"), "only packed networks of this suite have a plan"),
        ("program", "exported", ("--shape", 3, 9, 9), "takes images of [3, 8, 8], not [3, 9, 9]"),
        ("program", "exported", ("--dense", "resnet8", "--batch", 3), "takes batches of 2 only: use --batch 2"),
        ("script", "scripted", ("--device", "cuda"), "no CUDA device that torch can use"),
        (
            "program",
            "exported",
            ("--dense", "resnet8", "--batch", 2, "--also", "tensorrt"),
            "tensorrt runs on cuda in fp32 and fp16 and bf16 only, and the timing is on cpu in fp32: change --device",
        ),
        ("script", "scripted", ("--mean", 0.5), "--mean and --std belong together"),
        ("script", "scripted", ("--normalize", "half"), "a normalisation is of the images of --dataset NAME"),
        ("script", "scripted", ("--dataset", "digits", "--mean", 0, 0, "--std", 1), "take 1 or 3 numbers"),
        ("script", "scripted", ("--threads", -1), "--threads -1: it takes 1 or more; leave it out"),
        ("script", "scripted", ("--threads", 0), "--threads 0: it takes 1 or more; leave it out"),
        ("script", "scripted", ("--dataset", "digits", "--shape", 3, 64, 64), "images of digits are [3, 32, 32]; drop"),
        ("absent", None, ("--batch", 1, 0), "--batch 0: it takes 1 or more; --batch alone times nothing"),
        ("absent", None, ("--timeout", "nan"), "--timeout nan: it takes a number above 0, at most 1e+06"),
        ("absent", None, ("--timeout", "inf"), "--timeout inf: it takes a number above 0"),
        ("absent", None, ("--max-minutes", -1), "--max-minutes -1: it takes a number above 0"),
    ],
)
def test_bad_input_gets_one_line(
    name: str,
    content: bytes | str | None,
    arguments: tuple[object, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "weights":
        torch.save(Gathered().state_dict(), path)
    elif content is not None:
        path = archive(tmp_path, content)
    assert call(command.main, path, *arguments, "--report-to", -1) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("suite.measure: ")
    assert error.count("\n") == 1
