"""Captured training steps compute what eager ones do, and go on after an interruption."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from suite import methods, models
from suite.contract import Batch, Budget, Learner, Task
from suite.cudagraph import EAGER_STEPS, CapturedSteps
from suite.graph import Graph
from suite.measure.steps import Together
from suite.schedule import Schedule
from suite.trainer import CapturedTrainer, Trainer, make_trainer

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SCHEDULE = Schedule(epochs=2, lr=0.05, weight_decay=1e-3, batch=16)
SHAPE = (3, 32, 32)


class Noise:
    """Random batches in fp64.

    Real images have even areas, whose activations are 0 or nearly so: rounding decides what a ReLU lets pass, and no two orders
    of summing train alike.
    """

    def __init__(self, device: str) -> None:
        self.device = device

    def __len__(self) -> int:
        return 10

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for index in range(start, len(self)):
            draw = torch.Generator().manual_seed(100 * epoch + index)
            images = torch.randn(SCHEDULE.batch, *SHAPE, generator=draw, dtype=torch.float64)
            yield images.to(self.device), torch.randint(10, (SCHEDULE.batch,), generator=draw).to(self.device)


def learner_of(method: str | None, model: nn.Module, batches: Noise) -> Learner | None:
    if method is None:
        return None
    task = Task(train_epoch=batches.epoch, samples=lambda n: next(batches.epoch(0)), seed=0, budget=Budget(share=0.5))
    return methods.get(method).for_task("digits", "resnet8").learner(model, Graph(model, SHAPE), task)


def build(kind: type[Trainer], method: str | None, device: str) -> Trainer:
    torch.manual_seed(0)
    model, batches = models.build("resnet8", 10).to(device, torch.float64), Noise(device)
    return kind(model, batches, SCHEDULE, learner=learner_of(method, model, batches))  # type: ignore[arg-type]


def captured_methods() -> Iterator[str | None]:
    """None, and every method whose learner can be captured."""
    yield None
    for name, kind in methods.discover().items():
        if getattr(kind, "learns", False):
            learner = learner_of(name, models.build("resnet8", 10), Noise("cpu"))
            if learner is not None and learner.capturable:
                yield name


METHODS = [*captured_methods()]


def test_there_is_something_to_capture() -> None:
    assert {None, "dsp", "ssl", "depgraph"} <= set(METHODS)


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
    eager, captured = build(Trainer, method, "cuda"), build(CapturedTrainer, method, "cuda")
    for trainer in (eager, captured):
        advance(trainer, EAGER_STEPS + 4)
    for name, value in eager.model.state_dict().items():
        torch.testing.assert_close(captured.model.state_dict()[name], value, rtol=0, atol=1e-6, msg=name)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("method", METHODS)
def test_a_captured_run_goes_on_from_its_state(method: str | None) -> None:
    whole, first = build(CapturedTrainer, method, "cuda"), build(CapturedTrainer, method, "cuda")
    advance(whole, 10)
    advance(first, 5)
    state = copy.deepcopy(first.state_dict())
    second = build(CapturedTrainer, method, "cuda")
    second.load_state_dict(state)
    advance(second, 5)
    assert isinstance(second, CapturedTrainer)
    assert second.captured.graph is not None, "the second trainer has captured its step"
    assert second.step == whole.step
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], value, rtol=0, atol=1e-6, msg=name)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("method", METHODS)
def test_runs_together_take_the_steps_that_they_take_alone(method: str | None) -> None:
    alone = [build(CapturedTrainer, method, "cuda"), build(CapturedTrainer, None, "cuda")]
    others = [build(CapturedTrainer, method, "cuda"), build(CapturedTrainer, None, "cuda")]
    together = Together([trainer for trainer in others if isinstance(trainer, CapturedTrainer)])
    for _, batch in zip(range(EAGER_STEPS + 4), alone[0].batches.epoch(0), strict=False):
        for trainer in alone:
            trainer.advance(*batch)
        together.advance([batch, batch])
    assert together.captured.graph is not None
    for single, shared in zip(alone, others, strict=True):
        assert single.step == shared.step
        for name, value in single.model.state_dict().items():
            torch.testing.assert_close(shared.model.state_dict()[name], value, rtol=0, atol=1e-6, msg=name)


def test_branches_of_a_graph_start_and_end_with_its_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fake device: eager first, then each step is recorded once on copies, then replayed on new inputs."""
    events: list[str] = []
    now = ["trunk"]

    class Stream:
        made = 0

        def __init__(self, name: str = "") -> None:
            Stream.made += not name
            self.name = name or f"branch {Stream.made}"

        def wait_stream(self, other: Stream) -> None:
            events.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self) -> None:
            events.append("replay")

    @contextlib.contextmanager
    def stream(inner: Stream) -> Iterator[None]:
        now.append(inner.name)
        yield
        now.pop()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream(now[-1]))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **options: contextlib.nullcontext())
    seen: list[torch.Tensor] = []

    def step_of(name: str) -> Callable[[torch.Tensor], None]:
        def step(x: torch.Tensor) -> None:
            events.append(f"{name} on {now[-1]}")
            seen.append(x)

        return step

    steps = CapturedSteps([step_of("a"), step_of("b")])
    inputs = (torch.zeros(1),), (torch.ones(1),)
    for _ in range(EAGER_STEPS):
        steps(*inputs)
    assert len(seen) == 2 * EAGER_STEPS
    events.clear()
    steps(*inputs)
    steps((torch.full((1,), 2.0),), (torch.full((1,), 3.0),))
    branch = f"branch {Stream.made}"
    recorded = [f"{branch} waits for trunk", "a on trunk", f"b on {branch}", f"trunk waits for {branch}"]
    assert events == [*recorded, "replay", "replay"]
    assert [float(x) for x in seen[-2:]] == [2, 3], "the graph reads its own copies"
    assert [float(tensors[0]) for tensors in inputs] == [0, 1]
