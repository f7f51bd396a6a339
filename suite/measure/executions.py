"""Executions of a network on random images, ready to be timed: `suite.pack`'s and other compilers'."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from suite import pack as packing
from suite.measure.networks import Network, Shape
from suite.measure.protocol import DTYPES, Timing
from suite.pack.choice import FORMATS
from suite.pack.export import OnnxModule, export
from suite.timing import Run

TUNED, PLAIN, ONNX, COMPILED, TENSORRT = "tuned", "plain", "onnxruntime", "compile", "tensorrt"
COMPILERS = (ONNX, COMPILED, TENSORRT)
"""Other compilers, tried on request: each takes a while, and needs a package that may not be installed."""


@dataclass(frozen=True, kw_only=True)
class Executions:
    """Executions of one network by name; `choice` has the layers of the tuned one."""

    runs: dict[str, Run]
    choice: packing.Choice | None = None


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
) -> Executions:
    """Prepare the executions of a network for `images` [N, C, H, W].

    A packed network is tuned ("full" protocol), or has one execution for all its layers ("quick").

    also    of `PLAIN` (untuned executions by the full protocol too) and `COMPILERS`, for packed networks
    only    names of the executions to prepare; empty: all
    choice  executions of the layers, chosen earlier; None: chosen here
    Raises ValueError if the network cannot run under these conditions.
    """
    _check(network, timing, also)
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
    }
    runs |= {name: make() for name, make in makers.items() if name in also and _is_wanted(name, only)}
    return Executions(runs=runs, choice=choice)


def _check(network: Network, timing: Timing, also: Collection[str]) -> None:
    if network.batch not in (None, timing.batch):
        raise ValueError(f"{network.name} takes batches of {network.batch} only: use --batch {network.batch}")
    on_cpu_in_fp32 = (timing.device, timing.precision) == ("cpu", "fp32")
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
    except RuntimeError as error:
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
