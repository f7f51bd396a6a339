"""Captured training steps compute what eager ones do, and go on after an interruption."""

from __future__ import annotations

import copy

import pytest
import torch

from suite import data, methods, models
from suite.contract import Task
from suite.graph import Graph
from suite.graphed import EAGER_STEPS, GraphedTrainer, make_trainer
from suite.schedule import Schedule
from suite.train import Trainer

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SCHEDULE = Schedule(epochs=2, lr=0.05, weight_decay=1e-3, batch=64, epoch_images=640)
METHODS = [None, *(name for name, kind in methods.discover().items() if getattr(kind, "learns", False))]


def build(kind: type[Trainer], method: str | None, device: str) -> Trainer:
    torch.manual_seed(0)
    model = models.build("resnet8", 10).to(device)
    batches = data.load("digits").train("all", batch=64, seed=0, device=device, limit=SCHEDULE.epoch_images)
    learner = None
    if method is not None:
        task = Task(train_epoch=batches.epoch, samples=lambda n: next(batches.epoch(0)), seed=0)
        learner = methods.get(method).for_task("digits", "resnet8").learner(model, Graph(model, (3, 32, 32)), task)
    return kind(model, batches, SCHEDULE, learner=learner)


def advance(trainer: Trainer, steps: int) -> None:
    for images, labels in trainer.batches.epoch(
        trainer.step // trainer.steps_per_epoch, trainer.step % trainer.steps_per_epoch
    ):
        if steps == 0:
            return
        trainer.advance(images, labels)
        steps -= 1


def test_cpu_takes_the_plain_trainer() -> None:
    trainer = build(Trainer, None, "cpu")
    assert type(make_trainer(trainer.model, trainer.batches, SCHEDULE)) is Trainer


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("method", METHODS)
def test_captured_steps_equal_eager_ones(method: str | None) -> None:
    eager, graphed = build(Trainer, method, "cuda"), build(GraphedTrainer, method, "cuda")
    for trainer in (eager, graphed):
        advance(trainer, EAGER_STEPS + 4)
    for name, value in eager.model.state_dict().items():
        torch.testing.assert_close(graphed.model.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("method", METHODS)
def test_a_captured_run_goes_on_from_its_state(method: str | None) -> None:
    whole, first = build(GraphedTrainer, method, "cuda"), build(GraphedTrainer, method, "cuda")
    advance(whole, 8)
    advance(first, 5)
    state = copy.deepcopy(first.state_dict())
    second = build(GraphedTrainer, method, "cuda")
    second.load_state_dict(state)
    advance(second, 3)
    assert second.step == whole.step
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)
