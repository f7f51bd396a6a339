"""Inputs of the tests of methods: networks, tasks, and methods that have learned."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from baselines.l1_filter import L1Filter
from suite import data, methods
from suite.contract import (
    Batch,
    Budget,
    OptOut,
    Planner,
    Pruner,
    PruningPlan,
    State,
    Task,
)  # fmt: skip
from suite.data.base import Indices, Part
from suite.data.resident import Resident
from suite.graph import Graph
from suite.methods import Broken
from suite.models import build
from suite.schedule import Schedule
from suite.select import meet
from suite.train import seed_everything
from suite.trainer import Trainer

NETWORKS = {"resnet8": "resnet8", "resnet8_a": "resnet8_a", "bottleneck": "resnet50", "vgg6": "vgg6"}
"""Network -> the model whose recipe it takes."""
FOUND = methods.discover()
USABLE = sorted(name for name, kind in FOUND.items() if not isinstance(kind, Broken))

FEW = 32
"""Images that a method sees in the common checks."""

every_method = pytest.mark.parametrize("method", USABLE)
everywhere = pytest.mark.parametrize(
    ("method", "network"),
    [pytest.param(method, network, id=f"{method}-{network}") for method in USABLE for network in NETWORKS],
)


class TrainingOnly(Resident):
    """A data set that raises if its test images are read."""

    def plain(self, part: Part, order_N: Indices, *, batch: int, device: torch.device) -> Iterator[Batch]:
        if part == "test":
            raise AssertionError("the test images were read")
        return super().plain(part, order_N, batch=batch, device=device)


@functools.cache
def images() -> TrainingOnly:
    digits = data.load("digits")
    assert isinstance(digits, Resident)
    return TrainingOnly(
        **{field.name: getattr(digits, field.name) for field in dataclasses.fields(digits) if field.init}
    )


def batches(seed: int) -> data.Loader:
    return images().train("all", batch=16, seed=seed, device="cpu", limit=32)


def task_of(seed: int, budget: Budget | None = None, reference: PruningPlan | None = None, most: int = 256) -> Task:
    """Return a task on digits with at most `most` sampled images."""
    return Task(
        train_epoch=lambda epoch: batches(seed).epoch(epoch),
        samples=lambda n: images().samples(min(n, most), split="all", device="cpu"),
        seed=seed,
        budget=budget,
        reference=reference,
    )


def reference_plan(model: nn.Module, graph: Graph) -> PruningPlan:
    """Return a plan to follow: half of the MACs gone."""
    return meet(L1Filter().planner(model, graph, {}, task_of(0)), graph, Budget(share=0.5)).plan


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != 4 * width:
            conv = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return torch.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


def inverted(channels: int, width: int, filters: int) -> nn.Sequential:
    """Return a block of MobileNet: wide, a depthwise convolution with a batch norm of its own, narrow."""
    return nn.Sequential(
        *(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, filters, 1, bias=False), nn.BatchNorm2d(filters)),
    )


def network_of(name: str) -> nn.Module:
    """Return the network with random weights, batch-norm scales included."""
    torch.manual_seed(0)
    if name == "bottleneck":
        stem = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
        blocks = [Bottleneck(16, 6, 1), Bottleneck(24, 6, 1), Bottleneck(24, 10, 2)]
        model: nn.Module = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(40, 10))
    elif name == "depthwise":
        stem = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(12, 10)]
        model = nn.Sequential(*stem, inverted(8, 16, 8), inverted(8, 16, 12), *head)
    elif name == "convolution_head":
        stem = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU()]
        model = nn.Sequential(*stem, nn.Conv2d(12, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    else:
        model = build(name, 10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model


@dataclass(frozen=True)
class Learned:
    """A method on a network, after learning.

    before   the weights at the end of learning, copied
    planner  made once, since planning is the slow part of some methods
    """

    settings: Pruner
    model: nn.Module
    graph: Graph
    state: State
    task: Task

    before: State

    @functools.cached_property
    def planner(self) -> Planner:
        return self.plan_anew(self.state)

    def plan_anew(self, state: State) -> Planner:
        seed_everything(self.task.seed)
        return self.settings.planner(self.model, self.graph, state, self.task)


def learn(method: str, network: str, seed: int = 0) -> Learned:
    """Let the method learn for two steps if it learns. Skips if it opts out."""
    kind = methods.get(method)
    recipe = kind.recipe("digits", NETWORKS[network])
    if isinstance(recipe, OptOut):
        assert recipe.reason
        pytest.skip(f"{method} opts out: {recipe.reason}")
    settings = kind.for_task("digits", NETWORKS[network])
    model = network_of(network)
    graph = Graph(model, images().input_shape)
    budget = Budget(share=0.5) if kind.needs_budget else None
    task = task_of(seed, budget, reference_plan(model, graph) if kind.needs_reference else None, FEW)
    seed_everything(seed)
    learner = settings.learner(model, graph, task)
    assert (learner is not None) == settings.learns
    if learner is None:
        return Learned(settings, model.eval(), graph, {}, task, copy.deepcopy(model.state_dict()))
    trainer = Trainer(model, batches(seed), Schedule(epochs=1, lr=0.01, weight_decay=1e-4), learner=learner)
    model.train()
    for x, labels in batches(seed).epoch(0):
        trainer.advance(x, labels)
    trainer.end_epoch()
    learner.finish(model)
    assert all(isinstance(value, float) for value in learner.metrics().values())
    return Learned(settings, model.eval(), graph, learner.state_dict(), task, copy.deepcopy(model.state_dict()))


@functools.cache
def learned(method: str, network: str) -> Learned:
    """Return the method after learning, shared by tests that do not change it."""
    return learn(method, network)


def one_layer(weight_OI: list[list[float]]) -> tuple[nn.Module, Graph]:
    """Return a 1x1 convolution with these weights and a classifier, and its graph."""
    weight = torch.tensor(weight_OI)[:, :, None, None]
    filters, channels = weight.shape[:2]
    conv, head = nn.Conv2d(channels, filters, 1), nn.Linear(filters, 2)
    conv.weight.data.copy_(weight)
    layers = [conv, nn.BatchNorm2d(filters), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), head]
    return nn.Sequential(*layers).eval(), Graph(nn.Sequential(*layers), (channels, 4, 4))


def order_of_removal(settings: Pruner, model: nn.Module, graph: Graph) -> list[int]:
    """Return the filters of the one layer in the order of removal, and then the rest."""
    planner = settings.planner(model, graph, {}, task_of(0))
    order: list[int] = []
    for step in range(101):
        if layer := planner(step / 100).get("0"):
            order += [o for o in (~layer.kept_O).nonzero()[:, 0].tolist() if o not in order]
    return order + [o for o in range(graph.convs["0"].filters) if o not in order]
