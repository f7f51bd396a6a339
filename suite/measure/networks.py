"""Networks in files of any origin: packed ones of this suite, TorchScript, exported programs, ONNX.

Each is loaded as an ordinary module, images [N, C, H, W] -> logits [N, classes], ready for inference.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from suite import models
from suite import pack as packing
from suite.graph import Graph
from suite.measure import counting, products
from suite.pack.export import OnnxModule
from suite.plan import PruningPlan

Kind = Literal["packed", "torchscript", "exported", "onnx"]
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


def load(name: str) -> Network:
    """Load the network in the file `name`.

    Raises FileNotFoundError, and ValueError if the file has none of the four kinds.
    """
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"{name} does not exist; give a packed, TorchScript, exported (.pt2) or ONNX file")
    try:
        return _reader(path)(path)
    except (RuntimeError, ValueError, KeyError, ImportError) as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise ValueError(f"{name} cannot be read as a network: {why}") from error


def _reader(path: Path) -> Callable[[Path], Network]:
    """Choose a reader by the file's content; its name is not read."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            inside = {name.partition("/")[2] for name in archive.namelist()} | set(archive.namelist())
        if any(name.startswith("code/") for name in inside):
            return _torchscript
        if inside & {"archive_format", "serialized_exported_program.json"}:
            return _exported
        raise ValueError(
            f"{path} holds neither a TorchScript network nor an exported program; weights alone are no network: build the "
            "network and save it with torch.jit.save or torch.export.save"
        )
    try:
        packing.header(path)
        return _packed
    except ValueError:
        return _onnx


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


def _torchscript(path: Path) -> Network:
    module = torch.jit.load(str(path), map_location="cpu").eval()
    params = _numbers(module.parameters()) or _frozen_numbers(module)
    return Network(name=str(path), kind="torchscript", module=module, params=params)


def _exported(path: Path) -> Network:
    with path.open("rb") as file:  # an open file: torch warns of a path without .pt2
        program = torch.export.load(file)
    (image,) = [value for value in program.graph.find_nodes(op="placeholder") if value.name in _inputs(program)]
    batch, *shape = image.meta["val"].shape
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
    batch, *shape = module.input.shape
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
    return Network(
        name=str(path),
        kind="onnx",
        module=module,
        params=sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type in floats),
        input_shape=_fixed(shape),
        batch=batch if isinstance(batch, int) else None,
    )


def _fixed(shape: Iterable[Any]) -> Shape | None:
    sizes = tuple(shape)
    if len(sizes) == 3 and all(isinstance(size, int) for size in sizes):
        return sizes[0], sizes[1], sizes[2]
    return None


def _numbers(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


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
