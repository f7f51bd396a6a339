"""The one training loop: base networks, sparse learning and fine-tuning all go through `fit`.

A killed `fit` goes on from its last checkpoint and ends with the same bits on a CPU with the same number of threads: the
batches follow from (seed, epoch), and the checkpoint holds weights, momentum, step, random states and the learner's state.
"""

from __future__ import annotations

import copy
import io
import logging
import math
import random
import time
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite import distributed
from suite.contract import Batch, Learner, Step
from suite.cudagraph import CapturedStep
from suite.data import Loader
from suite.files import write_bytes
from suite.progress import Interrupted, Watch
from suite.schedule import Schedule

log = logging.getLogger(__name__)
History = list[dict[str, float]]


class Diverged(Exception):
    """The loss is no longer finite."""


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators, on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@torch.inference_mode()
def top1_pct(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Share of images whose largest logit is the label, in percent of the images seen by all tasks. Leaves the mode as it was."""
    training = model.training
    model.eval()
    correct = seen = 0
    for images, labels in batches:
        correct += int((model(images).argmax(1) == labels).sum())
        seen += len(labels)
    model.train(training)
    correct, seen = distributed.summed(torch.tensor([correct, seen])).tolist()
    return 100 * correct / seen


class Trainer:
    """One cycle of a schedule on one model: everything that changes from step to step, and its checkpoint.

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
        """Accuracy, model and learner of the best epoch so far, where there is a judge."""
        self.steps_per_epoch = len(batches)
        self.total = schedule.cycle_epochs * self.steps_per_epoch
        self.optimizer = self.make_optimizer()
        self.step = 0
        self.seconds = 0.0
        self.history: History = []
        device = next(model.parameters()).device
        self.tally = torch.zeros(3, dtype=torch.float64, device=device)
        """Loss, correct and seen images of the epoch so far."""

    def make_optimizer(self) -> torch.optim.SGD:
        """SGD as the schedule says."""
        schedule = self.schedule
        return torch.optim.SGD(
            self.model.parameters(), lr=schedule.lr, momentum=schedule.momentum, weight_decay=schedule.weight_decay
        )

    def advance(self, images: Tensor, labels: Tensor) -> None:
        """One step at the schedule's learning rate."""
        lr = self.schedule.lr_at(self.step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.compute(images, labels, lr, self.step)
        self.step += 1

    def compute(self, images: Tensor, labels: Tensor, lr: float | Tensor, index: int | Tensor) -> None:
        """One optimizer step with the learner's hooks around it; nothing in it waits for the device."""
        self.optimizer.zero_grad()
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels)
        penalty = self.learner.penalty()
        (loss if penalty is None else loss + penalty).backward()
        distributed.average(parameter.grad for parameter in self.model.parameters())
        step = Step(self.model, self.optimizer, images, labels, lr, index, self.total, distributed.average)
        self.learner.before_step(step)
        self.optimizer.step()
        self.learner.after_step(step)
        if self.after_step is not None:
            self.after_step()
        with torch.no_grad():
            correct = (logits.argmax(1) == labels).sum()
            self.tally += torch.stack([loss.detach() * len(labels), correct, torch.full_like(correct, len(labels))])

    def end_epoch(self) -> None:
        """Put the epoch's numbers into the history. Raises Diverged when the loss is not finite."""
        self.learner.after_epoch(self.model)
        loss, correct, seen = distributed.summed(self.tally).tolist()
        self.tally.zero_()
        if not math.isfinite(loss):
            raise Diverged(f"the loss became {loss} in epoch {self.step // self.steps_per_epoch}")
        lr = float(self.optimizer.param_groups[0]["lr"])
        entry = {
            "epoch": self.step // self.steps_per_epoch,
            "loss": loss / seen,
            "train_top1_pct": 100 * correct / seen,
        }
        self.history.append({**entry, "lr": lr, **self.learner.metrics()})
        if self.judge is not None:
            accuracy = self.history[-1]["held_out_top1_pct"] = self.judge()
            if entry["epoch"] > self.schedule.keep_after and accuracy > self.best.get("top1_pct", -1.0):
                state = copy.deepcopy({"model": self.model.state_dict(), "learner": self.learner.state_dict()})
                self.best = {"top1_pct": accuracy, **state}

    def take_best(self) -> None:
        """Give the model and the learner the state of the best epoch, where there is a judge."""
        if self.best:
            self.model.load_state_dict(self.best["model"])
            self.learner.load_state_dict(self.best["learner"])

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact continuation needs."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "learner": self.learner.state_dict(),
            "step": self.step,
            "total": self.total,
            "seconds": self.seconds,
            "tally": distributed.summed(self.tally),
            "history": self.history,
            "best": self.best,
            "rng": torch.get_rng_state(),
            "rng_python": random.getstate(),
            "rng_numpy": _numpy_state(),
            "rng_cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["fused"] = None
        self.learner.load_state_dict(state["learner"])
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
        self.captured = CapturedStep(
            lambda images, labels: self.compute(images, labels, self.lr, self.index), self.learner.generators
        )

    def make_optimizer(self) -> torch.optim.SGD:
        """Torch's fused SGD, which reads its rate from the device."""
        return torch.optim.SGD(
            self.model.parameters(),
            lr=self.lr,
            momentum=self.schedule.momentum,
            weight_decay=self.schedule.weight_decay,
            fused=True,
        )

    def advance(self, images: Tensor, labels: Tensor) -> None:
        """One step at the schedule's learning rate."""
        self.lr.fill_(self.schedule.lr_at(self.step, self.steps_per_epoch))
        self.index.fill_(self.step)
        self.captured(images, labels)
        self.step += 1

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; the rate stays this trainer's own tensor."""
        super().load_state_dict(state)
        for group in self.optimizer.param_groups:
            group.update(lr=self.lr, fused=True, foreach=None)


def make_trainer(model: nn.Module, *arguments: Any, learner: Learner | None = None, **options: Any) -> Trainer:
    """The fastest `Trainer` for this model's device and learner; takes what `Trainer` takes."""
    captures = next(model.parameters()).is_cuda and (learner is None or learner.capturable) and distributed.tasks() == 1
    kind = CapturedTrainer if captures else Trainer
    return kind(model, *arguments, learner=learner, **options)


def _numpy_state() -> tuple[Any, ...]:
    """numpy's random state without arrays, so that it loads with `weights_only=True`."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return name, [int(key) for key in keys], *rest


def fit(trainer: Trainer, checkpoint: Path, watch: Watch, *, seed: int, doing: str) -> History:
    """Train to the end, from `checkpoint` if there is one, and return the history: one entry an epoch.

    The checkpoint is written at the end of every epoch and when `watch` says stop. Raises Interrupted after the latter,
    Diverged when the loss is not finite. A damaged checkpoint is set aside and the training starts anew.
    """
    seed_everything(seed)
    with distributed.first_before_others():
        state = load_checkpoint(checkpoint)
    if state is not None:
        trainer.load_state_dict(state)
    trainer.model.train()
    steps, total = trainer.steps_per_epoch, trainer.total
    began = time.monotonic() - trainer.seconds

    def save() -> None:
        trainer.seconds = time.monotonic() - began
        save_checkpoint(checkpoint, trainer.state_dict())

    while trainer.step < total:
        epoch = trainer.step // steps
        for images, labels in trainer.batches.epoch(trainer.first_epoch + epoch, start=trainer.step % steps):
            trainer.advance(images, labels)
            last = trainer.history[-1] if trainer.history else {}
            watch.report(
                doing,
                epoch=epoch + 1,
                epochs=total // steps,
                share=trainer.step / total,
                train_top1_pct=last.get("train_top1_pct"),
            )
            if _must_stop(watch) and trainer.step % steps:
                save()
                raise Interrupted(f"stopped in epoch {epoch + 1} of {total // steps}")
        trainer.end_epoch()
        save()
        if _must_stop(watch) and trainer.step < total:
            raise Interrupted(f"stopped after epoch {epoch + 1} of {total // steps}")
    trainer.take_best()
    return trainer.history


def _must_stop(watch: Watch) -> bool:
    """Whether any task must stop. A signal to one is one to all: the first asks for another start, whoever had the signal."""
    if not distributed.anywhere(watch.must_stop):
        return False
    if distributed.anywhere(watch.signalled.is_set()):
        watch.signalled.set()
    return True


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`, atomically. By way of memory: on a full disk torch would not say what went wrong."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """What `save_checkpoint` wrote, or None. A file that cannot be read is renamed to NAME.damaged and named in the log."""
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if part := archive.testzip():  # torch itself does not look at the checksums
                raise ValueError(f"{part} in it is damaged")
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch.load raises many kinds of errors on a damaged file
        aside = path.with_suffix(path.suffix + ".damaged")
        path.replace(aside)
        log.warning("%s cannot be read (%s); set aside as %s, training starts anew", path, error, aside.name)
        return None
