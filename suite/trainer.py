"""One training with all its state: model, optimizer, learner, loss scale, average, checkpoint."""

from __future__ import annotations

import contextlib
import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite import distributed
from suite.arithmetic import Arithmetic, lay_out
from suite.contract import Learner, Network, Step
from suite.cudagraph import CapturedSteps
from suite.data import Loader
from suite.schedule import Schedule

History = list[dict[str, float]]


class Diverged(Exception):
    """Raised if a loss or a logit is not finite."""


class Average:
    """The exponential moving average of a model's weights and batch-norm statistics."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
        self.mean = {name: value.clone() for name, value in self.live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model's weights by 1 - decay."""
        for name, mean in self.mean.items():
            mean.lerp_(self.live[name], 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and their average."""
        for name, live in self.live.items():
            before = live.clone()
            live.copy_(self.mean[name])
            self.mean[name].copy_(before)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average by name."""
        return dict(self.mean)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        for name, value in self.mean.items():
            value.copy_(state[name])


class Trainer:
    """One cycle of a schedule on one model, with its checkpoint.

    batches      the seeded loader
    schedule     one cycle of it is trained
    learner      a method's hooks, or None
    after_step   called after every step (masked training puts its mask on again)
    first_epoch  of the loader: the epochs of a later cycle have batches of their own
    judge        the accuracy that picks the epoch whose weights `fit` leaves; None keeps the last
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Loader,
        schedule: Schedule,
        *,
        learner: Learner | None = None,
        after_step: Callable[[], None] | None = None,
        judge: Callable[[], float] | None = None,
        first_epoch: int = 0,
    ) -> None:
        self.model = model
        self.batches = batches
        self.schedule = schedule
        self.learner = learner or Learner()
        self.after_step = after_step
        self.judge = judge
        self.first_epoch = first_epoch
        self.best: dict[str, Any] = {}
        """Accuracy, model and learner of the best epoch so far, if there is a judge."""
        self.steps_per_epoch = len(batches)
        self.total = schedule.cycle_epochs * self.steps_per_epoch
        device = next(model.parameters()).device
        self.arithmetic = Arithmetic(schedule.compute, device)
        lay_out(model, self.arithmetic.layout)
        self.network: Network = torch.compile(model) if schedule.compute.compiled else model
        self.optimizer = self.make_optimizer()
        self.average = Average(model, schedule.ema_decay) if schedule.ema_decay else None
        self.step = 0
        self.seconds = 0.0
        self.history: History = []
        self.tally = torch.zeros(3, dtype=torch.float64, device=device)
        """Loss, correct and seen images of the epoch so far."""

    def make_optimizer(self, **options: Any) -> torch.optim.SGD:
        """Return SGD as in the schedule."""
        schedule, parameters = self.schedule, [*self.model.parameters()]
        groups: Any = parameters
        if schedule.decay == "weights":
            weights = [parameter for parameter in parameters if parameter.ndim > 1]
            rest = [parameter for parameter in parameters if parameter.ndim <= 1]
            groups = [{"params": weights}, {"params": rest, "weight_decay": 0.0}]
        settings = {"lr": schedule.lr, "momentum": schedule.momentum, "weight_decay": schedule.weight_decay}
        return torch.optim.SGD(groups, **{**settings, **options})

    def advance(self, images: Tensor, labels: Tensor) -> None:
        """Take one step at the schedule's learning rate."""
        lr = self.schedule.lr_at(self.step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.compute(images, labels, lr, self.step)
        self.step += 1

    def compute(self, images: Tensor, labels: Tensor, lr: float | Tensor, index: int | Tensor) -> None:
        """Take one optimizer step with the learner's hooks around it.

        Nothing waits for the device but in fp16, where a step whose gradients overflow is left out.
        """
        scaler = self.arithmetic.scaler
        images = self.arithmetic.images(images)
        self.optimizer.zero_grad()
        self._backward(images, labels)
        distributed.average(parameter.grad for parameter in self.model.parameters())
        scaler.unscale_(self.optimizer)
        step = Step(
            self.model,
            self.optimizer,
            images,
            labels,
            lr,
            index,
            self.total,
            average=distributed.average,
            loss=lambda network, images, labels: self._loss(self._logits(network, images), labels),
            parts=self.schedule.accumulate,
            loss_scale=self.arithmetic.loss_scale,
        )
        overflows = scaler.is_enabled() and not self._gradient_norm().isfinite()
        if not overflows:
            with self._learner_hook():
                self.learner.before_step(step)
            if self.schedule.clip_norm:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.schedule.clip_norm)
        scaler.step(self.optimizer)
        scaler.update()
        if overflows:
            self.learner.skip_step()
            return
        with self._learner_hook():
            self.learner.after_step(step)
        if self.after_step is not None:
            self.after_step()
        if self.average is not None:
            self.average.update()

    def _backward(self, images: Tensor, labels: Tensor) -> None:
        """Add up the gradients of the batch's parts; the penalty counts once.

        Loss and hits go to the tally.
        """
        parts = self.schedule.accumulate
        if len(labels) % parts:
            raise ValueError(
                f"accumulate = {parts} does not divide a batch of {len(labels)} images on this task; take a divisor"
            )
        for part, (images_BCHW, labels_B) in enumerate(zip(images.chunk(parts), labels.chunk(parts), strict=True)):
            logits = self._logits(self.network, images_BCHW)
            loss = self._loss(logits, labels_B)
            penalty = self.learner.penalty() if part == 0 else None
            total = loss if parts == 1 else loss / parts
            total = total if penalty is None else total + penalty
            self.arithmetic.scaler.scale(total).backward()
            with torch.no_grad():
                correct = (logits.argmax(1) == labels_B).sum()
                seen = torch.full_like(correct, len(labels_B))
                self.tally += torch.stack([loss.detach() * len(labels_B), correct, seen])

    def _logits(self, network: Network, images: Tensor) -> Tensor:
        with self.arithmetic.autocast():
            logits = network(images)
        return self.arithmetic.logits(logits)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.schedule.label_smoothing)

    @contextlib.contextmanager
    def _learner_hook(self) -> Iterator[None]:
        """Turn ValueError into Diverged if loss or weights are not finite."""
        try:
            yield
        except ValueError as error:
            tensors = [self.tally, *self.model.parameters()]
            if all(bool(tensor.isfinite().all()) for tensor in tensors):
                raise
            raise Diverged(f"loss or weights are not finite in epoch {self.step // self.steps_per_epoch}") from error

    def _gradient_norm(self) -> Tensor:
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        return nn.utils.get_total_norm(gradients)

    def end_epoch(self) -> None:
        """Put the epoch's numbers into the history. Raises Diverged if the loss is not finite."""
        loss, correct, seen = distributed.all_sum(self.tally).tolist()
        self.tally.zero_()
        if not math.isfinite(loss):
            raise Diverged(f"the loss became {loss} in epoch {self.step // self.steps_per_epoch}")
        with self._learner_hook():
            self.learner.after_epoch(self.model)
        lr = float(self.optimizer.param_groups[0]["lr"])
        entry = {
            "epoch": self.step // self.steps_per_epoch,
            "loss": loss / seen,
            "train_top1_pct": 100 * correct / seen,
        }
        self.history.append({**entry, "lr": lr, **self.learner.metrics()})
        if self.judge is not None:
            with self.averaged():
                accuracy = self.history[-1]["held_out_top1_pct"] = self.judge()
                if entry["epoch"] > self.schedule.keep_after and accuracy > self.best.get("top1_pct", -1.0):
                    state = copy.deepcopy({"model": self.model.state_dict(), "learner": self.learner.state_dict()})
                    self.best = {"top1_pct": accuracy, **state}

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the model its averaged weights within the context, if there are any."""
        if self.average is not None:
            self.average.swap()
        yield
        if self.average is not None:
            self.average.swap()

    def finish(self) -> None:
        """Give model and learner the state that is kept; the weights become contiguous."""
        if self.best:
            self.model.load_state_dict(self.best["model"])
            self.learner.load_state_dict(self.best["learner"])
        elif self.average is not None:
            self.average.swap()
        lay_out(self.model, torch.contiguous_format)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a bit-exact continuation needs."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "learner": self.learner.state_dict(),
            "scaler": self.arithmetic.scaler.state_dict(),
            "average": self.average.state_dict() if self.average else {},
            "step": self.step,
            "seconds": self.seconds,
            "tally": distributed.all_sum(self.tally),
            "history": self.history,
            "best": self.best,
            "rng": torch.get_rng_state(),
            "rng_python": random.getstate(),
            "rng_numpy": _numpy_state(),
            "rng_cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["fused"] = None
        self.learner.load_state_dict(state["learner"])
        self.arithmetic.scaler.load_state_dict(state.get("scaler", {}))
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self.tally.copy_(state["tally"] if distributed.is_first() else torch.zeros(3))
        self.best = state["best"]
        torch.set_rng_state(state["rng"].cpu())
        random.setstate(state["rng_python"])
        np.random.set_state(state["rng_numpy"])
        if state["rng_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["rng_cuda"][0].cpu())


class CapturedTrainer(Trainer):
    """A `Trainer` on a CUDA device whose steps are captured once and replayed.

    Its batches have one size, as the suite's loaders give, and its learner is `capturable`. Learning rate and step index live
    on the device; the optimizer is torch's fused SGD, which reads its rate there.
    """

    def __init__(self, model: nn.Module, *arguments: Any, **options: Any) -> None:
        device = next(model.parameters()).device
        self.lr = torch.zeros((), device=device)
        self.index = torch.zeros((), device=device, dtype=torch.int64)
        super().__init__(model, *arguments, **options)
        self.captured = CapturedSteps([self.take], self.learner.generators)

    def make_optimizer(self, **options: Any) -> torch.optim.SGD:
        """Return torch's fused SGD, which reads its rate from the device."""
        return super().make_optimizer(lr=self.lr, fused=True, **options)

    def advance(self, images: Tensor, labels: Tensor) -> None:
        """Take one step at the schedule's learning rate."""
        self.set_rate()
        self.captured((images, labels))
        self.step += 1

    def set_rate(self) -> None:
        """Write learning rate and index of the next step to the device."""
        self.lr.fill_(self.schedule.lr_at(self.step, self.steps_per_epoch))
        self.index.fill_(self.step)

    def take(self, images: Tensor, labels: Tensor) -> None:
        """Compute one step with the rate and index on the device."""
        self.compute(images, labels, self.lr, self.index)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; the rate stays this trainer's own tensor."""
        super().load_state_dict(state)
        for group in self.optimizer.param_groups:
            group.update(lr=self.lr, fused=True, foreach=None)


def make_trainer(
    model: nn.Module, batches: Loader, schedule: Schedule, *, learner: Learner | None = None, **options: Any
) -> Trainer:
    """Return the fastest kind of `Trainer` for this device, learner and precision."""
    captures = (
        next(model.parameters()).is_cuda
        and (learner is None or learner.capturable)
        and distributed.tasks() == 1
        and schedule.compute.precision != "fp16"  # the loss scale waits for the device
    )
    kind = CapturedTrainer if captures else Trainer
    return kind(model, batches, schedule, learner=learner, **options)


def _numpy_state() -> tuple[Any, ...]:
    """Return numpy's random state without arrays, so that it loads with `weights_only=True`."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return name, [int(key) for key in keys], *rest
