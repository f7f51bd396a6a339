"""How a packed network is computed in one place, with the timings that it was chosen by; a small JSON beside the weights."""

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

from suite.files import write_bytes

Layout = Literal["contiguous", "channels_last"]
PRECISIONS = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The execution of every layer, for one device, precision and batch.

    layer_ms   layer -> execution -> milliseconds, where there was something to choose; layout_ms  the same of the whole network
    """

    device: str
    precision: str
    batch: int
    layout: Layout
    layers: dict[str, str]
    layer_ms: dict[str, dict[str, float]]
    layout_ms: dict[str, float]

    @property
    def where(self) -> tuple[str, str, int]:
        """What it was made for."""
        return self.device, self.precision, self.batch

    def columns(self) -> dict[str, Any]:
        """What a row says of it: the layout, and how many layers have each execution."""
        return {"layout": self.layout, "executions": dict(sorted(Counter(self.layers.values()).items()))}


def save_choices(path: str | os.PathLike[str], choices: Sequence[Choice]) -> None:
    """Write them to `path`, atomically."""
    content = json.dumps([dataclasses.asdict(choice) for choice in choices], indent=1)
    write_bytes(Path(path), content.encode())


def load_choices(path: str | os.PathLike[str]) -> list[Choice]:
    """What `save_choices` wrote. Raises FileNotFoundError, or ValueError when the file is something else."""
    try:
        stored = json.loads(Path(path).read_text())
        if not isinstance(stored, list):
            raise TypeError(f"a list is expected, not a {type(stored).__name__}")
        return [Choice(**fields) for fields in stored]
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(
            f"{path} holds no executions of a packed network ({error}); delete it and tune again"
        ) from error
