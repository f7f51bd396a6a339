"""Multiply-accumulates of any network that runs (torch, TorchScript, ONNX), counted on the run itself.

Every count is taken in two ways that must agree. A torch network is counted by torch's `FlopCounterMode`, on the dispatched
operators, and from the shapes that torch's profiler records below them. An ONNX network is counted from the shapes that
`onnx.shape_inference` derives, and from those that ONNX Runtime reports of a run with all optimisations off.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler reports on stderr that there is no GPU


def macs_of_run(run: Callable[[Tensor], object], image: Tensor) -> int:
    """Count the MACs of convolutions and matrix products of `run(image)`, image [1, C, H, W].

    Raises ValueError if the two counts disagree, or an operator has products that are not counted.
    """
    from torch.utils.flop_counter import FlopCounterMode  # this module imports triton, 75 MB that only workers need

    with torch.no_grad():
        run(image)  # TorchScript may specialise on the first run
        with FlopCounterMode(display=False) as counter:
            run(image)
        recorded = sum(_recorded(run, image))
    if counter.get_total_flops() != 2 * recorded:
        raise ValueError(
            f"the two MAC counters disagree: torch {counter.get_total_flops() / 2:g}, its profiler {recorded}; the network "
            "has a product that one of them does not count, so no count is reported"
        )
    return recorded


def _recorded(run: Callable[[Tensor], object], image: Tensor) -> Iterator[int]:
    """Yield the MACs of each product, from the profiler's shapes."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        run(image)
    for event in profiler.events() or ():
        if event.name.startswith(_UNCOUNTED):
            raise ValueError(f"{event.name} has products that are not counted here, {_PLAIN}")
        if event.name in _ARGUMENTS:
            count = _ARGUMENTS[event.name]  # an index earlier in the run may leave its shapes before an event's own
            yield _macs(event.name, event.input_shapes[-count:], event.concrete_inputs[-count:])


_ARGUMENTS = {"aten::_convolution": 13, "aten::mm": 2, "aten::addmm": 5, "aten::bmm": 2, "aten::baddbmm": 5}
"""Operators that every convolution and matrix product ends in -> number of their arguments."""
_UNCOUNTED = ("quantized::", "mkldnn::", "mkldnn_prepacked::")
"""Prefixes of convolutions and products that end in none of these operators."""
_PLAIN = "so no count is reported: measure the network before it is quantized or optimised for one runtime"


def _macs(name: str, shapes: Sequence[Sequence[int]], values: Sequence[Any]) -> int:
    if name == "aten::_convolution":
        return conv_macs(shapes[0], shapes[1], *values[3:7])
    left, right = shapes[1:3] if name in ("aten::addmm", "aten::baddbmm") else shapes[:2]
    return math.prod(left) * right[-1]


def conv_macs(
    x_NIHW: Sequence[int],
    w_OIkk: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool = False,
) -> int:
    """Return the MACs of a convolution: weights x output pixels (transposed: input pixels)."""
    if transposed:
        return x_NIHW[0] * math.prod(x_NIHW[2:]) * math.prod(w_OIkk)
    kernel = w_OIkk[2:]
    out = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip(x_NIHW[2:], padding, dilation, kernel, stride, strict=True)
    ]
    return x_NIHW[0] * math.prod(out) * math.prod(w_OIkk)


# ---- ONNX ------------------------------------------------------------------------------------------------------------


def macs_of_onnx(path: Path, image: Tensor) -> int:
    """Count the Conv, Gemm and MatMul MACs of an ONNX network on one image.

    Raises ValueError if the two counts disagree, or a node has products that are not counted.
    """
    inferred, ran = sum(_inferred(path, image)), sum(_ran(path, image))
    if inferred != ran:
        raise ValueError(
            f"the two MAC counters disagree: shape inference {inferred}, ONNX Runtime {ran}; a shape in the file is unknown "
            "or wrong, so no count is reported"
        )
    return ran


def _inferred(path: Path, image: Tensor) -> Iterator[int]:
    import onnx
    from onnx import shape_inference

    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type in _ONNX_UNCOUNTED or node.domain not in ("", "ai.onnx"):
            kind = ".".join(filter(None, (node.domain, node.op_type)))
            raise ValueError(
                f"{kind} {node.name or node.output[0]!r} may have products that are not counted here, {_PLAIN}"
            )
    weights = {tensor.name for tensor in model.graph.initializer}  # old files list weights as inputs, too
    (images,) = [value for value in model.graph.input if value.name not in weights]
    for place, size in zip(images.type.tensor_type.shape.dim, image.shape, strict=True):
        place.dim_value = size
    del model.graph.value_info[:]  # with the batch of the export in them
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        value.name: [place.dim_value for place in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in _ONNX_PRODUCTS:
            yield _onnx_macs(
                node.op_type, [shapes.get(name, []) for name in node.input], shapes.get(node.output[0], [])
            )


def _ran(path: Path, image: Tensor) -> Iterator[int]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/run"
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        session.run(None, {session.get_inputs()[0].name: image.cpu().numpy()})
        events = json.loads(Path(session.end_profiling()).read_text())
    for event in events:
        about = event.get("args", {})
        if about.get("op_name") in _ONNX_PRODUCTS and event["name"].endswith("_kernel_time"):
            shapes = [next(iter(tensor.values())) for tensor in about["input_type_shape"]]
            yield _onnx_macs(about["op_name"], shapes, next(iter(about["output_type_shape"][0].values())))


_ONNX_PRODUCTS = ("Conv", "Gemm", "MatMul")
_ONNX_UNCOUNTED = {
    "ConvTranspose",
    "DeformConv",
    "ConvInteger",
    "QLinearConv",
    "MatMulInteger",
    "QLinearMatMul",
    "QGemm",
}
_ONNX_UNCOUNTED |= {"Einsum", "Attention", "LSTM", "GRU", "RNN"}


def _onnx_macs(kind: str, inputs: Sequence[Sequence[int]], output: Sequence[int]) -> int:
    """Return a node's MACs: output elements x weights of a filter, or row length."""
    if kind == "Conv":
        return math.prod(output) * math.prod(inputs[1][1:])
    # MatMul may repeat its left factor for a batch of right ones; Gemm may have it transposed.
    inner = math.prod(inputs[0][-1:]) if kind == "MatMul" else math.prod(inputs[0]) // max(math.prod(output[:1]), 1)
    return math.prod(output) * inner
