"""Executions of a network on random images, ready to be timed: `suite.pack`'s and other compilers'."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from suite import pack as packing
from suite.measure.networks import Network, Shape
from suite.measure.protocol import DTYPES
from suite.pack.choice import FORMATS
from suite.pack.export import OnnxModule, export
from suite.plan import Timing
from suite.timing import Run

TUNED, PLAIN, ONNX, COMPILED, TENSORRT, OPENVINO = "tuned", "plain", "onnxruntime", "compile", "tensorrt", "openvino"
COMPILERS = (ONNX, OPENVINO, COMPILED, TENSORRT)
"""Other runtimes: each takes a while to compile a network, and needs a package that may not be installed."""
_PACKAGES = {ONNX: ("onnxruntime", "onnxscript"), OPENVINO: ("openvino", "onnxscript"), TENSORRT: ("torch_tensorrt",)}


@dataclass(frozen=True, kw_only=True)
class Executions:
    """Executions of one network by name; `choice` has the layers of the tuned one.

    missing   execution that was asked for -> reason why it does not run
    """

    runs: dict[str, Run]
    choice: packing.Choice | None = None
    missing: dict[str, str] = field(default_factory=dict)


def runtime(name: str) -> str:
    """Return the runtime of an execution: "torch", or the name of the compiler."""
    return name if name in COMPILERS else "torch"


def reference(timing: Timing) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the executions to try beside the tuned ones, and a reason for each other.

    The reference of a speed-up is the dense network in the fastest of them. The quick protocol stays in torch: compilers take
    longer than the measurement.
    """
    if timing.protocol == "quick":
        return (), dict.fromkeys(COMPILERS, "not tried by the quick protocol")
    reasons = {name: _why_not(name, timing) for name in COMPILERS}
    missing = {name: reason for name, reason in reasons.items() if reason}
    return (PLAIN, *(name for name in COMPILERS if name not in missing)), missing


def _why_not(name: str, timing: Timing) -> str:
    """Return the reason why an execution does not run here, "" if there is none."""
    if (name in (ONNX, OPENVINO)) != (timing.device == "cpu") and name != COMPILED:
        return f"does not run on {timing.device}"
    if name == ONNX and timing.precision != "fp32":
        return "runs in fp32 only"
    if name == OPENVINO and timing.precision == "fp16":
        return "runs in fp32 and bf16 only"
    if name == COMPILED and timing.device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return "no C++ compiler"
    absent = [package for package in _PACKAGES.get(name, ()) if importlib.util.find_spec(package) is None]
    return f"{absent[0]} is not installed" if absent else ""


def random_images(timing: Timing, shape: Shape) -> Tensor:
    """Return a seeded random batch on the timing's device, in its precision and layout."""
    images = torch.randn(timing.batch, *shape, generator=torch.Generator().manual_seed(0))
    return images.to(timing.device, DTYPES[timing.precision], memory_format=FORMATS[timing.layout])


def executions(
    network: Network,
    images: Tensor,
    timing: Timing,
    *,
    also: Collection[str] = (),
    only: Collection[str] = (),
    choice: packing.Choice | None = None,
    strict: bool = True,
) -> Executions:
    """Prepare the executions of a network for `images` [N, C, H, W].

    A packed network is tuned ("full" protocol), or has one execution for all its layers ("quick").

    also    of `PLAIN` (untuned executions by the full protocol too) and `COMPILERS`, for packed networks
    only    names of the executions to prepare; empty: all
    choice  executions of the layers, chosen earlier; None: chosen here
    strict  False: a compiler that fails is left out, with its reason
    Raises ValueError if the network cannot run under these conditions (`check`).
    """
    if network.kind == "onnx":
        return Executions(runs={ONNX: functools.partial(network.module, images.contiguous())})
    if network.packed is None:
        return Executions(runs={network.kind: functools.partial(_placed(network.module, timing), images)})
    packed, runs = network.packed, dict[str, Run]()
    plain = _untuned(packed) if timing.protocol == "quick" or PLAIN in also else ()
    for name in plain:
        if _is_wanted(name, only):
            runs[name] = functools.partial(
                packing.tuned(packed, images, execution=name, layout=timing.layout)[0], images
            )
    if timing.protocol == "full" and _is_wanted(TUNED, only):
        tuned, choice = packing.tuned(packed, images, choice=choice)
        runs[TUNED] = functools.partial(tuned, images)
    makers: dict[str, Callable[[], Run]] = {
        ONNX: lambda: _by_onnxruntime(packed, images),
        COMPILED: lambda: _by_torch_compile(packed, images, timing),
        TENSORRT: lambda: _by_tensorrt(packed, images, timing),
        OPENVINO: lambda: _by_openvino(packed, images, timing),
    }
    missing = {}
    for name in (name for name in makers if name in also and _is_wanted(name, only)):
        try:
            runs[name] = makers[name]()
        except ValueError as error:
            if strict:
                raise
            missing[name] = " ".join(str(error).split())[:160]
    return Executions(runs=runs, choice=choice, missing=missing)


def check(network: Network, timing: Timing, also: Collection[str]) -> None:
    """Raise ValueError if the network or an execution of `also` does not run here."""
    if network.batch not in (None, timing.batch):
        raise ValueError(f"{network.name} takes batches of {network.batch} only: use --batch {network.batch}")
    on_cpu_in_fp32 = (timing.device, timing.precision) == ("cpu", "fp32")
    if OPENVINO in also and (timing.device, timing.precision == "fp16") != ("cpu", False):
        raise ValueError("OpenVINO is used on the CPU in fp32 and bf16 only: change --device or --precision")
    if not on_cpu_in_fp32 and (network.kind == "onnx" or ONNX in also):
        raise ValueError("ONNX Runtime is used on the CPU in fp32 only: drop --device and --precision")
    if TENSORRT in also and timing.device != "cuda":
        raise ValueError("TensorRT runs on NVIDIA GPUs only: add --device cuda, or drop tensorrt")


def _is_wanted(name: str, only: Collection[str]) -> bool:
    return not only or name in only


def _untuned(packed: packing.PackedNetwork) -> tuple[str, ...]:
    """Return the executions that differ for this network, each used for all its layers."""
    grouped = any(len(conv.weights) > 1 for conv in packed.convs())
    return ("groups", "union") if grouped else ("groups",)


def _placed(network: nn.Module, timing: Timing) -> nn.Module:
    return network.to(timing.device, DTYPES[timing.precision]).to(memory_format=FORMATS[timing.layout])


def _by_torch_compile(packed: packing.PackedNetwork, images: Tensor, timing: Timing) -> Run:
    """Compile the packed network; on a CPU torch.compile needs a C++ compiler."""
    compiled = torch.compile(_placed(packing.per_group(packed), timing), dynamic=False)
    try:
        with torch.inference_mode():
            compiled(images)
    except Exception as error:  # torch._dynamo and its backends have error classes of their own
        raise ValueError(f"torch.compile does not work here: {error}") from error
    return functools.partial(compiled, images)


def _by_tensorrt(packed: packing.PackedNetwork, images: Tensor, timing: Timing) -> Run:
    """Compile the packed network by TensorRT. Raises ValueError if torch_tensorrt is not installed."""
    try:
        import torch_tensorrt
    except ImportError as error:
        raise ValueError("torch_tensorrt is not installed: pip install torch-tensorrt, or drop tensorrt") from error
    module = _placed(packing.per_group(packed), timing)
    engine = torch_tensorrt.compile(module, ir="dynamo", inputs=[images], enabled_precisions={images.dtype})
    return functools.partial(engine, images)


def _by_onnxruntime(packed: packing.PackedNetwork, images: Tensor) -> Run:
    """Export the packed network to a temporary file and load that file into ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export(packed, tuple(images.shape[1:]), "onnx", path)
        return functools.partial(OnnxModule(path), images.contiguous())


def _by_openvino(packed: packing.PackedNetwork, images: Tensor, timing: Timing) -> Run:
    """Compile the exported network by OpenVINO, for this batch, precision and number of threads.

    Raises ValueError if openvino is not installed.
    """
    try:
        import openvino  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ValueError("openvino is not installed: pip install openvino, or drop openvino") from error
    hints = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(timing.precision, timing.precision),
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export(packed, tuple(images.shape[1:]), "onnx", path)
        core = openvino.Core()
        model = core.read_model(path)
        model.reshape(list(images.shape))
        compiled = core.compile_model(model, "CPU", hints)
    request, values = compiled.create_infer_request(), images.float().contiguous().numpy()
    return functools.partial(request.infer, [values], share_inputs=True, share_outputs=True)
