"""A rehearsal of an ImageNet comparison, on twenty classes of Tiny-ImageNet at 64x64.

Base networks, learning and fine-tuning are trained as on ImageNet: bf16 and channels_last, accumulation, label smoothing,
warm-up, no decay of biases and batch norm. Schedules are ours and short: accuracies support no claim. With so few steps
DSP's groups lose no channel at the lambdas of its recipes; here it has a dose of 1. Its stages took 24 minutes of each of
two cores with AMX before the timings, which take six.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from suite.grids import Grid, cross, dense_control
from suite.schedule import Compute, Schedule
from suite.stages import Base, Pruned, Timing

BUDGETS = (0.3, 0.6)
BASE = Schedule(
    epochs=6,
    lr=0.02,
    weight_decay=1e-4,
    batch=32,
    warmup_epochs=1,
    accumulate=2,
    label_smoothing=0.1,
    decay="weights",
    compute=Compute(precision="bf16", layout="channels_last"),
)
LEARN = dataclasses.replace(BASE, epochs=2, warmup_epochs=0)
FINETUNE = LEARN
MODELS = ("resnet18", "resnet50")
DOSE = 1.0
"""Dose of DSP's penalty on LEARN's 112 steps (`dsp.dose`).

At a dose of 1.5, 57 % of the channels of ResNet-18's groups fell below 5 % of their base norm, near the larger budget, and 28
steps of fine-tuning ended at chance. FINETUNE has a third of BASE's steps."""
RIVALS = ("l1_filter", "fpgm_once", "taylor_once")


def runs() -> list[Pruned]:
    """Return the dense control, DSP with two groups, and three rivals."""
    bases = [Base(data="tinyimagenet20", model=model, schedule=BASE, seed=0, split="held_out") for model in MODELS]
    runs = dense_control(bases=bases, finetune=FINETUNE, learning=LEARN)
    for method in ("dsp", *RIVALS):
        changes: dict[str, Any] = {"dose": DOSE} if method == "dsp" else {}
        runs += cross(bases=bases, method=method, budgets=BUDGETS, finetune=FINETUNE, learning=LEARN, **changes)
    return runs


GRID = Grid(
    title="Rehearsal of ImageNet on Tiny-ImageNet",
    about=__doc__ or "",
    runs=runs,
    timings=(Timing(batch=32, precision="bf16", layout="channels_last", protocol="quick"),),
)
