"""Peak memory of a network in one forward pass."""

from __future__ import annotations

import itertools
import os

import torch
from torch import Tensor, nn

from suite.private_api import memory_changes

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler reports on stderr that there is no GPU


@torch.inference_mode()
def peak_bytes(network: nn.Module, images: Tensor) -> int:
    """Return the bytes of the weights plus the peak of a forward pass, without `images`."""
    weights = sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))
    network(images)  # the first pass also allocates what stays
    return weights + (_on_gpu(network, images) if images.is_cuda else _on_cpu(network, images))


def _on_gpu(network: nn.Module, images: Tensor) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    network(images)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _on_cpu(network: nn.Module, images: Tensor) -> int:
    """Sum the profiler's allocations and releases, those inside a convolution too; return the peak."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        network(images)
    return max(0, *itertools.accumulate(memory_changes(profiler), initial=0))
