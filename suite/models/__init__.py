"""Networks by name.

A file in this folder with `MODELS` (name -> builder) adds its models, without a further edit. A builder takes the number of
classes and returns a freshly initialised `nn.Module` that torch.fx can trace. `torchvision/NAME` and `timm/NAME` are the
classifiers of these packages.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from suite.models import _zoo
from suite.registry import broken, collect, module_of, pick_plugin

Builder = Callable[[int], nn.Module]


def available() -> dict[str, Builder]:
    """Return name -> builder of every model."""
    return collect("models", "MODELS")


def builder(name: str) -> Builder:
    """Return the builder of a model. Raises ValueError with the valid names."""
    if _zoo.is_name(name):
        return _zoo.builder(name)
    return pick_plugin("model", name, available(), broken("models", "MODELS"))


def build(name: str, classes: int) -> nn.Module:
    """Build a model for a number of classes. Raises ValueError with the valid names."""
    return builder(name)(classes)


def module(name: str) -> str:
    """Return the module that defines a model; "" if none does."""
    return _zoo.__name__ if _zoo.is_name(name) else module_of("models", "MODELS", name)
