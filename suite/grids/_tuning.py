"""What the tuning grids share: every method gets the same number of trials on the validation part."""

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
    """The trials of every method; `scratch` is the schedule of those that learn from the initial weights."""
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
    """At most `count` values of what the method searches: its defaults, then others drawn from all combinations of `kind.search`.

    The draw depends on the method's name alone, and nothing on its recipes: a winner that becomes one changes no trial. There
    are fewer where a method has fewer combinations.
    """
    usual = kind()
    defaults = {name: getattr(usual, name) for name in kind.search}
    combinations = [dict(zip(kind.search, values, strict=True)) for values in itertools.product(*kind.search.values())]
    others = [each for each in combinations if each != defaults]
    random.Random(kind.__name__).shuffle(others)
    return [defaults, *others[: count - 1]]
