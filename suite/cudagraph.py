"""CUDA graphs of forward passes and training steps: captured once, replayed without launch cost."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

Run = Callable[[], object]
Inputs = tuple[Tensor, ...]

EAGER_STEPS = 3
"""Eager runs before a capture: they create the optimizer's state, and libraries choose their algorithms in them."""


def eagerly(run: Run) -> None:
    """Run once on a side stream, as a later capture requires."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)


@torch.inference_mode()
def captured(run: Run) -> Run:
    """Return a function that replays `run`, a forward pass, as a CUDA graph."""
    for _ in range(EAGER_STEPS):
        eagerly(run)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()

    def replay() -> Run:
        graph.replay()
        return run  # a reference: the graph reads the memory of the network and the images, and does not own it

    return replay


class CapturedSteps:
    """Training steps of independent runs, captured together after `EAGER_STEPS` eager calls, then replayed.

    Each run's step is a branch of one CUDA graph, on a stream of its own, so that small kernels of several runs fill the device.
    All calls have inputs of the same shapes. `generators` are those on the device that any step draws from.
    """

    def __init__(self, steps: Sequence[Callable[..., None]], generators: Iterable[torch.Generator] = ()) -> None:
        self.steps = tuple(steps)
        self.generators = tuple(generators)
        self.eager_left = EAGER_STEPS
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Inputs, ...] = ()

    def __call__(self, *inputs: Inputs) -> None:
        """Run or replay one step of each run, on the run's own inputs."""
        if self.eager_left:
            self.eager_left -= 1
            for step, tensors in zip(self.steps, inputs, strict=True):
                eagerly(functools.partial(step, *tensors))
            return
        if self.graph is None:
            self.graph = self._capture(inputs)
        for own, tensors in zip(self.inputs, inputs, strict=True):
            for static, value in zip(own, tensors, strict=True):
                static.copy_(value)
        self.graph.replay()

    def _capture(self, inputs: tuple[Inputs, ...]) -> torch.cuda.CUDAGraph:
        """Record one step of each run, on copies of the inputs, without running the steps."""
        self.inputs = tuple(tuple(tensor.clone() for tensor in tensors) for tensors in inputs)
        branches = [torch.cuda.Stream() for _ in self.steps[1:]]
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        # Other threads, such as a loader's that pins memory, may go on calling CUDA meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            trunk = torch.cuda.current_stream()
            for branch in branches:
                branch.wait_stream(trunk)
            self.steps[0](*self.inputs[0])
            for branch, step, tensors in zip(branches, self.steps[1:], self.inputs[1:], strict=True):
                with torch.cuda.stream(branch):
                    step(*tensors)
            for branch in branches:
                trunk.wait_stream(branch)
        return graph
