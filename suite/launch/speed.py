"""Seconds of an image in training, and the size of a network.

The seconds are stated for a GPU, and probed on a CPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn

from suite import arithmetic, models, registry
from suite.graph import Graph

BACKWARD = 3
"""Forward passes that a training step costs."""
PROBE_MACS = 6e8
"""Of a probed step, forward and backward. The batch follows from it: 2 to 256 images, so that memory stays small."""
PROBE_STEPS = 3
PROBED = 4
"""Networks that are probed at most."""
CPU_MACS_PER_S = 2e10
"""Of a thread in training; stated, for networks that are not probed."""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Training speed of a device.

    macs_per_s  precision -> MACs of training (forward and backward) a second
    layer_s     least seconds of a step for each convolution and linear layer, which small networks do not get below
    """

    device: str
    macs_per_s: dict[str, float]
    layer_s: float
    source: str

    def image_s(self, size: Size, precision: str, batch: int) -> float:
        """Return the seconds of an image in training."""
        return max(BACKWARD * size.macs / self.macs_per_s[precision], self.layer_s * size.layers / batch)


_RESNET50_MACS = BACKWARD * 4_089_184_256
GPU = Throughput(
    device="NVIDIA A100 80GB",
    macs_per_s={"fp32": 938 * _RESNET50_MACS, "bf16": 2470 * _RESNET50_MACS, "fp16": 2470 * _RESNET50_MACS},
    layer_s=6e-4,
    source="NVIDIA DeepLearningExamples, ResNet-50 v1.5: 938 images/s in TF32, 2470 in mixed precision; at least 0.6 ms a step "
    "for each layer (ours)",
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Size of a network.

    macs     of the forward pass of an image
    layers   convolutions and linear layers
    bytes    of the weights in fp32
    modules  names of all modules, as in `Graph.modules`
    convs    names of the layers with filters to remove
    """

    macs: int
    layers: int
    bytes: int
    modules: tuple[str, ...]
    convs: tuple[str, ...]


@registry.cached
def size_of(model: str, classes: int, input_shape: tuple[int, int, int]) -> Size:
    """Return the size of a network.

    It is built and traced on torch's meta device, without values; with values if that fails. Raises ValueError with the reason if
    it cannot be traced.
    """
    try:
        with torch.device("meta"):
            network = models.build(model, classes)
        return _size(network, input_shape)
    except (ValueError, RuntimeError, AssertionError):  # torch's NotImplementedError is a RuntimeError
        return _size(models.build(model, classes), input_shape)


def _size(network: nn.Module, input_shape: tuple[int, int, int]) -> Size:
    tensors, graph = network.state_dict().values(), Graph(network, input_shape)
    return Size(
        macs=graph.dense_macs.total,
        layers=sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in network.modules()),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        modules=tuple(graph.modules),
        convs=tuple(graph.convs),
    )


# ---- on a CPU ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """Network in training: model, classes, input shape, precision."""

    model: str
    classes: int
    input_shape: tuple[int, int, int]
    precision: str

    @property
    def size(self) -> Size:
        """Size of the network."""
        return size_of(self.model, self.classes, self.input_shape)


def probe(networks: Iterable[Network], *, threads: int, jobs: int) -> dict[Network, float]:
    """Return the seconds of an image in training steps on this CPU.

    networks  dense, the most important ones first; `PROBED` of them are probed, unless one image has too many MACs
    jobs      networks that train side by side, each with `threads` threads
    """
    small = [network for network in networks if BACKWARD * network.size.macs <= PROBE_MACS][:PROBED]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with ThreadPoolExecutor(jobs) as pool:
            return {network: statistics.mean(pool.map(_image_s, [network] * jobs)) for network in small}
    finally:
        torch.set_num_threads(before)


def _image_s(network: Network) -> float:
    """Return the seconds of an image in the fastest of a few training steps.

    A single thread counts its CPU time, which other processes on the machine prolong less.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    model = models.build(network.model, network.classes).train()
    batch = min(max(2, int(PROBE_MACS / (BACKWARD * network.size.macs))), 256)
    images, labels = torch.rand(batch, *network.input_shape), torch.zeros(batch, dtype=torch.int64)
    times = []
    for _ in range(PROBE_STEPS):
        began = clock()
        with arithmetic.mixed(network.precision, images.device):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        with torch.no_grad():  # as an optimizer does, whose first step imports torch's compiler, which takes seconds
            for weight in model.parameters():
                if weight.grad is not None:
                    weight.sub_(weight.grad, alpha=0.0)
        model.zero_grad()
        times.append(clock() - began)
    return min(times) / batch
