"""Checkpoints of packed networks: plan, weights and build instructions in one safetensors file."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor, nn

from suite import jsonfile, models
from suite.files import is_of_machine, write_bytes
from suite.graph import Graph
from suite.pack.network import PackedNetwork, pack
from suite.plan import PruningPlan

OWN_CLASS = "class "
"""Beginning of `model` in the header of a network whose class no model file of the suite has."""


def save(
    packed: PackedNetwork,
    path: str | os.PathLike[str],
    *,
    model: str,
    classes: int,
    input_shape: tuple[int, ...],
    about: dict[str, Any],
) -> None:
    """Write plan, weights and header to `path`, atomically; `about` is added to the header.

    Raises ValueError, and writes nothing, if `header` would refuse the file.
    """
    values = {"model": model, "classes": classes, "input_shape": list(input_shape)}
    if own := values.keys() & about.keys():
        raise ValueError(f"{', '.join(sorted(own))} in the header of a packed network is its own: give it another name")
    try:
        text = json.dumps({**values, **about})
        jsonfile.convert(jsonfile.loads(text), Header)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the header of a packed network is JSON, mean and std lists of numbers, labels a list of strings: {error}"
        ) from error
    tensors = {f"weights/{name}": tensor for name, tensor in packed.body.state_dict().items()}
    tensors |= {f"plan/{name}": tensor for name, tensor in packed.plan.to_tensors().items()}
    content = serialise({k: v.contiguous().cpu() for k, v in tensors.items()}, {"packed": text})
    write_bytes(Path(path), content)


Size = Annotated[int, msgspec.Meta(ge=1, le=65_536)]


class Header(TypedDict):
    """Build instructions of a checkpoint; further entries are the caller's."""

    model: str
    classes: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    input_shape: tuple[Size, Size, Size]
    mean: NotRequired[list[float]]
    std: NotRequired[list[float]]
    labels: NotRequired[list[str]]


def header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the header of a checkpoint.

    Raises ValueError in one line if `path` is no packed network.
    """
    try:
        with _opened(path) as file:
            values = jsonfile.loads((file.metadata() or {})["packed"])
        jsonfile.convert(values, Header)
        return values
    except KeyError as error:
        raise ValueError(f"{path} is no packed network of this suite ({error})") from error
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path} is no packed network of this suite: its header is wrong ({error})") from error


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open a safetensors file. Raises ValueError in one line if it is none."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, UnicodeDecodeError, OSError) as error:
        if is_of_machine(error):
            raise
        raise ValueError(f"{path} is no packed network of this suite ({error})") from error


def plan_of(path: str | os.PathLike[str]) -> PruningPlan:
    """Read the settled plan of a checkpoint. Raises ValueError if `path` is no packed network."""
    header(path)
    try:
        return PruningPlan.from_tensors(_tensors(path, "plan/"))
    except (ValueError, TypeError) as error:  # TypeError: a field is missing or unknown
        raise ValueError(f"{path} is no packed network of this suite: its plan is wrong ({error})") from error


def _tensors(path: str | os.PathLike[str], prefix: str) -> dict[str, Tensor]:
    with _opened(path) as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (not a dict)
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def load(
    path: str | os.PathLike[str], device: str | torch.device = "cpu", model: nn.Module | None = None
) -> PackedNetwork:
    """Load a packed network, an ordinary module in eval mode.

    model  a network of the dense network's class with its arguments, needed if no model file of the suite has the class

    Raises FileNotFoundError, or ValueError if the file is no packed network or does not fit its model.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist; a finished run has its packed network in results/work/KEY/")
    if not Path(path).is_file():
        raise ValueError(f"{path} is no regular file")
    about, plan, weights = header(path), plan_of(path), _tensors(path, "weights/")
    precision = next((tensor.dtype for tensor in weights.values() if tensor.is_floating_point()), None)
    if precision is None:
        raise ValueError(f"{path} has no weights")
    name = about["model"]
    if model is None and name.startswith(OWN_CLASS):
        name = name.removeprefix(OWN_CLASS)
        raise ValueError(f"{path} is a pruned {name}: load it by suite.load({str(path)!r}, model={name}(...))")
    try:
        dense = (models.build(name, about["classes"]) if model is None else copy.deepcopy(model).cpu()).to(precision)
        packed = pack(dense, Graph(dense, tuple(about["input_shape"])), plan)
        packed.body.load_state_dict(weights)
    except (RuntimeError, ValueError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} does not fit {name if model is None else type(model).__name__}: {reason}") from error
    return packed.to(device).eval()
