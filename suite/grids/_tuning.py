"""Trials of tuning: the same number for every method, on the validation part."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

from suite import methods
from suite.contract import Pruner
from suite.grids import cross
from suite.schedule import Schedule
from suite.stages import Base, Pruned

TRIALS = 6
"""Where a method has fewer combinations of settings, all of them are tried."""


def runs(
    bases: Sequence[Base],
    *,
    budget: float,
    finetune: Schedule,
    learning: Schedule,
    scratch: Schedule,
    seeds: Sequence[int],
) -> list[Pruned]:
    """Return the trials of every method; `scratch` is for learning from initial weights."""
    return [
        run
        for method in ("dsp", *methods.rivals(), *methods.rivals(evidence="abstract"))
        for trial in trials(methods.get(method), TRIALS)
        for run in cross(
            bases=bases,
            method=method,
            budgets=(budget,),
            finetune=finetune,
            learning=learning,
            scratch=scratch,
            seeds=seeds,
            **trial,
        )
    ]


def trials(kind: type[Pruner], count: int) -> list[Mapping[str, Any]]:
    """Return at most `count` combinations of `kind.search`: the defaults, then random ones.

    The draw depends on the method's name alone, not on its recipes, so a new winner changes no trial.
    """
    usual = kind()
    defaults = {name: getattr(usual, name) for name in kind.search}
    combinations = [dict(zip(kind.search, values, strict=True)) for values in itertools.product(*kind.search.values())]
    rest = [each for each in combinations if each != defaults]
    random.Random(kind.__name__).shuffle(rest)
    return [defaults, *rest[: count - 1]]
