"""Latency of random groups and random filters at equal MACs on a GPU.

Nothing is trained: base networks have their initial weights and the images are random, so accuracies are chance and mean
nothing. Latency does not depend on the weights. The plans have the shape of DSP's (random channels of two random filter groups)
and of filter pruning (random filters, the residual stream included).
"""

from __future__ import annotations

from typing import Any

from suite.grids import Grid, cross
from suite.schedule import Schedule
from suite.stages import Base, Pruned, Timing

UNTRAINED = Schedule(epochs=0, lr=0.1, weight_decay=0.0)
CASES: tuple[tuple[str, str, float, dict[str, Any]], ...] = (
    ("resnet50", "random_groups", 0.7, {"groups": 2}),
    ("resnet50", "random_filter", 0.7, {"ranking": "layer", "scope": "coupled"}),
    ("resnet18", "random_groups", 0.6, {"groups": 2}),
    ("resnet18", "random_filter", 0.6, {"ranking": "layer", "scope": "coupled"}),
)
"""Model, method, budget, settings."""
FAST = tuple(Timing(device="cuda", batch=batch, precision="fp16", layout="channels_last") for batch in (128, 32, 1))
"""Batch 128 saturates a GPU with these images."""


def runs() -> list[Pruned]:
    """Return the cases, headline first."""
    return [
        run
        for model, method, budget, settings in CASES
        for run in cross(
            bases=[Base(data="synthetic_imagenet", model=model, schedule=UNTRAINED, seed=0)],
            method=method,
            budgets=[budget],
            finetune=UNTRAINED,
            **settings,
        )
    ]


GRID = Grid(
    title="Speed of random plans on a GPU",
    about=__doc__ or "",
    runs=runs,
    timings=(*FAST, Timing(device="cuda", batch=128)),
)
