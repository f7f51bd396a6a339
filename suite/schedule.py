"""Training schedules: epochs, learning rates, decay, and the arithmetic of a step."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ValueError with the choices if the value is none of them."""
    if value not in choices:
        raise ValueError(f"{name} = {value!r} is unknown; choose from: {', '.join(map(str, choices))}")


def check_fields(settings: Any) -> None:
    """Raise ValueError if a field of a dataclass has a value of another type.

    Only fields of type Literal, int, float, and dataclasses are looked at.
    """
    for name, kind in _types(settings.__class__).items():
        value, allowed = getattr(settings, name), ""
        if get_origin(kind) is Literal:
            check_choice(name, value, get_args(kind))
        if kind is int and (isinstance(value, bool) or not isinstance(value, numbers.Integral)):
            allowed = "a whole number"
        elif kind is float and not (isinstance(value, numbers.Real) and math.isfinite(value)):
            allowed = "a finite number"
        elif isinstance(kind, type) and dataclasses.is_dataclass(kind) and not isinstance(value, kind):
            allowed = f"{kind.__name__}(...)"
        if allowed:
            raise ValueError(f"{name} = {value!r}: it takes {allowed}")


@functools.cache
def _types(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


@dataclass(frozen=True, kw_only=True)
class Compute:
    """The arithmetic of training steps. Accuracies are measured in fp32 and contiguous in every case.

    precision  "fp32"; "bf16" or "fp16": autocast, with weights, optimizer and penalties in fp32. fp16 scales the loss.
               A CPU without the instructions rounds the factors and sums in fp32, at the speed of fp32.
    layout     of images, activations and weights
    compiled   True runs the network through torch.compile; weights differ by rounding (a test allows 1e-5 after four steps)
    packed     layers with several filter groups in fine-tuning: "union", one convolution over all channels that a group reads;
               "groups", one a group in wide layers. Results differ by rounding
    """

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    layout: Literal["contiguous", "channels_last"] = "contiguous"
    compiled: bool = False
    packed: Literal["union", "groups"] = "union"

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """SGD over `epochs` in all, in `cycles` of equal length, each of which starts afresh.

    shape "cosine": from `lr` to 0 in every cycle; "steps": `lr`, a tenth from 1/2, a hundredth from 3/4;
    "warm_steps": the same, with a quarter of `lr` in epochs 0 and 1
    warmup_epochs    of a cycle: the rate rises linearly to `lr`; `shape` spans the epochs after them
    replan_pp        points that are added to the cut, on the same learned state, at the start of every cycle but the first
    epoch_images     at most so many images an epoch
    keep             the epoch of each cycle whose weights are kept: the last; the best on the validation part (then training
                     is on the rest); or the best on the test set, which exists only to stand beside a published row of that
                     kind. A cycle starts from the best of all cycles before it; the last one's best is the result, as it
                     alone meets the budget
    keep_after       the best epoch is looked for after this one
    accumulate       equal parts of a batch that pass the network one after another; batch norm normalises each part
    label_smoothing  share of a label that is spread over all classes
    clip_norm        largest norm of all gradients together; 0 clips nothing
    ema_decay        weights that are kept and judged: ema = ema_decay * ema + (1 - ema_decay) * weights; 0 keeps the last
    decay            "all" parameters, or "weights": those of convolutions and linear layers, without biases and batch norm
    compute          the arithmetic of a step
    """

    epochs: int
    lr: float
    weight_decay: float
    batch: int = 128
    momentum: float = 0.9
    shape: Literal["cosine", "steps", "warm_steps"] = "cosine"
    cycles: int = 1
    replan_pp: float = 0.0
    epoch_images: int | None = None
    keep: Literal["last", "best_validation", "best_test"] = "last"
    keep_after: int = 0
    warmup_epochs: int = 0
    accumulate: int = 1
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    decay: Literal["all", "weights"] = "all"
    compute: Compute = Compute()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.keep != "last" and self.keep_after >= self.cycle_epochs > 0:
            raise ValueError(
                f"keep_after = {self.keep_after} leaves no epoch of a cycle of {self.cycle_epochs} to keep"
            )
        if self.epochs < 0 or self.batch < 1 or self.cycles < 1 or self.epochs % self.cycles:
            raise ValueError(
                f"a schedule needs epochs >= 0, batch >= 1 and cycles that divide the epochs; got {self.epochs} epochs, "
                f"batch {self.batch}, {self.cycles} cycles"
            )
        if self.accumulate < 1 or self.batch % self.accumulate:
            raise ValueError(f"accumulate = {self.accumulate} does not divide batch = {self.batch}; take a divisor")
        if not 0 <= self.label_smoothing < 1 or not 0 <= self.ema_decay < 1 or self.clip_norm < 0:
            raise ValueError(
                f"label_smoothing = {self.label_smoothing} and ema_decay = {self.ema_decay} lie in [0, 1), and clip_norm = "
                f"{self.clip_norm} is 0 or more"
            )
        if self.warmup_epochs and (self.shape == "warm_steps" or not 0 < self.warmup_epochs < self.cycle_epochs):
            raise ValueError(
                f"warmup_epochs = {self.warmup_epochs} has to be less than a cycle's {self.cycle_epochs} epochs, and shape "
                "'warm_steps' takes none"
            )

    @property
    def cycle_epochs(self) -> int:
        """Epochs of one cycle."""
        return self.epochs // self.cycles

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step, counted from the start of the cycle.

        A cosine moves every step.
        """
        warm = self.warmup_epochs * steps_per_epoch
        if step < warm:
            return self.lr * (step + 1) / warm
        done = (step - warm) / (self.cycle_epochs * steps_per_epoch - warm)
        if self.shape == "cosine":
            return self.lr * (1 + math.cos(math.pi * done)) / 2
        if self.shape == "warm_steps" and step < 2 * steps_per_epoch:
            return self.lr / 4
        return self.lr * (1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01)

    def rates(self, steps_per_epoch: int) -> list[float]:
        """Return the learning rate of every step, cycle after cycle."""
        cycle = [self.lr_at(step, steps_per_epoch) for step in range(self.cycle_epochs * steps_per_epoch)]
        return cycle * self.cycles
