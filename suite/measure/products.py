"""Multiply-accumulates of any network that runs (torch, TorchScript, ONNX), counted on the run itself.

Every count is taken in two ways that must agree. A torch network is counted by torch's `FlopCounterMode`, on the dispatched
operators, and from the shapes that torch's profiler records below them. An ONNX network is counted from the shapes that
`onnx.shape_inference` derives, and from those that ONNX Runtime reports of a run with all optimisations off.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler reports on stderr that there is no GPU


def macs_of_run(run: Callable[[Tensor], object], image: Tensor) -> int:
    """Count the MACs of convolutions and matrix products of `run(image)`, image [1, C, H, W].

    Raises ValueError if the two counts disagree, or an operator has products that are not counted.
    """
    with torch.no_grad(), unfused():
        run(image)  # TorchScript may specialise on the first run
        dispatched, recorded = dispatched_macs(run, image), sum(_recorded(run, image))
    if dispatched != recorded:
        raise ValueError(
            f"the two MAC counters disagree: torch {dispatched:g}, its profiler {recorded}; the network has a product that "
            "one of them does not count, so no count is reported"
        )
    return recorded


@contextmanager
def unfused() -> Iterator[None]:
    """Run attention as matrix products of its own, which counters find."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def dispatched_macs(run: Callable[[Tensor], object], image: Tensor) -> float:
    """Return the MACs that torch's `FlopCounterMode` counts on the dispatched operators.

    Raises ValueError naming an operator with products that are not counted.
    """
    from torch.utils.flop_counter import FlopCounterMode  # this module imports triton, 75 MB that only workers need

    aten: Any = torch.ops.aten
    vectors = {aten.mv: _flops(0), aten.dot: _flops(0), aten.vdot: _flops(0), aten.addmv: _flops(1)}
    with _Names() as names, FlopCounterMode(display=False, custom_mapping=vectors) as counter:
        run(image)
    for name in sorted(names.seen):
        _check_counted(name)
    return counter.get_total_flops() / 2  # torch counts two per multiply-add


def _flops(factor: int) -> Callable[..., int]:
    """Return the operations of a product with a vector: two per element of one factor."""
    return lambda *shapes, **_: 2 * math.prod(shapes[factor])


class _Names(TorchDispatchMode):
    """Records the names of the dispatched operators."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.name())
        return func(*args, **(kwargs or {}))


def _check_counted(name: str) -> None:
    if _UNCOUNTED.match(name):
        raise ValueError(f"{name.partition('.')[0]} has products that are not counted here, {_PLAIN}")


def _recorded(run: Callable[[Tensor], object], image: Tensor) -> Iterator[int]:
    """Yield the MACs of each product, from the profiler's shapes."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        run(image)
    for event in profiler.events() or ():
        _check_counted(event.name)
        if event.name in _ARGUMENTS:
            count = _ARGUMENTS[event.name]  # an index earlier in the run may leave its shapes before an event's own
            yield _macs(event.name, event.input_shapes[-count:], event.concrete_inputs[-count:])


_ARGUMENTS = {"aten::_convolution": 13, "aten::mm": 2, "aten::addmm": 5, "aten::bmm": 2, "aten::baddbmm": 5}
_ARGUMENTS |= {"aten::mv": 2, "aten::dot": 2, "aten::addmv": 5}
"""Operators that every convolution and matrix product ends in -> number of their arguments."""
_UNCOUNTED = re.compile(
    r"(?!aten::|prims?::)\w+::\w"  # quantized, mkldnn, torchvision and others of their own
    r"|aten::(mkldnn_rnn|mkldnn_linear|_?cudnn_rnn|miopen_rnn|_native_multi_head|_transformer_|_triton_|_flash_attention"
    r"|_efficient_attention|quantized_|_trilinear|_?cdist|_int_mm|_scaled_mm|_scaled_grouped|_grouped_mm"
    r"|_weight_int|_addmm_act|_fft|fft_|linalg_(?!vector_norm|norm)"
    r"|_?sparse_|_cslt|dist\b|_pdist|_fused_|_foreach_mul|_lu|cholesky|triangular|ger\b|addr\b|kron|chain_matmul)"
)
"""Convolutions and products that end in none of the operators of `_ARGUMENTS`."""
_PLAIN = "so no count is reported: measure the network before it is quantized or optimised for one runtime"


def _macs(name: str, shapes: Sequence[Sequence[int]], values: Sequence[Any]) -> int:
    if name == "aten::_convolution":
        return conv_macs(shapes[0], shapes[1], *values[3:7])
    left, right = shapes[1:3] if name.startswith(("aten::add", "aten::badd")) else shapes[:2]
    return math.prod(left) * (right[-1] if len(right) > 1 else 1)


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


def onnx_params(graph: Any) -> int:
    """Count the weights of an ONNX graph: initializers and constants.

    Quantized weights count; running statistics, scales, sizes, limits and single numbers do not.
    """
    import onnx

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    settings, quantized = set[str](), set[str]()
    for node in graph.node:
        if node.op_type == "Constant":
            tensors.update((node.output[0], value.t) for value in node.attribute if value.name == "value")
        settings.update(node.input[_ONNX_WEIGHTS.get(node.op_type, len(node.input)) :])
        if node.op_type == "DequantizeLinear":
            quantized.add(node.input[0])
    kinds = onnx.TensorProto
    floats = {kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE}
    return sum(
        math.prod(tensor.dims)
        for name, tensor in tensors.items()
        if tensor.dims and name not in settings and (tensor.data_type in floats or name in quantized)
    )


_ONNX_WEIGHTS = {
    "BatchNormalization": 3,
    "QuantizeLinear": 1,
    "DequantizeLinear": 1,
    "Resize": 1,
    "Upsample": 1,
    "Clip": 1,
}
_ONNX_WEIGHTS |= {"Pad": 1, "Pow": 1}
"""Operator -> number of its first inputs that may be weights; all inputs of other operators may be."""


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
    options.enable_profiling, options.log_severity_level = True, 3
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
