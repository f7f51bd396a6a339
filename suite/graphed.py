"""Training steps as a captured CUDA graph: a small network's step is then as long as its kernels, without launch cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from suite import distributed
from suite.contract import Learner
from suite.train import Trainer

EAGER_STEPS = 3
"""Steps before the capture: they create the optimizer's state and let libraries choose their algorithms."""


class GraphedTrainer(Trainer):
    """A `Trainer` on a CUDA device whose steps are captured once and replayed.

    It needs batches of one size, as the suite's loaders give, and a learner that is `capturable`. Learning rate and step
    index live on the device; the optimizer is torch's fused one, which reads its rate there.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        device = next(self.model.parameters()).device
        self.index = torch.zeros((), device=device, dtype=torch.int64)
        self.eager_left = EAGER_STEPS
        self.graph: torch.cuda.CUDAGraph | None = None
        self.images: Tensor
        self.labels: Tensor

    def make_optimizer(self) -> torch.optim.SGD:
        """Torch's fused SGD, which reads its rate from the device."""
        self.lr = torch.zeros((), device=next(self.model.parameters()).device)
        return torch.optim.SGD(
            self.model.parameters(),
            lr=self.lr,
            momentum=self.schedule.momentum,
            weight_decay=self.schedule.weight_decay,
            fused=True,
        )

    def advance(self, images: Tensor, labels: Tensor) -> None:
        """One step: the first ones eagerly, on a stream of their own as a capture asks, the others by replay."""
        self.lr.fill_(self.schedule.lr_at(self.step, self.steps_per_epoch))
        self.index.fill_(self.step)
        if self.eager_left:
            self._eager(images, labels)
        else:
            if self.graph is None:
                self._capture(images, labels)
            self.images.copy_(images)
            self.labels.copy_(labels)
            assert self.graph is not None
            self.graph.replay()
        self.step += 1

    def _eager(self, images: Tensor, labels: Tensor) -> None:
        self.eager_left -= 1
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.compute(images, labels, self.lr, self.index)
        torch.cuda.current_stream().wait_stream(stream)

    def _capture(self, images: Tensor, labels: Tensor) -> None:
        """Record one step; recording does not run it."""
        self.images, self.labels = images.clone(), labels.clone()
        self.optimizer.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        for generator in self.learner.generators:
            self.graph.register_generator_state(generator)
        # Other threads, such as a loader's that pins memory, may go on calling CUDA meanwhile.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.compute(self.images, self.labels, self.lr, self.index)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; the rate stays this trainer's own tensor."""
        super().load_state_dict(state)
        for group in self.optimizer.param_groups:
            group.update(lr=self.lr, fused=True, foreach=None)


def make_trainer(model: nn.Module, *arguments: Any, learner: Learner | None = None, **options: Any) -> Trainer:
    """The fastest `Trainer` for this model's device and learner; takes what `Trainer` takes."""
    captures = next(model.parameters()).is_cuda and (learner is None or learner.capturable) and distributed.tasks() == 1
    kind = GraphedTrainer if captures else Trainer
    return kind(model, *arguments, learner=learner, **options)
