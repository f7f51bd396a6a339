"""Settings of a latency measurement: duration (`Protocol`) and torch's own switches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from suite.plan import Timing

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Duration of a measurement in one process, and the number of processes.

    precision   wanted half-width of the ratio's interval, as a share of the ratio; None: measure for `seconds`
    attempts    measurements at most in a process, until the null test passes
    """

    warmup_s: float
    seconds: float
    min_blocks: int
    precision: float | None
    attempts: int = 3
    processes: int = 1


def protocol(timing: Timing) -> Protocol:
    """Return the protocol of a timing.

    "quick" takes about a second. "full" measures in three processes, in each until the interval is narrow (1 % on a GPU, 3 % on
    a CPU), for 30 s at most; 30 blocks are measured even if they take longer.
    """
    if timing.protocol == "quick":
        return Protocol(warmup_s=0.05, seconds=0.6, min_blocks=18, precision=None)
    narrow = 0.01 if timing.device == "cuda" else 0.03
    return Protocol(warmup_s=0.5, seconds=30, min_blocks=30, precision=narrow, processes=3)


def check_device(timing: Timing) -> None:
    """Raise ValueError if the timing's device is missing."""
    if timing.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "latency on cuda was asked for, and torch finds no CUDA device here; run it where there is one"
        )


def set_up_torch(threads: int) -> None:
    """Set torch's number of threads, and switch TF32 off: fp32 means fp32."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@contextlib.contextmanager
def measuring(threads: int) -> Iterator[None]:
    """Set threads, switch TF32 off, let the CPU flush denormal numbers; restore all.

    The flush reaches the calling thread, and threads that start inside.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    switches, before = (cudnn.allow_tf32, matmul.allow_tf32), torch.get_num_threads()
    flushes = sys.float_info.min / 2 == 0  # torch has no getter
    torch.set_flush_denormal(True)  # first: threads that start below inherit it
    try:
        set_up_torch(threads)
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = switches
        torch.set_num_threads(before)
        torch.set_flush_denormal(flushes)
