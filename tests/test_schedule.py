"""Schedules: the learning rate in closed form, what is refused, the released constants."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from suite.grids._released import BASE, FINETUNE, LEARN
from suite.schedule import Compute, Schedule

STEPS = 10


def schedule(**changes: Any) -> Schedule:
    return Schedule(**{"epochs": 8, "lr": 0.4, "weight_decay": 0.0, **changes})


def test_cosine_goes_from_lr_to_zero_through_a_half() -> None:
    cosine = schedule()
    total = 8 * STEPS
    assert cosine.lr_at(0, STEPS) == 0.4
    assert cosine.lr_at(total // 2, STEPS) == pytest.approx(0.2)
    assert cosine.lr_at(total // 4, STEPS) == pytest.approx(0.4 * (1 + math.sqrt(0.5)) / 2)
    assert cosine.lr_at(total, STEPS) == pytest.approx(0.0, abs=1e-15)
    rates = [cosine.lr_at(step, STEPS) for step in range(total)]
    assert all(later < earlier for earlier, later in itertools.pairwise(rates)), "it moves every step"
    assert rates[-1] > 0


@pytest.mark.parametrize("shape", ["steps", "warm_steps"])
def test_steps_are_a_tenth_from_half_and_a_hundredth_from_three_quarters(shape: str) -> None:
    steps = schedule(shape=shape)
    expected = [0.4] * 4 + [0.04] * 2 + [0.004] * 2
    if shape == "warm_steps":
        expected[:2] = [0.1, 0.1]
    for epoch, lr in enumerate(expected):
        for step in (0, STEPS - 1):
            assert steps.lr_at(epoch * STEPS + step, STEPS) == pytest.approx(lr), f"epoch {epoch}, step {step}"


def test_every_cycle_has_the_same_rates() -> None:
    cycles = schedule(cycles=4)
    assert cycles.cycle_epochs == 2
    whole = schedule(epochs=2)
    assert [cycles.lr_at(s, STEPS) for s in range(20)] == [whole.lr_at(s, STEPS) for s in range(20)]


@pytest.mark.parametrize("changes", [{"epochs": -1}, {"batch": 0}, {"cycles": 0}, {"cycles": 3}])
def test_impossible_schedules_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a schedule needs"):
        schedule(**changes)


def test_no_epochs_are_allowed() -> None:
    assert schedule(epochs=0).cycle_epochs == 0


def test_released_constants() -> None:
    assert Schedule(epochs=164, lr=0.1, weight_decay=1e-4, shape="warm_steps") == BASE
    assert Schedule(epochs=120, lr=0.05, weight_decay=1e-3, shape="cosine") == LEARN
    assert Schedule(epochs=400, lr=0.015, weight_decay=1e-3, shape="cosine", cycles=5, replan_pp=0.1) == FINETUNE
    for released in (BASE, LEARN, FINETUNE):
        assert (released.batch, released.momentum, released.epoch_images) == (128, 0.9, None)
    assert BASE.lr_at(0, 391) == 0.025
    assert BASE.lr_at(2 * 391, 391) == 0.1
    assert BASE.lr_at(82 * 391, 391) == pytest.approx(0.01)
    assert BASE.lr_at(123 * 391, 391) == pytest.approx(0.001)


def test_warm_up_rises_linearly_and_the_shape_spans_the_rest() -> None:
    warm = schedule(warmup_epochs=2)
    rates = [warm.lr_at(step, STEPS) for step in range(8 * STEPS)]
    assert rates[: 2 * STEPS] == pytest.approx([0.4 * (step + 1) / (2 * STEPS) for step in range(2 * STEPS)])
    short = schedule(epochs=6)
    assert rates[2 * STEPS :] == pytest.approx([short.lr_at(step, STEPS) for step in range(6 * STEPS)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 3}, "accumulate = 3 does not divide batch = 128; take a divisor"),
        ({"accumulate": 0}, "does not divide"),
        ({"label_smoothing": 1.0}, r"lie in \[0, 1\)"),
        ({"ema_decay": -0.1}, r"lie in \[0, 1\)"),
        ({"clip_norm": -1.0}, "0 or more"),
        ({"warmup_epochs": 8}, "less than a cycle's 8 epochs"),
        ({"warmup_epochs": 2, "shape": "warm_steps"}, "'warm_steps' takes none"),
        ({"decay": "biases"}, "choose from: all, weights"),
        ({"accumulate": 2.0}, "accumulate = 2.0: it takes a whole number"),
        ({"batch": True}, "batch = True: it takes a whole number"),
        ({"lr": float("nan")}, "lr = nan: it takes a finite number"),
        ({"clip_norm": float("inf")}, "clip_norm = inf: it takes a finite number"),
        ({"compute": "bf16"}, r"compute = 'bf16': it takes Compute\(...\)"),
    ],
)
def test_impossible_steps_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule(**changes)


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="precision = 'int8' is unknown; choose from: fp32, bf16, fp16"):
        Compute(precision="int8")  # type: ignore[arg-type]
