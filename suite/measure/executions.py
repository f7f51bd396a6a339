"""Executions of a network on random images, ready to be timed: `suite.pack`'s and other compilers'."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn

from suite import pack as packing
from suite.measure.networks import Network, Shape
from suite.measure.protocol import DTYPES
from suite.pack import trial
from suite.pack.choice import FORMATS
from suite.pack.runtimes import compiled, why_not
from suite.plan import CONDITIONS, Runtime, Timing
from suite.timing import Run, fastest

CHECKED = 2
"""Images whose logits in another runtime are compared with the packed network's."""
TUNED, PLAIN, ONNX, COMPILED, TENSORRT, OPENVINO = "tuned", "plain", "onnxruntime", "compile", "tensorrt", "openvino"
COMPILERS = (ONNX, OPENVINO, COMPILED, TENSORRT)
"""Other runtimes: each takes a while to compile a network, and needs a package that may not be installed."""


@dataclass(frozen=True, kw_only=True)
class Executions:
    """Executions of one network by name.

    choices   execution -> executions of the layers: those of `TUNED`, and those of each runtime
    missing   execution that was asked for -> reason why it does not run
    """

    runs: dict[str, Run]
    choices: dict[str, packing.Choice] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def runtime(name: str) -> str:
    """Return the runtime of an execution: "torch", or the name of the compiler."""
    return name if name in COMPILERS else "torch"


def reference(timing: Timing) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the executions to try beside the tuned ones, and a reason for each other.

    The reference of a speed-up is the dense network in the fastest of them. The quick protocol stays in torch: compilers take
    longer than the measurement. A timing of another runtime has this runtime only.
    """
    if timing.runtime != "torch":
        names = (name for name in COMPILERS if name != timing.runtime)
        return (timing.runtime,), dict.fromkeys(names, f"the timing is of {timing.runtime}")
    if timing.protocol == "quick":
        return (), dict.fromkeys(COMPILERS, "not tried by the quick protocol")
    reasons = {name: _why_not(name, timing) for name in COMPILERS}
    missing = {name: reason for name, reason in reasons.items() if reason}
    return (PLAIN, *(name for name in COMPILERS if name not in missing)), missing


def _why_not(name: str, timing: Timing) -> str:
    """Return the reason why an execution does not run here, "" if there is none."""
    if name != COMPILED:
        return why_not(cast(Runtime, name), timing.device, timing.precision)
    has_compiler = timing.device != "cpu" or shutil.which("g++") or shutil.which("clang++")
    return "" if has_compiler else "no C++ compiler"


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
    choices: Mapping[str, packing.Choice] = MappingProxyType({}),
    strict: bool = True,
) -> Executions:
    """Prepare the executions of a network for `images` [N, C, H, W].

    A packed network is tuned ("full" protocol), or has one execution for all its layers ("quick").

    also     of `PLAIN` (untuned executions by the full protocol too) and `COMPILERS`, for packed networks
    only     names of the executions to prepare; empty: all
    choices  executions of the layers, chosen earlier
    strict   False: a compiler that fails is left out, with its reason
    Raises ValueError if the network cannot run under these conditions (`check`).
    """
    if network.kind == "onnx":
        return Executions(runs={ONNX: functools.partial(network.module, images.contiguous())})
    if network.packed is None:
        return Executions(runs={network.kind: functools.partial(_placed(network.module, timing), images)})
    made = Executions(runs={})
    if timing.runtime == "torch":
        _in_torch(network.packed, images, timing, PLAIN in also, only, choices, made)
    runtimes = {*also, *([] if timing.runtime == "torch" else [timing.runtime])}
    for name in (name for name in COMPILERS if name in runtimes and _is_wanted(name, only)):
        try:
            if name == COMPILED:
                made.runs[name] = _by_torch_compile(network.packed, images, timing)
            else:
                runtime = cast(Runtime, name)
                made.runs[name], made.choices[name] = _by(runtime, network.packed, images, timing, choices.get(name))
        except ValueError as error:
            if strict:
                raise
            made.missing[name] = " ".join(str(error).split())[:160]
    return made


def _in_torch(
    packed: packing.PackedNetwork,
    images: Tensor,
    timing: Timing,
    plain: bool,
    only: Collection[str],
    choices: Mapping[str, packing.Choice],
    made: Executions,
) -> None:
    """Add the executions in torch to `made`."""
    for name in _untuned(packed) if plain or timing.protocol == "quick" else ():
        if _is_wanted(name, only):
            network, _ = packing.tuned(packed, images, execution=name, layout=timing.layout)
            made.runs[name] = functools.partial(network, images)
    if timing.protocol == "full" and _is_wanted(TUNED, only):
        network, made.choices[TUNED] = packing.tuned(packed, images, choice=choices.get(TUNED))
        made.runs[TUNED] = functools.partial(network, images)


def _by(
    runtime: Runtime, packed: packing.PackedNetwork, images: Tensor, timing: Timing, choice: packing.Choice | None
) -> tuple[Run, packing.Choice]:
    """Compile the packed network for a runtime.

    Each layer has the execution that is fastest there; by the quick protocol all layers have one execution. The output is
    compared with the packed network's.
    Raises ValueError if the runtime does not run here, and if the output disagrees.
    """
    if choice is None and timing.protocol == "quick" and len(names := _untuned(packed)) > 1:
        tried = {name: packing.tuned_for(packed, images, runtime, execution=name) for name in names}
        runs = {name: _compiled(runtime, network, images, timing) for name, (network, _) in tried.items()}
        name, _ = fastest(runs, timing.device)
        run, made = runs[name], tried[name][1]
    else:
        network, made = packing.tuned_for(packed, images, runtime, choice=choice)
        run = _compiled(runtime, network, images, timing)
    few = images[:CHECKED].to(torch.float32 if timing.device == "cpu" else images.dtype)
    with torch.no_grad():
        expected = packing.per_group(packed).to(few.device, few.dtype)(few).to(images.dtype)
    trial.check(f"the network in {runtime}", cast(Tensor, run())[:CHECKED].to(images.dtype), expected)
    return run, made


def _compiled(runtime: Runtime, network: nn.Module, images: Tensor, timing: Timing) -> Run:
    values = images.contiguous().to(torch.float32 if timing.device == "cpu" else images.dtype)
    return compiled(network, [values], runtime, timing.precision).run


def check(network: Network, timing: Timing, also: Collection[str]) -> None:
    """Raise ValueError if the network or an execution of `also` does not run here."""
    if network.batch not in (None, timing.batch):
        raise ValueError(f"{network.name} takes batches of {network.batch} only: use --batch {network.batch}")
    if timing.runtime != "torch" and network.packed is None and (network.kind, timing.runtime) != ("onnx", ONNX):
        raise ValueError(f"{network.name} is no packed network, and only those are converted to {timing.runtime}")
    for name in sorted({*also, *([ONNX] if network.kind == "onnx" else [])} & set(CONDITIONS)):
        device, precisions = CONDITIONS[name]
        if timing.device != device or timing.precision not in precisions:
            raise ValueError(
                f"{name} runs on {device} in {' and '.join(precisions)} only, and the timing is on {timing.device} in "
                f"{timing.precision}: change --device or --precision, or drop {name}"
            )


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
