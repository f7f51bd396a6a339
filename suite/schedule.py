"""Training schedules: how long, how fast, how much decay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints


def check_choices(settings: Any) -> None:
    """Raise ValueError when a field of a dataclass that is typed as a Literal holds another value."""
    for name, kind in get_type_hints(type(settings)).items():
        if get_origin(kind) is Literal and getattr(settings, name) not in get_args(kind):
            choices = ", ".join(map(str, get_args(kind)))
            raise ValueError(f"{name} = {getattr(settings, name)!r} is unknown; choose from: {choices}")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """SGD over `epochs` in all, in `cycles` of equal length, each of which starts afresh.

    shape "cosine": from `lr` to 0 in every cycle; "steps": `lr`, a tenth from 1/2, a hundredth from 3/4;
    "warm_steps": the same, with a quarter of `lr` in epochs 0 and 1
    replan_pp     points that are added to the cut, on the same learned state, at the start of every cycle but the first
    epoch_images  at most so many images an epoch
    keep          the epoch of each cycle whose weights are kept: the last; the best on the validation part (then training is
                  on the rest); or the best on the test set, which exists only to stand beside a published row of that kind
                  A cycle starts from the best of all cycles before it; the last one's best is the result, as it alone meets
                  the budget
    keep_after    the best epoch is looked for after this one
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

    def __post_init__(self) -> None:
        check_choices(self)
        if self.keep != "last" and self.keep_after >= self.cycle_epochs > 0:
            raise ValueError(
                f"keep_after = {self.keep_after} leaves no epoch of a cycle of {self.cycle_epochs} to keep"
            )
        if self.epochs < 0 or self.batch < 1 or self.cycles < 1 or self.epochs % self.cycles:
            raise ValueError(
                f"a schedule needs epochs >= 0, batch >= 1 and cycles that divide the epochs; got {self.epochs} epochs, "
                f"batch {self.batch}, {self.cycles} cycles"
            )

    @property
    def cycle_epochs(self) -> int:
        """Epochs of one cycle."""
        return self.epochs // self.cycles

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, counted from the start of the cycle. The cosine moves every step."""
        done = step / (self.cycle_epochs * steps_per_epoch)
        if self.shape == "cosine":
            return self.lr * (1 + math.cos(math.pi * done)) / 2
        if self.shape == "warm_steps" and step < 2 * steps_per_epoch:
            return self.lr / 4
        return self.lr * (1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01)
