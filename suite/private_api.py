"""All private functions of libraries that the suite uses.

| function | checked with | without it |
|---|---|---|
| `torch.ops.mkldnn`: `_convolution_pointwise(_)`, `_reorder_convolution_weight` | torch 2.14.1 | `F.conv2d` |
| `torch.ops.mkldnn`: `_is_mkldnn_bf16_supported`, `_is_mkldnn_fp16_supported` | torch 2.14.1 | both are taken as supported |
| `torch.cudnn_convolution_relu`, `torch.cudnn_convolution_add_relu` (not documented) | torch 2.14.1 | `F.conv2d` |
| `torch.profiler`'s `kineto_results` | torch 2.14.1 | ValueError: peak memory on a CPU has no other source |
| `submitit.slurm.slurm._make_sbatch_string` | submitit 1.5.4 | the parameters of that version |

`tests/test_private_api.py` calls each of them, and each caller without it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import re
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)
SBATCH_PARAMETERS = frozenset(
    re.findall(
        r"\w+",
        "account additional_parameters array_parallelism command comment constraint cpus_per_gpu cpus_per_task dependency "
        "exclude exclusive folder gpus_per_node gpus_per_task gres job_name mail_type mail_user map_count mem mem_per_cpu "
        "mem_per_gpu nodelist nodes ntasks_per_node num_gpus partition qos setup signal_delay_s srun_args stderr_to_stdout "
        "teardown time use_srun wckey",
    )
)
"""Parameters of submitit 1.5.4."""


def sbatch_parameters() -> frozenset[str]:
    """Return the parameters of submitit's SLURM executor.

    If the function is missing: those of version 1.5.4.
    """
    function = getattr(importlib.import_module("submitit.slurm.slurm"), "_make_sbatch_string", None)
    return frozenset(inspect.signature(function).parameters) if function else SBATCH_PARAMETERS


# ---- oneDNN: convolution, bias, sum and ReLU in one pass ---------------------------------------------------------------

Window = tuple[Any, Any, Any, int]
"""Padding, stride, dilation and groups of a convolution, in the order of oneDNN's operators."""


@functools.cache
def has_onednn() -> bool:
    """Return True if oneDNN's fused operators compute a small convolution as `F.conv2d` does."""
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight, bias, window = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1), torch.ones(1), ([0, 0], [1, 1], [1, 1], 1)
    try:
        blocked = onednn_weight(weight, window, [*x.shape])
        outputs = [onednn_convolution(x, blocked, bias, window, relu=True)]
        for in_place in (False, True):
            arguments = (x, torch.ones_like(x), blocked, bias, window)
            outputs.append(onednn_convolution_add(*arguments, relu=True, in_place=in_place) - 1)
    except (AttributeError, TypeError, RuntimeError) as error:  # missing, or with other parameters
        log.warning("oneDNN's fused operators do not work with torch %s: %s", torch.__version__, error)
        return False
    return all(torch.equal(output, torch.full_like(x, 2)) for output in outputs)


def onednn_weight(weight: Tensor, window: Window, input_shape: list[int]) -> Tensor:
    """Return the weight in oneDNN's blocked layout for inputs of this shape."""
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *window, input_shape)


def onednn_convolution(x: Tensor, weight: Tensor, bias: Tensor, window: Window, *, relu: bool) -> Tensor:
    """Return convolution and bias, with a ReLU if `relu`."""
    attribute = "relu" if relu else "none"
    return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *window, attribute, [None], "")


def onednn_convolution_add(
    x: Tensor, addend: Tensor, weight: Tensor, bias: Tensor, window: Window, *, relu: bool, in_place: bool
) -> Tensor:
    """Return convolution, bias and addend, with a ReLU if `relu`; `in_place` overwrites the addend."""
    then: tuple[Any, ...] = ("add", 1.0, "relu" if relu else None, [], "")
    if in_place:
        return torch.ops.mkldnn._convolution_pointwise_(addend, x, weight, bias, *window, *then)
    return torch.ops.mkldnn._convolution_pointwise(x, addend, weight, bias, *window, *then)


# ---- cuDNN: the same on a GPU ----------------------------------------------------------------------------------------


def has_cudnn() -> bool:
    """Return True if torch has cuDNN and its two fused operators."""
    names = ("cudnn_convolution_relu", "cudnn_convolution_add_relu")
    return torch.backends.cudnn.is_available() and all(hasattr(torch, name) for name in names)


def cudnn_convolution_relu(x: Tensor, weight: Tensor, bias: Tensor, window: Window, addend: Tensor | None) -> Tensor:
    """Return convolution, bias, addend and ReLU. Raises RuntimeError for shapes that cuDNN cannot fuse."""
    padding, stride, dilation, groups = window
    if addend is None:
        return torch.cudnn_convolution_relu(x, weight, bias, stride, padding, dilation, groups)
    return torch.cudnn_convolution_add_relu(x, weight, addend, 1.0, bias, stride, padding, dilation, groups)


# ---- torch's profiler ------------------------------------------------------------------------------------------------


def memory_changes(profiler: torch.profiler.profile) -> list[int]:
    """Return the bytes of each allocation, negative for a release, in the order of time.

    Raises ValueError if this version of torch keeps no list of memory events.
    """
    results = getattr(profiler.profiler, "kineto_results", None)
    if results is None:
        raise ValueError(
            f"torch {torch.__version__} keeps no memory events: peak memory is measured with torch 2.14 only"
        )
    events = [event for event in results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
