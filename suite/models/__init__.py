"""Networks by name. A file in this folder with `MODELS` (name -> builder) adds its own; nothing else is to be edited.

A builder takes the number of classes and returns a freshly initialised `nn.Module` that torch.fx can trace.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from suite.registry import collect, pick

Builder = Callable[[int], nn.Module]


def available() -> dict[str, Builder]:
    """Name -> builder of every model."""
    return collect(__name__, "MODELS")


def build(name: str, classes: int) -> nn.Module:
    """The model `name` for that many classes. Raises ValueError with the valid names."""
    return pick("model", name, available())(classes)
