"""The same tuning on the embedded data, in minutes: every method's hyperparameters on the validation part of the digits."""

from __future__ import annotations

from suite import methods
from suite.grids import Grid, cross
from suite.grids._rivals import CONTROLS, CRITERIA, FROM_SCRATCH, LEARNING, RECONSTRUCTING
from suite.grids._tuning import trials
from suite.schedule import Schedule
from suite.stages import Base, Pruned

TRIALS = 6
MODEL = "resnet8"
BASE = Schedule(epochs=5, lr=0.1, weight_decay=5e-4, batch=64)
LEARN = Schedule(epochs=3, lr=0.05, weight_decay=5e-4, batch=64)
FROM_INIT = Schedule(epochs=8, lr=0.1, weight_decay=5e-4, batch=64)
FINETUNE = Schedule(epochs=1, lr=0.05, weight_decay=5e-4, batch=64)


def runs() -> list[Pruned]:
    """Up to six trials of each method."""
    bases = [Base(data="digits", model=MODEL, schedule=BASE, seed=seed, split="tuning") for seed in (0, 1)]
    return [
        run
        for method in ("dsp", *CRITERIA, *CONTROLS, *RECONSTRUCTING, *LEARNING, *FROM_SCRATCH)
        for trial in trials(methods.get(method), "digits", MODEL, TRIALS)
        for run in cross(
            bases=bases,
            method=method,
            budgets=(0.6,),
            finetune=FINETUNE,
            learning=FROM_INIT if method in FROM_SCRATCH else LEARN,
            **trial,
        )
    ]


GRID = Grid(title="Tuning of every method on digits", about=__doc__ or "", runs=runs, timings=())
