"""Checkpoints of packed networks: plan, weights and build instructions in one safetensors file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from suite import models
from suite.files import write_bytes
from suite.graph import Graph
from suite.pack.network import PackedNetwork, pack
from suite.plan import PruningPlan


def save(
    packed: PackedNetwork, path: Path, *, model: str, classes: int, input_shape: tuple[int, ...], about: dict[str, Any]
) -> None:
    """Write plan, weights and header to `path`, atomically; `about` is added to the header."""
    tensors = {f"weights/{name}": tensor for name, tensor in packed.body.state_dict().items()}
    tensors |= {f"plan/{name}": tensor for name, tensor in packed.plan.to_tensors().items()}
    header = {"model": model, "classes": classes, "input_shape": list(input_shape), **about}
    content = serialise({k: v.contiguous().cpu() for k, v in tensors.items()}, {"packed": json.dumps(header)})
    write_bytes(path, content)


def header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the header of a checkpoint. Raises ValueError if `path` is no packed network."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {})["packed"])
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no packed network of this suite ({error})") from error


def plan_of(path: str | os.PathLike[str]) -> PruningPlan:
    """Read the settled plan of a checkpoint. Raises ValueError if `path` is no packed network."""
    header(path)
    return PruningPlan.from_tensors(_tensors(path, "plan/"))


def _tensors(path: str | os.PathLike[str], prefix: str) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (not a dict)
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> PackedNetwork:
    """Load a packed network, an ordinary module in eval mode.

    Raises FileNotFoundError, or ValueError if the file is no packed network or does not fit its model.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; a finished run has its packed network in results/work/KEY/")
    about, plan, weights = header(path), plan_of(path), _tensors(path, "weights/")
    model = models.build(about["model"], about["classes"])
    model.to(next(v.dtype for v in weights.values() if v.is_floating_point()))
    packed = pack(model, Graph(model, tuple(about["input_shape"])), plan)
    try:
        packed.body.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {about['model']}: {error}") from error
    return packed.to(device).eval()
