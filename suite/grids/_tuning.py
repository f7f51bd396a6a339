"""Trials of tuning: at most `TRIALS` of each method, on the validation part."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

from suite import methods
from suite.contract import OptOut, Pruner
from suite.grids import cross
from suite.schedule import Schedule
from suite.stages import Base, Pruned

TRIALS = 6
"""All combinations are tried of a method that has fewer: 2 or 3 of some, so that trials are not equally many."""


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
        for base in bases
        for trial in trials(methods.get(method), base.data, base.model)
        for run in cross(
            bases=[base],
            method=method,
            budgets=(budget,),
            finetune=finetune,
            learning=learning,
            scratch=scratch,
            seeds=seeds,
            tuned=False,
            **trial,
        )
    ]


def trials(kind: type[Pruner], data: str, model: str) -> list[Mapping[str, Any]]:
    """Return at most `TRIALS` combinations of `kind.search`: the recipe's without winners, then random ones.

    There is none if the method opts out. The draw depends on the method's name alone, so a new winner changes no trial.
    """
    recipe = kind.recipe(data, model, tuned=False)
    if isinstance(recipe, OptOut):
        return []
    settings = kind(**recipe.settings)
    first = {name: getattr(settings, name) for name in kind.search}
    combinations = [dict(zip(kind.search, values, strict=True)) for values in itertools.product(*kind.search.values())]
    rest = [each for each in combinations if each != first]
    random.Random(kind.__name__).shuffle(rest)
    return [first, *rest[: TRIALS - 1]]
