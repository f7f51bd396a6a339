"""The latency of a network from anywhere beside a dense one, by the suite's protocol."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suite import export
from suite import pack as packing
from suite.cudagraph import captured
from suite.measure import latency, networks, processes
from suite.measure.networks import Network, Shape
from suite.run.timed_stage import TUNED, executions_of, images_for, placed
from suite.stages import Timing

ONNX, COMPILED, TENSORRT = "onnxruntime", "compile", "tensorrt"
ALSO = (ONNX, COMPILED, TENSORRT)
"""Executions by other compilers, tried on request: each takes a while, and needs something that may not be installed."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process measures; files and names only, so that a fresh process has all that it needs.

    dense       a model of the suite, or a file
    executions  those that an earlier process chose, of the dense network and of the other one; empty: to be chosen
    choices     of the layers of both, by an earlier process, None where its network was not tuned; empty: to be made
    """

    network: str
    dense: str
    classes: int
    shape: Shape
    timing: Timing
    threads: int
    executions: tuple[str, ...] = ()
    choices: tuple[packing.Choice | None, ...] = ()
    also: tuple[str, ...] = ()
    """Of `ALSO`, tried for each network that the suite has packed, dense ones included."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one process found: the comparison with the fastest execution of the dense network, and the choices made or given.

    dense_executions_ms   of all that were tried, empty when there was one
    """

    dense_execution: str
    dense_executions_ms: dict[str, float]
    found: processes.Found
    choices: tuple[packing.Choice | None, ...]

    def about_dense(self) -> dict[str, Any]:
        """Its columns of a row."""
        return {"dense_execution": self.dense_execution, "dense_executions_ms": self.dense_executions_ms}


def columns(job: Job) -> dict[str, Any]:
    """The columns of a latency row: as many processes as the protocol asks for, the first chooses the executions."""
    first = measure(job)
    executions = first.dense_execution, first.found.execution
    again = dataclasses.replace(job, executions=executions, choices=first.choices)
    count = latency.protocol(job.timing.protocol, job.timing.device).processes
    others = [processes.in_fresh_process(measure, again).found for _ in range(1, count)]
    about = {name: getattr(job.timing, name) for name in ("device", "batch", "precision", "layout", "protocol")}
    return {**about, **processes.columns([first.found, *others], job.timing.device), **first.about_dense()}


@torch.inference_mode()
def measure(job: Job) -> Measured:
    """Both networks, in this process."""
    torch.set_num_threads(job.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    timing = job.timing
    given = zip((job.dense, job.network), job.executions or ("", ""), job.choices or (None, None), strict=True)
    (dense, its), (other, others) = (runs_of(_load(name, job), job, only, choice) for name, only, choice in given)
    chosen, milliseconds = latency.fastest(dense, timing.device) if len(dense) > 1 else (next(iter(dense)), {})
    protocol = latency.protocol(timing.protocol, timing.device)
    return Measured(
        dense_execution=chosen,
        dense_executions_ms=milliseconds,
        found=processes.choose_and_compare(dense[chosen], other, timing.device, protocol),
        choices=(its, others),
    )


def _load(name: str, job: Job) -> Network:
    return networks.load(name) if Path(name).is_file() else networks.dense(name, job.classes, job.shape)


def runs_of(
    network: Network, job: Job, only: str = "", choice: packing.Choice | None = None
) -> tuple[dict[str, latency.Run], packing.Choice | None]:
    """Every execution of the network that is to be tried, or just `only`, ready to be timed; how its layers are tuned.

    Raises ValueError where the network cannot run as it is asked to.
    """
    timing = job.timing
    if network.batch not in (None, timing.batch):
        raise ValueError(f"{network.name} takes batches of {network.batch} only: use --batch {network.batch}")
    plain = (timing.device, timing.precision) == ("cpu", "fp32")
    if not plain and (network.kind == "onnx" or ONNX in job.also):
        raise ValueError("ONNX Runtime is used on the CPU in fp32 only: drop --device and --precision")
    if TENSORRT in job.also and timing.device != "cuda":
        raise ValueError("TensorRT runs on NVIDIA GPUs only: add --device cuda, or drop tensorrt")
    images = images_for(timing, job.shape)
    if network.kind == "onnx":
        return {ONNX: functools.partial(network.module, images.contiguous())}, None
    if network.packed is None:
        return {network.kind: _run(network.module, images, timing)}, None
    found: dict[str, latency.Run] = {
        name: _run(packing.deploy(network.packed, name), images, timing)
        for name in executions_of(network.packed)
        if only in ("", name)
    }
    if timing.protocol == "full" and only in ("", TUNED):  # each layer in the way that is fastest here
        network_here, choice = packing.tuned(network.packed.to(timing.device), images, choice=choice)
        found[TUNED] = _prepared(network_here, images)
    if ONNX in job.also and only in ("", ONNX):
        found[ONNX] = functools.partial(_as_onnx(network.packed, job.shape), images.contiguous())
    for name, compiled in ((COMPILED, _compiled), (TENSORRT, _by_tensorrt)):
        if name in job.also and only in ("", name):
            found[name] = compiled(network.packed, images, timing)
    return found, choice


def _run(module: nn.Module, images: Tensor, timing: Timing) -> latency.Run:
    return _prepared(placed(module, timing), images)


def _prepared(module: Callable[[Tensor], object], images: Tensor) -> latency.Run:
    run = functools.partial(module, images)
    return captured(run) if images.is_cuda else run


def _compiled(packed: packing.PackedNetwork, images: Tensor, timing: Timing) -> latency.Run:
    """The packed network by torch.compile, which on a CPU needs a C++ compiler."""
    compiled = torch.compile(placed(packing.deploy(packed, "groups"), timing), dynamic=False)
    try:
        with torch.no_grad():
            compiled(images)
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
        raise ValueError(f"torch.compile does not work here: {error}") from error
    return _prepared(compiled, images)


def _by_tensorrt(packed: packing.PackedNetwork, images: Tensor, timing: Timing) -> latency.Run:
    """The packed network by TensorRT. Raises ValueError where torch_tensorrt is not installed."""
    try:
        import torch_tensorrt
    except ImportError as error:
        raise ValueError("torch_tensorrt is not installed: pip install torch-tensorrt, or drop tensorrt") from error
    module = placed(packing.deploy(packed, "groups"), timing)
    engine = torch_tensorrt.compile(module, ir="dynamo", inputs=[images], enabled_precisions={images.dtype})
    return _prepared(engine, images)


def _as_onnx(packed: packing.PackedNetwork, shape: Shape) -> nn.Module:
    """The packed network in ONNX Runtime, which has read the file before it is gone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export.export(packed, shape, "onnx", path)
        return networks.OnnxModule(path)
