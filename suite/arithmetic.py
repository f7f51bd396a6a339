"""Mixed precision and memory layout of training, checked against the device."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from suite.schedule import Compute

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CPU_FLAGS = {"bf16": ("amx_bf16", "avx512_bf16"), "fp16": ("amx_fp16", "avx512_fp16")}
"""Flags of a CPU with instructions for products in this precision; without them, products are emulated."""
_PRODUCTS = (torch.conv2d, torch.conv_transpose2d, F.linear, torch.matmul, torch.bmm)


class _RoundedProducts(TorchFunctionMode):
    """Products of numbers of `dtype` with sums in fp32, rounded to `dtype`.

    They equal those of the instructions up to the order of sums. Without the instructions torch has no fast convolution in bf16
    and fp16, in some builds none at all.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function not in _PRODUCTS:
            return function(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            rounded = {name: self._rounded(value) for name, value in (kwargs or {}).items()}
            return function(*map(self._rounded, args), **rounded).to(self.dtype)

    def _rounded(self, value: Any) -> Any:
        return value.to(self.dtype).float() if isinstance(value, Tensor) else value


class Arithmetic:
    """Autocast, loss scale and layout of one training.

    Raises ValueError if the device lacks the precision.
    """

    def __init__(self, compute: Compute, device: torch.device) -> None:
        require(compute.precision, device)
        if line := emulation(compute.precision, device):
            log.warning("%s", line)
        self.compute = compute
        self.device = device
        self.mixed = compute.precision != "fp32"
        self.layout = LAYOUTS[compute.layout]
        self.scaler = torch.amp.GradScaler(device.type, enabled=compute.precision == "fp16")

    @property
    def loss_scale(self) -> float:
        """Factor of the loss before its backward pass; 1 but in fp16."""
        return self.scaler.get_scale()

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context of forward passes."""
        return mixed(self.compute.precision, self.device)

    def images(self, images: Tensor) -> Tensor:
        """Return the images [B, C, H, W] in the layout."""
        return images.contiguous(memory_format=self.layout)

    def logits(self, logits: Tensor) -> Tensor:
        """Return the logits in fp32 if they come from autocast."""
        return logits.float() if self.mixed else logits


@contextlib.contextmanager
def mixed(precision: str, device: torch.device) -> Iterator[None]:
    """Run forward passes in a precision."""
    if precision == "fp32":
        yield
        return
    emulated = _RoundedProducts(DTYPES[precision]) if emulation(precision, device) else contextlib.nullcontext()
    with torch.autocast(device.type, DTYPES[precision]), emulated:
        yield


def lay_out(model: nn.Module, layout: torch.memory_format) -> None:
    """Give the 4-d weights of a model this memory format, in place."""
    if all(p.is_contiguous(memory_format=layout) for p in model.parameters() if p.ndim == 4):
        return
    model.to(memory_format=layout)


def require(precision: str, device: torch.device) -> None:
    """Raise ValueError if the device lacks the precision."""
    if device.type == "cuda" and precision == "bf16" and torch.cuda.get_device_capability(device) < (8, 0):
        raise ValueError(
            f"precision = 'bf16': {torch.cuda.get_device_name(device)} has no bf16 units; take 'fp16' or 'fp32'"
        )


def emulation(precision: str, device: torch.device) -> str:
    """Return a line about a precision that a CPU only emulates; else ""."""
    if device.type == "cuda" or precision == "fp32" or computes(precision):
        return ""
    flags = ", ".join(CPU_FLAGS[precision])
    return f"this CPU has none of {flags}: {precision} is emulated and not faster than fp32 in the same layout"


def computes(precision: str) -> bool:
    """Return True if this CPU has instructions for products in this precision."""
    return precision == "fp32" or bool(cpu_flags() & set(CPU_FLAGS[precision]))


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Return the instruction sets of this CPU, as Linux lists them; none elsewhere."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    return frozenset()
