"""Networks in files of any origin: packed ones of this suite, TorchScript, exported programs, ONNX.

Each is loaded as an ordinary module, images [N, C, H, W] -> logits [N, classes], ready for inference. All kinds but packed ones
are programs: `suite.measure.archive` refuses files whose loading would execute code of the author, and `suite.measure.confined`
confines the process that runs the network.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suite import models
from suite import pack as packing
from suite.graph import Graph
from suite.measure import archive, counting, products
from suite.measure.archive import Kind
from suite.pack.export import OnnxModule
from suite.plan import PruningPlan

Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network and its file.

    input_shape, batch   (C, H, W) and N, if the file fixes them
    packed, header       of a packed network of this suite
    """

    name: str
    kind: Kind
    module: nn.Module
    params: int
    input_shape: Shape | None = None
    batch: int | None = None
    packed: packing.PackedNetwork | None = None
    header: dict[str, Any] | None = None

    def macs(self, shape: Shape) -> int:
        """Count one image's MACs in two ways; a fixed batch is run as a whole."""
        count = self.batch or 1
        images = torch.zeros(count, *shape)
        if self.packed is not None:
            return counting.count_macs(packing.per_group(self.packed), shape).macs
        if self.kind == "onnx":
            return products.macs_of_onnx(Path(self.name), images) // count
        return products.macs_of_run(self.module, images) // count


def load(name: str, *, trust: bool = False) -> Network:
    """Load the network in the file `name`.

    trust  load parts that execute code of the file's author, too
    Raises FileNotFoundError, and ValueError in one line if the file has no network or would execute code.
    """
    path = Path(name)
    kind = archive.kind_of(path)
    try:
        network = _loaded(path, kind, trust=trust)
    except Exception as error:  # torch, ONNX and protobuf raise errors of many classes on files of other people
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise ValueError(f"{name} cannot be read as a network: {why}") from error
    flush_denormals(*(module for module in (network.module, network.packed) if module is not None))
    return network


def _loaded(path: Path, kind: Kind, *, trust: bool) -> Network:
    if kind == "packed":
        return _packed(path)
    if kind == "torchscript":
        return _torchscript(path, trust=trust)
    return _exported(path, trust=trust) if kind == "exported" else _onnx(path)


@torch.no_grad()
def flush_denormals(*modules: nn.Module) -> None:
    """Set weights below the smallest normal number to 0, in place.

    A CPU multiplies by such numbers up to a hundred times as slowly. Training with weight decay leaves them in dead filters.
    """
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                denormal = tensor.abs() < torch.finfo(tensor.dtype).tiny
                if bool((denormal & (tensor != 0)).any()):
                    tensor[denormal] = 0


def save_dense(name: str, classes: int, shape: Shape, path: Path) -> None:
    """Write the suite's model `name` with fresh weights as a packed network of full width.

    Latency does not depend on the weights. Raises ValueError if the name is unknown.
    """
    model = models.build(name, classes).eval()
    packed = packing.pack(model, Graph(model, shape), PruningPlan({}))
    packing.save(packed, path, model=name, classes=classes, input_shape=shape, about={})


def graph_and_plan(network: Network) -> tuple[Graph, PruningPlan]:
    """Return the full network's graph and the plan of a packed network."""
    assert network.packed is not None
    assert network.header is not None
    header = network.header
    return Graph(models.build(header["model"], header["classes"]), header["input_shape"]), network.packed.plan


def _packed(path: Path) -> Network:
    packed, header = packing.load(path), packing.header(path)
    c, h, w = header["input_shape"]
    return Network(
        name=str(path),
        kind="packed",
        module=packing.per_group(packed),
        params=counting.count_params(packed),
        input_shape=(c, h, w),
        packed=packed,
        header=header,
    )


def _torchscript(path: Path, *, trust: bool) -> Network:
    if not trust:
        archive.check_script(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated, and its files are still read
        module = torch.jit.load(str(path), map_location="cpu").eval()
    params = _numbers(module.parameters()) or _frozen_numbers(module)
    return Network(name=str(path), kind="torchscript", module=module, params=params)


def _exported(path: Path, *, trust: bool) -> Network:
    with path.open("rb") if trust else archive.checked_program(path) as file:
        program = torch.export.load(file)
    inputs = [value for value in program.graph.find_nodes(op="placeholder") if value.name in _inputs(program)]
    if len(inputs) != 1 or not isinstance(inputs[0].meta.get("val"), Tensor):
        raise ValueError(f"{path} takes {len(inputs)} inputs; a network to measure takes one batch of images")
    batch, *shape = inputs[0].meta["val"].shape
    module = program.module()
    for name in ("train", "eval"):  # both raise: an exported program has one mode
        setattr(module, name, lambda mode=True: module)
    return Network(
        name=str(path),
        kind="exported",
        module=module,
        params=_numbers(program.parameters()) or _numbers(b for b in program.buffers() if b.is_floating_point()),
        input_shape=_fixed(shape),
        batch=batch if isinstance(batch, int) else None,
    )


def _inputs(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    return tuple(str(name) for name in program.graph_signature.user_inputs)


def _onnx(path: Path) -> Network:
    import onnx

    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and onnx have error classes of their own, none of them a ValueError
        why = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{path} is no network that is understood (packed, TorchScript, exported program, ONNX): {why}"
        ) from error
    module = OnnxModule(path)
    batch, *shape = module.input.shape or [None]
    return Network(
        name=str(path),
        kind="onnx",
        module=module,
        params=products.onnx_params(model.graph),
        input_shape=_fixed(shape),
        batch=batch if isinstance(batch, int) else None,
    )


def _fixed(shape: Iterable[Any]) -> Shape | None:
    sizes = tuple(shape)
    if len(sizes) == 3 and all(isinstance(size, int) for size in sizes):
        return sizes[0], sizes[1], sizes[2]
    return None


def _numbers(tensors: Iterable[Tensor]) -> int:
    """Count the elements; a tensor of several names counts once."""
    places = {
        (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape): tensor for tensor in tensors
    }
    return sum(tensor.numel() for tensor in places.values())


def _frozen_numbers(module: torch.jit.ScriptModule) -> int:
    """Count the floating-point constants of a frozen network, which has no parameters."""
    graph: Any = module.graph
    constants = [node.output().toIValue() for node in graph.findAllNodes("prim::Constant")]
    return _numbers(value for value in constants if isinstance(value, Tensor) and value.is_floating_point())


def check_fits(network: Network, shape: Shape) -> int:
    """Return the number of logits for an image of this shape.

    Raises ValueError if the network takes no such images, or returns no logits.
    """
    if network.input_shape not in (None, shape):
        raise ValueError(
            f"{network.name} takes images of {list(network.input_shape or ())}, not {list(shape)}: change --shape or --dataset"
        )
    try:
        with torch.inference_mode():
            logits = network.module(torch.zeros(network.batch or 1, *shape))
    except Exception as error:  # each runtime has its own error class
        why = " ".join(str(error).split())[-160:]
        raise ValueError(f"{network.name} takes no images of {list(shape)}: {why}") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != (network.batch or 1):
        output = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{network.name} gives no logits [N, classes] but {output}; it is no classifier")
    return logits.shape[1]


class PaddedModule(nn.Module):
    """A network of a fixed batch; smaller batches are padded with zeros."""

    def __init__(self, module: nn.Module, batch: int) -> None:
        super().__init__()
        self.module, self.batch = module, batch

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the images, without those of the padding."""
        missing = images.new_zeros(self.batch - len(images), *images.shape[1:])
        return self.module(torch.cat([images, missing]))[: len(images)]
