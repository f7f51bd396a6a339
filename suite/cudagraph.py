"""CUDA graphs of forward passes and training steps: captured once, replayed without launch cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Run = Callable[[], object]

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


class CapturedStep:
    """A training step, captured after `EAGER_STEPS` eager calls and replayed from then on.

    All calls have inputs of the same shapes. `generators` are those on the device that the step draws from.
    """

    def __init__(self, step: Callable[..., None], generators: Iterable[torch.Generator] = ()) -> None:
        self.step = step
        self.generators = tuple(generators)
        self.eager_left = EAGER_STEPS
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Tensor, ...] = ()

    def __call__(self, *inputs: Tensor) -> None:
        """Run or replay one step."""
        if self.eager_left:
            self.eager_left -= 1
            eagerly(lambda: self.step(*inputs))
            return
        if self.graph is None:
            self.graph = self._capture(*inputs)
        for static, value in zip(self.inputs, inputs, strict=True):
            static.copy_(value)
        self.graph.replay()

    def _capture(self, *inputs: Tensor) -> torch.cuda.CUDAGraph:
        """Record one step on copies of the inputs; recording does not run it."""
        self.inputs = tuple(tensor.clone() for tensor in inputs)
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        # Other threads, such as a loader's that pins memory, may go on calling CUDA meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.step(*self.inputs)
        return graph
