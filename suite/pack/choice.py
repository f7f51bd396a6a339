"""Choices of executions with their timings, stored as JSON beside the weights."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from suite import jsonfile
from suite.files import write_bytes
from suite.plan import Runtime

Layout = Literal["contiguous", "channels_last"]
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PRECISIONS = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The execution of every layer, for one device, precision, batch and runtime.

    layers     layer -> execution
    layer_ms   layer -> execution -> milliseconds, for layers with several timed executions
    layout_ms  layout -> milliseconds of the whole network, if both were timed; in another runtime than torch the candidates
               are networks of one execution ("whole"), and the network of each layer's fastest one ("fastest")
    """

    device: str
    precision: str
    batch: int
    layout: Layout
    layers: dict[str, str]
    layer_ms: dict[str, dict[str, float]]
    layout_ms: dict[str, float]
    runtime: Runtime = "torch"

    @property
    def where(self) -> tuple[str, str, int, Runtime]:
        """Device, precision, batch and runtime of the choice."""
        return self.device, self.precision, self.batch, self.runtime

    def columns(self) -> dict[str, Any]:
        """Return the columns of a row: the layout, and the number of layers per execution."""
        return {"layout": self.layout, "executions": dict(sorted(Counter(self.layers.values()).items()))}


def check_images(images: Tensor, channels: int) -> None:
    """Raise ValueError if the images are no floating-point batch [N, channels, H, W]."""
    if images.ndim != 4 or images.shape[1] != channels or not len(images):
        raise ValueError(f"the images are {list(images.shape)}, and this network takes batches [N, {channels}, H, W]")
    if images.dtype not in PRECISIONS:
        raise ValueError(
            f"the images are {images.dtype}; take {', '.join(map(str, PRECISIONS))}, normalised as in training"
        )


def save_choices(path: str | os.PathLike[str], choices: Sequence[Choice]) -> None:
    """Write the choices to `path`, atomically."""
    content = json.dumps([dataclasses.asdict(choice) for choice in choices], indent=1)
    write_bytes(Path(path), content.encode())


def load_choices(path: str | os.PathLike[str]) -> list[Choice]:
    """Read choices. Raises FileNotFoundError, or ValueError if `save_choices` did not write the file."""
    try:
        return jsonfile.read(Path(path), list[Choice])
    except ValueError as error:
        raise ValueError(
            f"{path} holds no executions of a packed network ({error}); delete it and tune again"
        ) from error
