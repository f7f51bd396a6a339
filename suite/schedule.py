"""Training schedules: how long, how fast, how much decay. Those of METHOD's sources by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """SGD over `epochs` in all, in `cycles` of equal length, each of which starts afresh.

    shape "cosine": from `lr` to 0 in every cycle; "steps": `lr`, a tenth from 1/2, a hundredth from 3/4;
    "warm_steps": the same, with a quarter of `lr` in epochs 0 and 1
    replan_pp     points that are added to the cut, on the same learned state, at the start of every cycle but the first
    epoch_images  at most so many images an epoch
    keep          the epoch of each cycle whose weights are kept: the last; the best on the validation part (then training is
                  on the rest); or the best on the test set, which exists only to stand beside a published row of that kind
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


# The schedules that DSP's authors released for CIFAR-10 (shared by all methods of the paper grids). The cut grows by 0.1
# points at each of the four re-plannings of the fine-tuning.
DSP_BASE = Schedule(epochs=164, lr=0.1, weight_decay=1e-4, shape="warm_steps")
DSP_GROUPS = Schedule(epochs=120, lr=0.05, weight_decay=1e-3)
# The authors keep the epoch that is best on the test set; here the last is kept, or the best on the validation part.
DSP_FINETUNE = Schedule(epochs=400, lr=0.015, weight_decay=1e-3, cycles=5, replan_pp=0.1)
DSP_GROUPS_BEST = replace(DSP_GROUPS, keep="best_validation", keep_after=8)
DSP_FINETUNE_BEST = replace(DSP_FINETUNE, keep="best_validation")
