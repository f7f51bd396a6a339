"""Hyperparameters of every method on the validation part of the digits, in minutes."""

from __future__ import annotations

from suite.grids import Grid, _tuning
from suite.schedule import Schedule
from suite.stages import Base

GRID = Grid(
    title="Tuning of every method on digits",
    about=__doc__ or "",
    runs=lambda: _tuning.runs(
        [
            Base(
                data="digits",
                model="resnet8",
                schedule=Schedule(epochs=5, lr=0.1, weight_decay=5e-4, batch=64),
                seed=0,
                split="tuning",
            )
        ],
        budget=0.6,
        finetune=Schedule(epochs=1, lr=0.05, weight_decay=5e-4, batch=64),
        learning=Schedule(epochs=3, lr=0.05, weight_decay=5e-4, batch=64),
        scratch=Schedule(epochs=8, lr=0.1, weight_decay=5e-4, batch=64),
        seeds=(0, 1),
    ),
    timings=(),
)
