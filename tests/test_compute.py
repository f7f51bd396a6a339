"""Kinds of training steps: precision, layout, accumulation, smoothing, clipping, averages, compilation."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import tiny_grid
import torch
import torch.nn.functional as F
from learning_cases import train, trainer_of
from method_cases import USABLE
from test_train import DIGITS, StopAfter, same
from torch import Tensor, nn

from dsp import DSP
from suite import arithmetic, grids, methods, models
from suite.arithmetic import require
from suite.contract import Batch, Learner, Step, Task
from suite.graph import Graph
from suite.launch import __main__ as launch
from suite.launch import speed
from suite.launch.work import emulated
from suite.progress import Interrupted
from suite.run import Context
from suite.schedule import Compute, Schedule
from suite.train import fit, seed_everything
from suite.trainer import Trainer

SCHEDULE = Schedule(epochs=2, lr=0.05, weight_decay=5e-4, batch=32, epoch_images=64)
BF16 = Compute(precision="bf16", layout="channels_last")
KINDS: dict[str, dict[str, Any]] = {
    "bf16": {"compute": BF16},
    "channels_last": {"compute": Compute(layout="channels_last")},
    "recipe": {"accumulate": 2, "label_smoothing": 0.1, "clip_norm": 0.5, "ema_decay": 0.9, "decay": "weights"},
    "all": {"accumulate": 2, "ema_decay": 0.9, "compute": BF16, "warmup_epochs": 1},
}


def trainer(
    schedule: Schedule, *, model: str = "resnet8", learn: bool = True, dtype: torch.dtype = torch.float32
) -> Trainer:
    seed_everything(0)
    network = models.build(model, DIGITS.classes).to(dtype)
    batches = DIGITS.train("all", batch=schedule.batch, seed=0, device="cpu", limit=schedule.epoch_images)
    task = Task(train_epoch=batches.epoch, samples=lambda n: next(batches.epoch(0)), seed=0)
    learner = DSP(groups=2, lam=1e-2).learner(network, Graph(network, DIGITS.input_shape), task) if learn else None
    return Trainer(network, batches, schedule, learner=learner)


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_after_every_step_it_ends_with_the_same_bits(tmp_path: Path, kind: str) -> None:
    schedule = dataclasses.replace(SCHEDULE, **KINDS[kind])
    whole = trainer(schedule)
    fit(whole, tmp_path / "whole.pt", StopAfter(), seed=0, doing="training")
    for _ in range(4):
        resumed = trainer(schedule)
        try:
            fit(resumed, tmp_path / "stopped.pt", StopAfter(1), seed=0, doing="training")
        except Interrupted:
            continue
    assert resumed.step == 4
    assert same(whole, resumed)
    assert all(p.is_contiguous() for p in whole.model.parameters())


class Fixed:
    """The same random batches in every epoch."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        draw = torch.Generator().manual_seed(0)
        self.batches = [
            (torch.randn(8, 3, 32, 32, generator=draw, dtype=dtype), torch.randint(10, (8,), generator=draw))
            for _ in range(2)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        yield from self.batches[start:]


def stepped(
    model: nn.Module, dtype: torch.dtype = torch.float64, steps: int = 2, learner: Learner | None = None, **changes: Any
) -> Trainer:
    """Return a trainer after `steps` steps on `Fixed` batches of 8."""
    schedule = Schedule(**{"epochs": 4, "lr": 0.05, "weight_decay": 0.1, "batch": 8, **changes})
    batches = Fixed(dtype)
    result = Trainer(model.train(), batches, schedule, learner=learner)  # type: ignore[arg-type]
    for step in range(steps):
        result.advance(*batches.batches[step % 2])
    return result


def small(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a network without batch norm, so that parts of a batch are independent."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8, 10)).to(dtype)


def weights_of(trained: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten().double() for p in trained.model.parameters()])


def test_parts_of_a_batch_give_the_gradient_of_the_whole() -> None:
    whole, parts = stepped(small()), stepped(small(), accumulate=4)
    torch.testing.assert_close(weights_of(parts), weights_of(whole), rtol=0, atol=1e-12)
    torch.testing.assert_close(parts.tally, whole.tally, rtol=1e-6, atol=1e-6)


def test_the_loss_scale_is_part_of_the_state() -> None:
    whole = stepped(small(torch.float32), torch.float32, compute=Compute(precision="fp16"))
    whole.arithmetic.scaler.update(1024.0)
    state = copy.deepcopy(whole.state_dict())
    resumed = stepped(small(torch.float32), torch.float32, steps=0, compute=Compute(precision="fp16"))
    resumed.load_state_dict(state)
    assert resumed.arithmetic.loss_scale == 1024
    for batch in Fixed(torch.float32).batches:
        whole.advance(*batch)
        resumed.advance(*batch)
    assert same(whole, resumed)


class Penalty(Learner):
    """A penalty by weight, and the gradients that it takes itself."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.own: dict[str, Tensor] = {}

    def penalty(self) -> Tensor:
        return self.model.get_parameter("0.weight").square().sum()

    def before_step(self, step: Step) -> None:
        names = ("0.weight", "2.weight")
        leaves = {name: step.model.get_parameter(name).detach().clone().requires_grad_() for name in names}
        self.own = step.gradients(leaves)
        for name in names:
            seen = step.model.get_parameter(name).grad
            assert seen is not None
            expected = seen - 2 * step.model.get_parameter(name).detach() if name == "0.weight" else seen
            tolerance = 1e-12 if seen.dtype == torch.float64 else 2e-3
            torch.testing.assert_close(self.own[name], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"label_smoothing": 0.2}])
def test_a_learner_takes_gradients_of_the_same_loss(changes: dict[str, Any]) -> None:
    """Also: the penalty counts once, however many parts a batch has."""
    model = small()
    learner = Penalty(model)
    stepped(model, learner=learner, **changes)
    assert set(learner.own) == {"0.weight", "2.weight"}


def test_a_learner_takes_gradients_in_fp16_with_a_scaled_loss() -> None:
    model = small(torch.float32)
    stepped(model, torch.float32, learner=Penalty(model), compute=Compute(precision="fp16"))


def test_clipping_bounds_the_norm_of_all_gradients() -> None:
    free, bounded = stepped(small(), steps=1), stepped(small(), steps=1, clip_norm=1e-3)
    norm = nn.utils.get_total_norm([p.grad for p in bounded.model.parameters() if p.grad is not None])
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)
    assert not torch.equal(weights_of(free), weights_of(bounded))


def test_smoothing_is_of_the_labels() -> None:
    model = small()
    images, labels = Fixed().batches[0]
    expected = F.cross_entropy(model(images), 0.7 * F.one_hot(labels, 10).double() + 0.03)
    loss = stepped(model, steps=1, label_smoothing=0.3).tally[0] / 8
    torch.testing.assert_close(loss, expected.detach())


def test_decay_may_spare_biases_and_batch_norm() -> None:
    torch.manual_seed(0)
    model = models.build("resnet8", 10)
    optimizer = stepped(model, torch.float32, steps=0, decay="weights").optimizer
    decayed = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decayed) == len(list(model.parameters()))
    for parameter in model.parameters():
        assert decayed[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0)


def test_the_average_is_what_is_left(tmp_path: Path) -> None:
    model = small()
    averaged = stepped(model, ema_decay=0.5, steps=0)
    start, mean = weights_of(averaged), weights_of(averaged)
    for batch in Fixed().batches:
        averaged.advance(*batch)
        mean = 0.5 * mean + 0.5 * weights_of(averaged)
    assert not torch.equal(mean, start)
    averaged.finish()
    torch.testing.assert_close(weights_of(averaged), mean, rtol=0, atol=1e-12)


def test_the_average_is_what_is_judged(tmp_path: Path) -> None:
    schedule = dataclasses.replace(SCHEDULE, ema_decay=0.9, keep="best_test")
    judged = trainer(schedule, learn=False)
    seen: list[Tensor] = []

    def judge() -> float:
        seen.append(weights_of(judged))
        return float(len(seen))

    judged.judge = judge
    fit(judged, tmp_path / "train.pt", StopAfter(), seed=0, doing="training")
    assert torch.equal(weights_of(judged), seen[-1])
    assert judged.average is not None
    assert not torch.equal(
        seen[-1], torch.cat([p.flatten().double() for n, p in judged.average.live.items()])[: len(seen[-1])]
    )


@pytest.mark.parametrize("compute", [BF16, Compute(precision="fp16"), Compute(layout="channels_last")])
def test_low_precision_stays_near_fp32(compute: Compute) -> None:
    plain, low = (stepped(small(torch.float32), torch.float32, compute=c) for c in (Compute(), compute))
    assert all(p.dtype == torch.float32 for p in low.model.parameters())
    torch.testing.assert_close(weights_of(low), weights_of(plain), rtol=0, atol=1e-3)
    assert not torch.equal(weights_of(low), weights_of(plain))


def test_an_overflow_in_fp16_leaves_the_step_out() -> None:
    model = small(torch.float32)
    wild = stepped(model, torch.float32, steps=0, compute=Compute(precision="fp16"))
    before = weights_of(wild)
    images, labels = Fixed(torch.float32).batches[0]
    scale = wild.arithmetic.loss_scale
    wild.advance(images * 1e30, labels)
    assert torch.equal(weights_of(wild), before)
    assert wild.arithmetic.loss_scale == scale / 2
    wild.advance(images, labels)
    assert not torch.equal(weights_of(wild), before)


@pytest.mark.parametrize("method", [name for name in USABLE if methods.get(name).learns])
def test_an_overflow_leaves_no_gradient_with_a_method(method: str) -> None:
    """The next step is that of a process which was stopped before it."""
    schedule = Schedule(
        epochs=1, lr=0.05, weight_decay=1e-4, batch=4, epoch_images=8, compute=Compute(precision="fp16")
    )
    one, two = trainer_of(method, schedule=schedule), trainer_of(method, schedule=schedule)
    one.arithmetic.scaler.load_state_dict({**one.arithmetic.scaler.state_dict(), "scale": 2.0**40})
    train(one, until=1)
    assert one.arithmetic.loss_scale == 2.0**39, "it overflowed"
    state = one.state_dict()
    state["scaler"]["scale"] = 1024.0
    state = copy.deepcopy(state)
    one.arithmetic.scaler.load_state_dict(state["scaler"])
    two.load_state_dict(state)
    for trainer in (one, two):
        train(trainer, until=2)
    assert torch.isfinite(weights_of(one)).all()
    assert torch.equal(weights_of(one), weights_of(two))
    torch.testing.assert_close(one.learner.state_dict(), two.learner.state_dict(), rtol=0, atol=0)


@pytest.mark.slow
def test_compiled_steps_equal_eager_ones() -> None:
    """Within 1e-5 of weights of order 1, in fp32."""
    torch.manual_seed(0)
    eager = stepped(models.build("resnet8", 10), torch.float32, steps=4)
    torch.manual_seed(0)
    compiled = stepped(models.build("resnet8", 10), torch.float32, steps=4, compute=Compute(compiled=True))
    torch.testing.assert_close(weights_of(compiled), weights_of(eager), rtol=0, atol=1e-5)


def test_parts_that_do_not_divide_what_is_left_are_refused() -> None:
    trained = stepped(small(), steps=0, accumulate=4)
    images, labels = Fixed().batches[0]
    with pytest.raises(
        ValueError, match="accumulate = 4 does not divide a batch of 6 images on this task; take a divisor"
    ):
        trained.advance(images[:6], labels[:6])


def test_a_precision_that_the_device_lacks_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "V100")
    with pytest.raises(ValueError, match="V100 has no bf16 units; take 'fp16' or 'fp32'"):
        require("bf16", torch.device("cuda"))
    require("fp16", torch.device("cuda"))
    monkeypatch.setattr(arithmetic, "cpu_flags", frozenset)
    with caplog.at_level(logging.WARNING):
        arithmetic.Arithmetic(BF16, torch.device("cpu"))
    assert "bf16 is emulated and not faster than fp32" in caplog.text


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_an_emulated_product_is_the_sum_in_fp32_of_rounded_numbers(
    monkeypatch: pytest.MonkeyPatch, precision: Literal["bf16", "fp16"]
) -> None:
    monkeypatch.setattr(arithmetic, "cpu_flags", frozenset)
    dtype = arithmetic.DTYPES[precision]
    conv, linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)
    network = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with arithmetic.Arithmetic(Compute(precision=precision), torch.device("cpu")).autocast():
        features, logits = conv(images), network(images)
    assert features.dtype == logits.dtype == dtype

    def rounded(tensor: Tensor) -> Tensor:
        return tensor.detach().to(dtype).double()

    assert conv.bias is not None
    exact = F.conv2d(rounded(images), rounded(conv.weight), rounded(conv.bias), padding=1)
    torch.testing.assert_close(features.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)
    logits.float().sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.dtype == torch.float32
    assert torch.equal(conv.weight.grad, conv.weight.grad.to(dtype).float()), "rounded on the way back, too"


def test_a_precision_applies_within_the_block_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "cpu_flags", frozenset)
    linear, x = nn.Linear(4, 2), torch.ones(1, 4)
    context = arithmetic.mixed("bf16", torch.device("cpu"))
    assert linear(x).dtype == torch.float32
    with context:
        assert linear(x).dtype == torch.bfloat16
    assert linear(x).dtype == torch.float32


def test_the_launcher_states_a_precision_that_the_cpu_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = tmp_path / "mine.py"
    grid.write_text(
        "from tiny_grid import run_of, SETTINGS\n"
        "from suite.grids import Grid\n"
        "from suite.schedule import Compute, Schedule\n"
        "FINE = Schedule(epochs=1, compute=Compute(precision='fp16'), **SETTINGS)\n"
        "GRID = Grid(title='Mine', about='', runs=lambda: [run_of('l1_filter', finetune=FINE)], timings=())\n"
    )
    arguments = ("--grid", grid, "--results", tmp_path / "results", "--device", "cpu")
    monkeypatch.setattr(arithmetic, "cpu_flags", frozenset)
    assert tiny_grid.call(launch.main, *arguments, "--dry-run") == 0
    assert "1 of 2 stages to do train in fp16: this CPU has none of amx_fp16" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    slurm = Context(results=tmp_path, device="cuda")
    assert emulated(grids.runs_of(grids.load(str(grid))), slurm) == []


def test_the_probe_of_a_cpu_computes_as_a_training_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "cpu_flags", frozenset)
    products: list[torch.dtype] = []
    rounded = arithmetic._RoundedProducts._rounded

    def spied(mode: arithmetic._RoundedProducts, value: Any) -> Any:
        products.append(mode.dtype)
        return rounded(mode, value)

    monkeypatch.setattr(arithmetic._RoundedProducts, "_rounded", spied)
    network = speed.Network("resnet8", 10, (3, 32, 32), "fp16")
    assert speed.probe([network], threads=1, jobs=1)[network] > 0
    assert set(products) == {torch.float16}
