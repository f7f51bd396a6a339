"""Training with the hooks of a method, and small networks for it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from method_cases import (
    images,
    network_of,
    task_of,
)
from torch import Tensor, nn

from suite import methods
from suite.contract import Budget, Learner, Pruner, Step
from suite.graph import Graph
from suite.schedule import Schedule
from suite.trainer import Trainer

SCHEDULE = Schedule(epochs=4, lr=0.05, weight_decay=1e-4, batch=16, epoch_images=64)


def trainer_of(
    method: str, settings: Pruner | None = None, schedule: Schedule = SCHEDULE, network: str = "resnet8"
) -> Trainer:
    """Training on digits with the method's hooks, not begun."""
    settings = settings or methods.get(method)()
    model = network_of(network)
    graph = Graph(model, images().input_shape)
    learner = settings.learner(model, graph, task_of(0, Budget(share=0.5)))
    batches = images().train("all", batch=schedule.batch, seed=0, device="cpu", limit=schedule.epoch_images)
    return Trainer(model.train(), batches, schedule, learner=learner)


def train(trainer: Trainer, *, until: int) -> None:
    """Train to this step."""
    while trainer.step < until:
        epoch, done = divmod(trainer.step, trainer.steps_per_epoch)
        for x, labels in trainer.batches.epoch(epoch, start=done):
            trainer.advance(x, labels)
            if trainer.step == until:
                break
        if trainer.step % trainer.steps_per_epoch == 0:
            trainer.end_epoch()


def filter_norms(model: nn.Module, name: str = "0") -> list[float]:
    norms: list[float] = model.get_parameter(f"{name}.weight").detach().flatten(1).norm(dim=1).tolist()
    return norms


def two_layers(first_OI: Tensor, second_OI: Tensor) -> tuple[nn.Module, Graph]:
    """Two 1x1 convolutions with these weights, each with batch norm, and a classifier."""
    layers: list[nn.Module] = []
    for weight_OI in (first_OI, second_OI):
        conv = nn.Conv2d(weight_OI.shape[1], len(weight_OI), 1, bias=False)
        conv.weight.data.copy_(weight_OI[:, :, None, None])
        layers += [conv, nn.BatchNorm2d(len(weight_OI)), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(len(second_OI), 2))
    return model, Graph(model, (first_OI.shape[1], 4, 4))


def zero_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


def one_step(model: nn.Module, index: int = 0, total: int = 1) -> Step:
    return Step(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.zeros(0), torch.zeros(0), 0.1, index, total)


def descend(
    model: nn.Module,
    learner: Learner,
    loss: Callable[[], Tensor],
    *,
    steps: int,
    lr: float,
    start: int = 0,
    total: int = 0,
) -> None:
    """Plain gradient descent on `loss` with the learner's hooks."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    nothing = torch.zeros(0)
    for index in range(start, start + steps):
        optimizer.zero_grad()
        loss().backward()
        step = Step(model, optimizer, nothing, nothing, lr, index, total or steps)
        learner.before_step(step)
        optimizer.step()
        learner.after_step(step)


def continued(method: str) -> None:
    """Assert that learning ends with the same bits after a stop in the second epoch."""
    whole = trainer_of(method)
    train(whole, until=6)
    state = copy.deepcopy(whole.state_dict())
    again = trainer_of(method)
    for parameter in again.model.parameters():
        nn.init.normal_(parameter)
    again.load_state_dict(state)
    for trainer in (whole, again):
        train(trainer, until=whole.total)
    torch.testing.assert_close(again.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(again.learner.state_dict(), whole.learner.state_dict(), rtol=0, atol=0)
    assert again.history == whole.history
