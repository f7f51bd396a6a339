"""Networks tuned for a runtime: equal to the packed one, in the executions that were measured as fastest there."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_measure_any import call
from test_pack import SMALL, images
from test_pack_executions import ON_CPU, packed_of
from torch import Tensor, fx, nn

from suite import arithmetic
from suite.measure import int8, networks
from suite.measure.protocol import protocol
from suite.pack import executions as table
from suite.pack import (
    export,
    load_choices,
    onnx_writer,
    per_group,
    portable,
    runtimes,
    save,
    save_choices,
    trial,
    tuned_for,
)
from suite.pack.operations import FusedConv
from suite.pack.runtimes import compiled, compiled_onnx, to_onnx, why_not
from suite.plan import Runtime, Timing

onnx = pytest.importorskip("onnx", reason="ONNX is not installed")
COMPILED: tuple[Runtime, ...] = ("onnxruntime", "openvino")


@pytest.fixture
def runtime(request: pytest.FixtureRequest) -> Runtime:
    if reason := why_not(request.param, "cpu", "fp32"):
        pytest.skip(f"{request.param}: {reason}")
    return request.param


@pytest.fixture
def fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SECONDS", 0.01)


def error_of(network: Any, packed: Any, x: torch.Tensor) -> float:
    expected = per_group(packed).float()(x)
    return float((network(x) - expected).abs().max() / expected.abs().max())


def test_onnx_runtime_collects_and_warns_of_nothing(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    model, home = tmp_path / "model.onnx", tmp_path / "home"
    model.write_bytes(to_onnx(torch.nn.Conv2d(1, 1, 1), [torch.ones(1, 1, 2, 2)]))
    home.mkdir()
    code = "import sys, pathlib; from suite.pack import runtimes; runtimes.session(pathlib.Path(sys.argv[1]))"
    own = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    env = {**own, "HOME": str(home), "XDG_CACHE_HOME": str(home)}
    result = subprocess.run(
        [sys.executable, "-c", code, str(model)], env=env, capture_output=True, text=True, check=True
    )
    assert list(home.rglob("*")) == [], "an identifier of this device"
    assert result.stderr == ""


@pytest.mark.parametrize("execution", ON_CPU)
@pytest.mark.parametrize("name", SMALL)
def test_every_execution_in_plain_operators_computes_the_same(
    name: str, execution: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "WIDEST", 99)  # these networks have few channels to round
    for groups, removed in ((1, 0.3), (2, 0.5), (4, 0.6)):
        packed = packed_of(name, groups, removed)
        network, choice = tuned_for(packed, images(3).float(), "torch", execution=execution)
        assert error_of(network, packed, images(3).float()) < 1e-4
        if groups > 1 and execution != "union":  # every channel may be read by some group
            assert execution in choice.layers.values()


@pytest.mark.parametrize("execution", ON_CPU)
def test_padding_to_whole_blocks_computes_the_same(execution: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "BLOCKS", {"torch": 16})
    monkeypatch.setattr(arithmetic, "cpu_flags", lambda: {"avx512f"})
    monkeypatch.setattr(table, "WIDEST", 99)
    for name in SMALL:
        packed = packed_of(name, 2, 0.5)
        network, _ = tuned_for(packed, images(3).float(), "torch", execution=execution)
        assert error_of(network, packed, images(3).float()) < 1e-4
        convs = [module for module in network.modules() if isinstance(module, FusedConv)]
        if execution == "whole":
            assert all(conv.weight.shape[0] % 16 == 0 for conv in convs)
            assert all(conv.weight.shape[1] % 16 == 0 for conv in convs[1:])


@pytest.mark.parametrize("runtime", COMPILED, indirect=True)
def test_each_layer_has_the_execution_that_is_fastest_in_the_runtime(
    runtime: Runtime, fewer_rounds: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, x = packed_of("resnet8", 2, 0.5), images(2).float()
    _, choice = tuned_for(packed, x, runtime)
    assert (choice.runtime, choice.precision, choice.batch) == (runtime, "fp32", 2)
    assert choice.layer_ms
    assert {"fastest"} < set(choice.layout_ms)
    if min(choice.layout_ms, key=choice.layout_ms.__getitem__) == "fastest":
        for layer, milliseconds in choice.layer_ms.items():
            assert milliseconds[choice.layers[layer]] <= trial.GATHERS_X * min(milliseconds.values())
    real = trial.fastest_ms

    def prefers_padded(runs: Mapping[str, Any], device: torch.device) -> dict[str, float]:
        return {name: ms * (1e-6 if name in ("padded", "fastest") else 1) for name, ms in real(runs, device).items()}

    monkeypatch.setattr(trial, "fastest_ms", prefers_padded)
    network, choice = tuned_for(packed, x, runtime)
    padded = [layer for layer, milliseconds in choice.layer_ms.items() if "padded" in milliseconds]
    assert padded
    assert all(choice.layers[layer] == "padded" for layer in padded)
    monkeypatch.setattr(trial, "least_ms", None)
    again, same = tuned_for(packed, x, runtime, choice=choice)
    assert same == choice
    assert torch.equal(again(x), network(x))
    assert error_of(lambda x: compiled(network, [x], runtime, "fp32").run(), packed, x) < 1e-3


@pytest.mark.parametrize(("execution", "convolutions"), [("whole", 1), ("groups", 2), ("padded", 1)])
def test_an_export_holds_the_chosen_form(execution: str, convolutions: int, tmp_path: Path) -> None:
    packed = packed_of("resnet8", 2, 0.5)
    form, choice = tuned_for(packed, images(1).float(), "onnxruntime", execution=execution)
    assert export.export(packed, (3, 32, 32), "onnx", tmp_path / "network.onnx", form=form) < export.TOLERANCE
    model = onnx.load(tmp_path / "network.onnx")
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["Conv"] == sum(convolutions if name == execution else 1 for name in choice.layers.values())
    onnx.checker.check_model(model, full_check=True)
    (output,) = model.graph.output
    sizes = [size.dim_param or size.dim_value for size in output.type.tensor_type.shape.dim]
    assert (output.name, sizes) == ("logits", ["batch", 10])
    network = networks.load(str(tmp_path / "network.onnx"))
    assert (network.kind, network.batch, network.input_shape) == ("onnx", None, (3, 32, 32))
    assert networks.check_fits(network, (3, 32, 32)) == 10


@pytest.mark.parametrize("number", [1, 1.5])
def test_a_sum_with_a_number_is_left_to_the_exporter_of_torch(number: float) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + number

    with pytest.raises(onnx_writer.Unsupported):
        onnx_writer.write(fx.symbolic_trace(Shifted()), [torch.zeros(1, 3, 8, 8)])


def test_an_export_in_a_form_that_disagrees_is_not_written(tmp_path: Path) -> None:
    packed = packed_of("resnet8", 2, 0.5)
    form, _ = tuned_for(packed, images(1).float(), "onnxruntime", execution="whole")
    with torch.no_grad():
        next(module for name, module in form.named_modules() if name.endswith("convs.0")).bias += 1
    with pytest.raises(ValueError, match="the onnx network disagrees with the packed one"):
        export.export(packed, (3, 32, 32), "onnx", tmp_path / "network.onnx", form=form)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_the_fastest_form(
    tmp_path: Path, fewer_rounds: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path, packed = tmp_path / "packed.safetensors", packed_of("resnet8", 2, 0.5)
    save(packed, path, model="resnet8", classes=10, input_shape=(3, 32, 32), about={})
    assert call(export.main, path, "--to", "onnx", "--runtime", "onnxruntime", "--threads", "1") == 0
    printed = capsys.readouterr()
    assert "fastest in onnxruntime: " in printed.err
    assert "packed.onnx (largest error" in printed.out
    assert call(export.main, path, "--to", "onnx", "--runtime", "onnxruntime", "--threads", "0") == 2
    assert "--threads 0: it takes 1 or more" in capsys.readouterr().err
    assert call(export.main, path, "--to", "onnx", "--batch", "8") == 2
    assert "add --runtime" in capsys.readouterr().err
    assert call(export.main, path, "--to", "pt2", "--runtime", "onnxruntime") == 2
    assert "--runtime onnxruntime reads ONNX: add --to onnx" in capsys.readouterr().err
    assert call(export.main, path, "--to", "onnx", "--runtime", "onnxruntime", "--precision", "bf16") == 2
    assert "onnxruntime runs in fp32 only" in capsys.readouterr().err


@pytest.mark.parametrize("runtime", COMPILED, indirect=True)
def test_the_profiler_has_the_time_of_every_layer(runtime: Runtime) -> None:
    packed = packed_of("resnet8", 2, 0.5)
    form, choice = tuned_for(packed, images(2).float(), runtime, execution="groups")
    profile = compiled(form, [images(2).float()], runtime, "fp32").profile()
    assert set(choice.layers) <= set(profile.module_ms)
    assert all(profile.module_ms[layer] >= profile.conv_ms[layer] > 0 for layer in choice.layers)


@pytest.mark.skipif(importlib.util.find_spec("torch_tensorrt") is None, reason="TensorRT is not installed")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="TensorRT needs a GPU")
def test_tensorrt_computes_the_same() -> None:
    packed, x = packed_of("resnet8", 2, 0.5), images(2).half().cuda()
    network, choice = tuned_for(packed, x, "tensorrt")
    expected = per_group(packed).cuda()(x.double())
    assert choice.runtime == "tensorrt"
    assert float((compiled(network, [x], "tensorrt", "fp16").run() - expected).abs().max()) < 2e-2


def test_a_runtime_that_is_not_there_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not("onnxruntime", "cuda", "fp32") == "does not run on cuda"
    assert why_not("openvino", "cpu", "fp16") == "runs in fp32 and bf16 only"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert why_not("openvino", "cpu", "bf16") == "is not installed"
    assert why_not("tensorrt", "cuda", "fp16") == "needs torch_tensorrt, which is not installed"
    assert why_not("torch", "cpu", "fp16") == ""
    with pytest.raises(ValueError, match="tensorrt does not run on cpu: nothing can be tuned for it here"):
        tuned_for(packed_of("resnet8"), images(1).float(), "tensorrt")
    with pytest.raises(ValueError, match=r"^openvino is not installed: nothing can be tuned for it here$"):
        tuned_for(packed_of("resnet8"), images(1).float(), "openvino")
    choices = "^runtime = 'tensorflow' is unknown; choose from: torch, onnxruntime, openvino, tensorrt$"
    with pytest.raises(ValueError, match=choices):
        tuned_for(packed_of("resnet8"), images(1).float(), "tensorflow")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="execution 'triton' is not one that every runtime has: whole"):
        tuned_for(packed_of("resnet8"), images(1).float(), "torch", execution="triton")


def test_a_choice_is_of_one_runtime(tmp_path: Path) -> None:
    packed, x = packed_of("resnet8", 2, 0.5), images(2).float()
    _, choice = tuned_for(packed, x, "onnxruntime", execution="whole")
    save_choices(tmp_path / "choices.json", [choice])
    assert load_choices(tmp_path / "choices.json") == [choice]
    with pytest.raises(ValueError, match="the choice of executions is for"):
        tuned_for(packed, x, "torch", choice=choice)
    assert dataclasses.replace(choice, runtime="torch").where[-1] == "torch"


@pytest.mark.parametrize(
    "changes",
    [
        {"runtime": "onnxruntime", "precision": "bf16"},
        {"runtime": "openvino", "device": "cuda"},
        {"runtime": "tensorrt"},
        {"runtime": "tvm"},
    ],
)
def test_a_timing_of_a_runtime_has_its_device_and_precision(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"runtime (\w+ runs on|= 'tvm' is unknown)"):
        Timing(**changes)


def test_layout_changes_belong_to_the_next_layer() -> None:
    names, kinds = (
        ("stem|0", "Reorder", "a|1", "a|2", "ReorderOutput"),
        ("Conv", "Reorder", "FusedConv", "Concat", "Reorder"),
    )
    profile = runtimes._by_module(list(zip(names, kinds, (1.0, 0.5, 2.0, 0.25, 0.125), strict=True)))
    assert profile.module_ms == {"stem": 1.0, "a": 2.75, "": 0.125}
    assert profile.conv_ms == {"stem": 1.0, "a": 2.0}


def test_an_error_of_a_runtime_is_one_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no operator\nand a trace")

    monkeypatch.setattr(runtimes, "COMPILERS", {"torch": fails})
    with pytest.raises(ValueError, match=r"^torch cannot compile this network: no operator$"):
        compiled(torch.nn.Identity(), [images(1)], "torch", "fp32")


def test_both_networks_are_measured_in_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(2).float()
    networks = {"dense": packed_of("resnet8", 1, 0.0), "packed": packed_of("resnet8", 2, 0.6)}
    quick = protocol(Timing(protocol="quick"))
    choices = {"packed": tuned_for(networks["packed"], x, "onnxruntime", execution="whole")[1]}
    columns = int8.columns(networks, choices, x, Timing(batch=2), quick)
    assert columns["dense_ms"] > 0
    assert columns["speedup_low_x"] <= columns["speedup_x"] <= columns["speedup_high_x"]
    assert 0 < columns["dense_error"] < 0.5
    assert columns["calibration"] == int8.CALIBRATION
    assert int8.columns(networks, choices, x, Timing(precision="bf16"), quick) == {
        "missing": "onnxruntime runs in fp32 only"
    }
    of_another = Timing(batch=2, runtime="openvino")
    assert int8.columns(networks, choices, x, of_another, quick) == {"missing": "the timing is of openvino"}


def test_a_network_that_onnxruntime_refuses_has_a_reason_in_place_of_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise ValueError("a layer in onnxruntime disagrees")

    monkeypatch.setattr(int8.packing, "tuned_for", refused)
    networks = {"dense": packed_of("resnet8", 1, 0.0), "packed": packed_of("resnet8", 2, 0.6)}
    columns = int8.columns(networks, {}, images(2).float(), Timing(batch=2), protocol(Timing(protocol="quick")))
    assert columns == {"missing": "the dense network has no int8 form here: a layer in onnxruntime disagrees"}


def test_a_quantized_network_has_integer_weights(caplog: pytest.LogCaptureFixture) -> None:
    form, _ = tuned_for(packed_of("vgg6", 1, 0.3), images(1).float(), "onnxruntime", execution="whole")
    run = int8._quantized(to_onnx(form, [images(1).float()]), images(1).float())
    plain = compiled_onnx(to_onnx(form, [images(1).float()]), [images(1).float()]).run()
    assert not torch.equal(run(), plain)
    assert "pre-processing" not in caplog.text
