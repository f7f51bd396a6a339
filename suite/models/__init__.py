"""Networks by name.

A file in this folder with `MODELS` (name -> builder) adds its models, without a further edit. A builder takes the number of
classes and returns a freshly initialised `nn.Module` that torch.fx can trace.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from suite.registry import broken, collect, pick

Builder = Callable[[int], nn.Module]


def available() -> dict[str, Builder]:
    """Return name -> builder of every model."""
    return collect("models", "MODELS")


def build(name: str, classes: int) -> nn.Module:
    """Build a model for a number of classes. Raises ValueError with the valid names."""
    return pick("model", name, available(), broken("models", "MODELS"))(classes)
