"""Mixed precision and memory layout of training, checked against the device."""

from __future__ import annotations

import contextlib
import functools
import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from suite import private_api
from suite.schedule import Compute

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CPU_FLAGS = {"bf16": ("amx_bf16", "avx512_bf16"), "fp16": ("amx_fp16", "avx512_fp16")}
"""Flags of a CPU with matrix instructions in this precision; torch computes without them, only more slowly."""


class Arithmetic:
    """Autocast, loss scale and layout of one training.

    Raises ValueError if the device lacks the precision.
    """

    def __init__(self, compute: Compute, device: torch.device) -> None:
        require(compute.precision, device)
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
        if not self.mixed:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.compute.precision])

    def images(self, images: Tensor) -> Tensor:
        """Return the images [B, C, H, W] in the layout."""
        return images.contiguous(memory_format=self.layout)

    def logits(self, logits: Tensor) -> Tensor:
        """Return the logits in fp32 if they come from autocast."""
        return logits.float() if self.mixed else logits


def lay_out(model: nn.Module, layout: torch.memory_format) -> None:
    """Give the 4-d weights of a model this memory format, in place."""
    if all(p.is_contiguous(memory_format=layout) for p in model.parameters() if p.ndim == 4):
        return
    model.to(memory_format=layout)


def require(precision: str, device: torch.device) -> None:
    """Raise ValueError if the device lacks the precision; warn if a CPU only emulates it."""
    if precision == "fp32":
        return
    if device.type == "cuda":
        if precision == "bf16" and torch.cuda.get_device_capability(device) < (8, 0):
            raise ValueError(
                f"precision = 'bf16': {torch.cuda.get_device_name(device)} has no bf16 units; take 'fp16' or 'fp32'"
            )
        return
    if not private_api.cpu_convolves(precision):
        raise ValueError(
            f"precision = {precision!r}: this CPU cannot convolve in it; take 'fp32' with layout 'channels_last'"
        )
    if not cpu_flags() & set(CPU_FLAGS[precision]):
        log.warning(
            "this CPU has none of %s: %s is computed, but slower than fp32", ", ".join(CPU_FLAGS[precision]), precision
        )


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Return the instruction sets of this CPU, as Linux lists them; none elsewhere."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    return frozenset()
