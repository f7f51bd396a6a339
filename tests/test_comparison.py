"""Legs and processes of a comparison, on measurements that the test sets: no GPU is needed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run_named

from suite.measure import Timing, comparison, executions, networks
from suite.measure.comparison import Job, compare
from suite.measure.executions import Executions
from suite.measure.latency import Measurement
from suite.measure.protocol import measuring, protocol
from suite.progress import Interrupted, Watch
from suite.timing import Run

RATIOS = {"fast": 2.0, "slow": 0.5, "fast captured": 3.0, "slow captured": 0.9}
GPU = Timing(device="cuda", protocol="quick")
THREE = dataclasses.replace(protocol(GPU), processes=3)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs of all processes, which all run in this one. Executions are runs that return their names."""
    made: list[Job] = []

    def prepare(job: Job) -> list[Executions]:
        made.append(job)
        return [
            Executions(runs={"plain": run_named("plain")}),
            Executions(runs={name: run_named(name) for name in ("slow", "fast")}),
        ]

    def alternate(dense: Run, other: Run, *_: object) -> Measurement:
        ratio = RATIOS[str(other())]
        ms = np.full(6, 10.0)
        return Measurement(dense_ms=ms, packed_ms=ms / ratio, ratio=(ratio,) * 3, null=(1, 0.99, 1.01))

    def fastest(runs: dict[str, Run], device: str) -> tuple[str, dict[str, float]]:
        """Eagerly the slow one is faster, as launch cost may have it."""
        ratios = {name: RATIOS[str(run())] for name, run in runs.items()}
        captured = any(str(run()).endswith("captured") for run in runs.values())
        return "", {name: 1 / ratio if captured else ratio for name, ratio in ratios.items()}

    def captured(run: Run) -> Run:
        return run_named(f"{run()} captured")

    monkeypatch.setattr(comparison.machine, "flags", lambda *_: ())  # whatever else runs here
    monkeypatch.setattr(comparison, "_prepare", prepare)
    monkeypatch.setattr(comparison, "check_device", lambda timing: None)
    monkeypatch.setattr(comparison, "reference", lambda timing: ((), {}))
    monkeypatch.setattr(comparison, "captured", captured)
    monkeypatch.setattr(comparison, "fastest", fastest)
    monkeypatch.setattr(comparison, "in_fresh_process", lambda function, job, report: function(job))
    monkeypatch.setattr("suite.measure.latency.alternate", alternate)
    return made


@pytest.mark.parametrize(
    ("dense_ms", "other_ms", "pair"),
    [
        (
            {"plain": 3, "tuned": 2, "onnxruntime": 1},
            {"tuned": 0.7, "onnxruntime": 0.9},
            ("onnxruntime", "onnxruntime"),
        ),
        ({"plain": 1, "tuned": 2, "onnxruntime": 3}, {"tuned": 0.7, "onnxruntime": 0.5}, ("plain", "tuned")),
        ({"plain": 3, "tuned": 2, "onnxruntime": 1}, {"torchscript": 5}, ("tuned", "torchscript")),
        ({"openvino": 1, "tuned": 2}, {"onnxruntime": 5}, ("openvino", "onnxruntime")),
    ],
)
def test_both_networks_run_where_the_dense_one_is_fastest(
    dense_ms: dict[str, float], other_ms: dict[str, float], pair: tuple[str, str]
) -> None:
    assert comparison._pair(dense_ms, other_ms) == pair


def test_a_difference_between_runtimes_is_no_claim_about_pruning(
    jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "runtime", {"plain": "onnxruntime"}.get)
    monkeypatch.setitem(RATIOS, "slow", 1.6)
    columns = compared(Timing(protocol="quick")).columns()
    assert columns["verdict"] == "faster across runtimes: None beside dense in onnxruntime"
    assert columns["runtimes"] == {"dense": "onnxruntime", "packed": None}


def test_the_reference_lists_what_runs_here_and_why_the_rest_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name in ("openvino", "torch_tensorrt") else name
    )
    monkeypatch.setattr("shutil.which", lambda name: name)
    names, missing = executions.reference(Timing())
    assert names == ("plain", "onnxruntime", "compile")
    assert missing == {"openvino": "is not installed", "tensorrt": "does not run on cpu"}
    names, missing = executions.reference(Timing(precision="bf16"))
    assert (names, missing["onnxruntime"]) == (("plain", "compile"), "runs in fp32 only")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert executions.reference(Timing())[1]["compile"] == "no C++ compiler"
    names, missing = executions.reference(Timing(device="cuda"))
    assert (names, set(missing)) == (("plain", "compile"), {"onnxruntime", "openvino", "tensorrt"})
    assert executions.reference(Timing(protocol="quick"))[0] == ()


def compared(timing: Timing = GPU, watch: Watch | None = None) -> comparison.Comparison:
    return compare(Path("dense"), Path("other"), timing, shape=(3, 8, 8), duration=THREE, watch=watch)


def test_a_gpu_has_an_eager_leg_and_a_captured_one_which_is_the_headline(jobs: list[Job]) -> None:
    columns = compared().columns()
    assert (columns["leg"], columns["execution"], columns["speedup_x"]) == ("graph", "fast", 3.0)
    assert columns["eager_speedup_x"] == 0.5
    assert columns["executions_ms"] == {"slow": 1 / 0.9, "fast": 1 / 3.0}
    assert [(one["leg"], one["process"]) for one in columns["processes"]] == [
        (leg, process) for leg in ("eager", "graph") for process in range(3)
    ]
    assert columns["deployed"] == "fast"
    assert columns["cudnn_benchmark"] is False


def test_later_processes_run_what_the_first_one_chose_on_each_leg(jobs: list[Job]) -> None:
    compared()
    assert [job.chosen for job in jobs] == [{}, *[{"eager": ("plain", "slow"), "graph": ("plain", "fast")}] * 2]


def test_a_cpu_has_an_eager_leg_only_and_a_slower_network_is_not_deployed(jobs: list[Job]) -> None:
    result = compared(Timing(protocol="quick"))
    columns = result.columns()
    assert (columns["leg"], columns["execution"], columns["verdict"]) == ("eager", "slow", "slower")
    assert columns["deployed"] == result.deployed == "dense"
    assert columns["cudnn_benchmark"] is None
    assert not result.choices
    assert "bound_ms" not in columns


def test_a_signal_stops_between_processes(jobs: list[Job]) -> None:
    watch = Watch(max_minutes=0)
    with pytest.raises(Interrupted, match=r"stopped after 1 of 3 processes; latency is measured anew"):
        compared(watch=watch)
    assert len(jobs) == 1


def test_only_chosen_executions_are_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the names of every leg, for the network that they are of."""
    names: list[tuple[str, ...]] = []

    def prepared(network: object, images: object, timing: Timing, **options: Any) -> Executions:
        names.append(tuple(options["only"]))
        return Executions(runs={name: run_named(name) for name in ("plain", "slow", "fast")})

    monkeypatch.setattr(comparison, "executions", prepared)
    monkeypatch.setattr(comparison, "check", lambda *_: None)
    monkeypatch.setattr("suite.measure.networks.load", lambda name, **_: name)
    job = Job(
        dense=Path("dense"),
        other=Path("other"),
        shape=(3, 8, 8),
        timing=Timing(),
        protocol=THREE,
        threads=1,
        chosen={"eager": ("plain", "slow"), "graph": ("plain", "fast")},
    )
    comparison._prepare(job)
    comparison._prepare(dataclasses.replace(job, chosen={}))
    assert names == [("plain", "plain"), ("slow", "fast"), (), ()]


def test_denormal_weights_are_flushed() -> None:
    module = torch.nn.Linear(2, 1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1e-40, 1e-37]]))
    networks.flush_denormals(module)
    assert module.weight.tolist() == [[0.0, pytest.approx(1e-37)]]


def test_the_state_of_torch_is_that_of_before() -> None:
    """Threads, TF32 and the CPU's flush of denormal numbers, from within an equal block too."""
    denormal, threads, cudnn = torch.tensor([1e-39]), torch.get_num_threads(), torch.backends.cudnn

    def state() -> tuple[int, bool, bool, bool]:
        tf32 = cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        return torch.get_num_threads(), *tf32, bool((denormal * 1.5).view(torch.int32) == 0)

    before = state()
    with measuring(threads + 1):
        inside = state()
        with measuring(threads):
            assert state() == (threads, False, False, True)
        assert state() == inside == (threads + 1, False, False, True)
    assert state() == before
    assert not before[-1]


def test_a_runtime_that_fails_for_all_executions_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Executions(runs={}, missing={"onnxruntime": "it cannot convert this"})
    monkeypatch.setattr(comparison, "executions", lambda *_, **options: made)
    monkeypatch.setattr(comparison, "check", lambda *_: None)
    monkeypatch.setattr("suite.measure.networks.load", lambda name, **_: name)
    with pytest.raises(
        ValueError, match=r"^dense runs in no runtime of this measurement \(onnxruntime: it cannot convert this\)"
    ):
        compare(Path("dense"), Path("other"), Timing(runtime="onnxruntime"), shape=(3, 8, 8))


@pytest.mark.parametrize(("kind", "runtime"), [("onnx", "openvino"), ("torchscript", "onnxruntime")])
def test_a_program_is_converted_to_no_other_runtime(kind: Any, runtime: Any) -> None:
    network = networks.Network(name="x", kind=kind, module=torch.nn.Identity(), params=0)
    with pytest.raises(ValueError, match=f"x is no packed network, and only those are converted to {runtime}"):
        executions.check(network, Timing(runtime=runtime), ())
    executions.check(dataclasses.replace(network, kind="onnx"), Timing(runtime="onnxruntime"), ())


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_missing_is_refused_before_a_network_is_loaded() -> None:
    with pytest.raises(ValueError, match="finds no CUDA device here"):
        compare(Path("dense"), Path("other"), GPU)
