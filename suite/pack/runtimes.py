"""Compilers of modules for inference: ONNX Runtime, OpenVINO, TensorRT, and torch as it is.

A module is compiled for its example inputs: shapes, device, torch's number of threads, and a precision.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import logging
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from suite.pack import onnx_writer
from suite.pack.onnx_writer import SEPARATOR
from suite.plan import CONDITIONS, Runtime

PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnx"),
    "openvino": ("openvino", "onnx"),
    "tensorrt": ("torch_tensorrt",),
}
"""Runtime -> the packages that it needs. A network that `onnx_writer` does not write also needs onnxscript."""
CONVOLUTIONS = {"Conv", "FusedConv", "Convolution", "GroupConvolution"}
"""Kinds of nodes that convolve, in the profilers of ONNX Runtime and OpenVINO."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Milliseconds of each child module in one run, "" for all else.

    conv_ms   the part in convolutions
    """

    module_ms: Mapping[str, float] = field(default_factory=dict)
    conv_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A compiled module on its example inputs.

    run      returns the output
    profile  returns the times of the runtime's profiler, an empty profile for a runtime without one here
    """

    run: Callable[[], Tensor]
    profile: Callable[[], Profile] = Profile


def why_not(runtime: Runtime, device: str, precision: str) -> str:
    """Return the reason why a runtime does not run here, "" if there is none."""
    if runtime not in CONDITIONS:
        return ""
    needed, precisions = CONDITIONS[runtime]
    if device != needed:
        return f"does not run on {device}"
    if precision not in precisions:
        return f"runs in {' and '.join(precisions)} only"
    absent = [package for package in PACKAGES[runtime] if importlib.util.find_spec(package) is None]
    if not absent:
        return ""
    return "is not installed" if absent[0] == runtime else f"needs {absent[0]}, which is not installed"


def compiled(module: nn.Module, inputs: Sequence[Tensor], runtime: Runtime, precision: str) -> Compiled:
    """Compile a module of plain operators for these inputs.

    The module and the inputs of a CPU runtime are fp32, whatever the precision; those of TensorRT have the precision.
    Raises ValueError if the runtime does not run here, or cannot compile the module.
    """
    device = inputs[0].device.type
    if reason := why_not(runtime, device, precision):
        raise ValueError(f"{runtime} {reason}")
    try:
        return COMPILERS[runtime](module.eval(), list(inputs), precision)
    except ValueError:
        raise
    except Exception as error:  # exporters and runtimes have error classes of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{runtime} cannot compile this network: {reason}") from error


def _torch(module: nn.Module, inputs: list[Tensor], precision: str) -> Compiled:
    return Compiled(run=lambda: module(*inputs))


# ---- ONNX Runtime ----------------------------------------------------------------------------------------------------


def session(source: Path | bytes, profile_prefix: str = "") -> Any:
    """Return an ONNX Runtime session on the CPU with torch's number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads slow what runs next
    if profile_prefix:
        options.enable_profiling, options.profile_file_prefix = True, profile_prefix
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def to_onnx(module: nn.Module, inputs: Sequence[Tensor]) -> bytes:
    """Return the module as an ONNX file for inputs of these shapes.

    The name of a node starts with the name of the module's child that it is part of.
    """
    if isinstance(module, fx.GraphModule):
        try:
            return cast(bytes, onnx_writer.write(module, inputs).SerializeToString())
        except onnx_writer.Unsupported as reason:
            log.info("torch exports the network: %s is not written here", reason)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # a warning per constant that is not folded
    with torch.no_grad():
        program = torch.onnx.export(module, tuple(inputs), dynamo=True, verbose=False)
    assert program is not None
    for number, node in enumerate(program.model.graph):
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes") or "[]")
        node.name = f"{scopes[1] if len(scopes) > 2 else ''}{SEPARATOR}{number}"
    return cast(bytes, program.model_proto.SerializeToString())


def _onnxruntime(module: nn.Module, inputs: list[Tensor], precision: str) -> Compiled:
    return compiled_onnx(to_onnx(module, inputs), inputs)


def compiled_onnx(content: bytes, inputs: Sequence[Tensor]) -> Compiled:
    """Load an ONNX network into ONNX Runtime, for these inputs."""
    running = session(content)
    names = [place.name for place in running.get_inputs()]
    arrays = [np.ascontiguousarray(tensor.numpy()) for tensor in inputs]
    values = dict(zip(names, arrays, strict=True))

    def profile() -> Profile:
        with tempfile.TemporaryDirectory() as folder:
            profiled = session(content, f"{folder}/run")
            for _ in range(PASSES):
                profiled.run(None, values)
            return _onnx_profile(json.loads(Path(profiled.end_profiling()).read_text()))

    return Compiled(run=lambda: torch.from_numpy(running.run(None, values)[0]), profile=profile)


PASSES = 6
"""Profiled runs; the least time of each node counts. OpenVINO's times are means over all runs so far, in whole microseconds."""


def _onnx_profile(events: Sequence[Mapping[str, Any]]) -> Profile:
    """Return milliseconds of each module from a profile of several runs."""
    kernels = [event for event in events if event.get("name", "").endswith("_kernel_time")]
    per_run = len(kernels) // PASSES
    least: dict[int, float] = {}
    nodes: dict[int, tuple[str, str]] = {}
    for number, event in enumerate(sorted(kernels, key=lambda event: event["ts"])):
        place = number % per_run
        least[place] = min(event["dur"] / 1e3, least.get(place, float("inf")))
        nodes[place] = event["name"], event["args"]["op_name"]
    return _by_module([(*nodes[place], least[place]) for place in sorted(least)])


def _by_module(nodes: Sequence[tuple[str, str, float]]) -> Profile:
    """Return milliseconds by module; `nodes` are name, kind and time in the order of execution.

    Runtimes insert changes of layout, which have no name of a module: the next node is the one that needs them.
    """
    total: dict[str, float] = defaultdict(float)
    conv: dict[str, float] = defaultdict(float)
    waiting = 0.0
    for name, kind, ms in nodes:
        module, separator, _ = name.partition(SEPARATOR)
        if separator:
            total[module] += ms + waiting
            conv[module] += ms * (kind in CONVOLUTIONS)
            waiting = 0.0
        else:
            waiting += ms
    total[""] += waiting
    return Profile(module_ms=dict(total), conv_ms=dict(conv))


# ---- OpenVINO --------------------------------------------------------------------------------------------------------


def _openvino(module: nn.Module, inputs: list[Tensor], precision: str) -> Compiled:
    content, values = to_onnx(module, inputs), [tensor.float().contiguous().numpy() for tensor in inputs]
    request = _openvino_request(content, inputs, precision, False)

    def run() -> Tensor:
        request.infer(values, share_inputs=True, share_outputs=True)
        return torch.from_numpy(request.get_output_tensor(0).data)

    def profile() -> Profile:
        profiled, passes = _openvino_request(content, inputs, precision, True), []
        for _ in range(PASSES):
            profiled.infer(values, share_inputs=True, share_outputs=True)
            infos = profiled.profiling_info
            passes.append([(one.node_name, one.node_type, one.real_time.total_seconds() * 1e3) for one in infos])
        least = [min(ms for *_, ms in same) for same in zip(*passes, strict=True)]
        return _by_module([(name, kind, ms) for (name, kind, _), ms in zip(passes[0], least, strict=True)])

    return Compiled(run=run, profile=profile)


def _openvino_request(content: bytes, inputs: Sequence[Tensor], precision: str, profile: bool) -> Any:
    """Return a request of an ONNX network compiled for these inputs.

    Raises ValueError if OpenVINO computes in another precision on this CPU.
    """
    import openvino

    kind = {"fp32": "f32"}.get(precision, precision)
    hints = {
        "INFERENCE_PRECISION_HINT": kind,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "PERF_COUNT": profile,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        path.write_bytes(content)
        core = openvino.Core()
        model = core.read_model(path)
        model.reshape({place: list(tensor.shape) for place, tensor in zip(model.inputs, inputs, strict=True)})
        network = core.compile_model(model, "CPU", hints)
    used = network.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if used != kind:
        raise ValueError(f"openvino computes in {used} on this CPU, not in {precision}")
    return network.create_infer_request()


# ---- TensorRT --------------------------------------------------------------------------------------------------------


def _tensorrt(module: nn.Module, inputs: list[Tensor], precision: str) -> Compiled:
    import torch_tensorrt

    engine = torch_tensorrt.compile(module, ir="dynamo", inputs=inputs, enabled_precisions={inputs[0].dtype})
    return Compiled(run=lambda: engine(*inputs))


COMPILERS: Mapping[Runtime, Callable[[nn.Module, list[Tensor], str], Compiled]] = {
    "torch": _torch,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "tensorrt": _tensorrt,
}
