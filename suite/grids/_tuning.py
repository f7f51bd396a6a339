"""What the tuning grids share: every method gets the same number of trials on the validation part."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from typing import Any

from suite.contract import Pruner


def trials(kind: type[Pruner], data: str, model: str, count: int) -> list[Mapping[str, Any]]:
    """At most `count` changes to the method's recipe: none, then others drawn from all combinations of `kind.search`.

    The draw depends on the method's name alone. There are fewer where a method has fewer combinations.
    """
    recipe = kind.for_task(data, model)
    combinations = [dict(zip(kind.search, values, strict=True)) for values in itertools.product(*kind.search.values())]
    others = [each for each in combinations if any(getattr(recipe, name) != value for name, value in each.items())]
    random.Random(kind.__name__).shuffle(others)
    return [{}, *others[: count - 1]]
