"""Networks of torchvision and timm by name: `torchvision/mobilenet_v2`, `timm/resnet50.a1_in1k`."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import nn

ZOOS = ("torchvision", "timm")
AUXILIARY: Mapping[str, Any] = {"aux_logits": False, "init_weights": True}
"""Arguments of the two families with auxiliary classifiers, which no other training loop would use."""
WITH_AUXILIARY = ("googlenet", "inception_v3")


def is_name(name: str) -> bool:
    """Return True for the name of a network in a zoo."""
    return name.partition("/")[0] in ZOOS and "/" in name


@functools.lru_cache(maxsize=64)
def builder(name: str) -> Callable[[int], nn.Module]:
    """Return the builder of a network without pretrained weights.

    Raises ValueError if the package is not installed, or has no classifier of this name.
    """
    zoo, _, model = name.partition("/")
    return _of_timm(model) if zoo == "timm" else _of_torchvision(model)


def timm() -> ModuleType:
    """Return the package timm. Raises ValueError if it is not installed."""
    try:
        import timm as package  # slow to import, and not installed everywhere
    except ImportError as error:
        raise ValueError("a timm/NAME needs the package timm, which is not installed: pip install timm") from error
    return package


def timm_weights(name: str) -> Any:
    """Return timm's entry of pretrained weights, None for a model without any.

    Raises ValueError with the valid tags if the model has no weights of this tag.
    """
    try:
        return timm().get_pretrained_cfg(name)
    except RuntimeError as error:
        model, _, tag = name.partition(".")
        tags = [other.partition(".")[2] for other in timm().list_pretrained(f"{model}.*")]
        raise ValueError(f"timm has no weights {tag!r} of {model}; its tags: {', '.join(tags) or 'none'}") from error


def _of_timm(model: str) -> Callable[[int], nn.Module]:
    package = timm()
    if not package.is_model(model):
        raise ValueError(f"timm has no model {model!r}{_close(model, package.list_models())}")
    timm_weights(model)
    return lambda classes: package.create_model(model, pretrained=False, num_classes=classes)


def _of_torchvision(model: str) -> Callable[[int], nn.Module]:
    from torchvision import models as zoo  # 90 MB of memory, loaded only if needed

    names = zoo.list_models(module=zoo)
    if model not in names:
        raise ValueError(f"torchvision has no classifier {model!r}{_close(model, names)}")
    more = AUXILIARY if model in WITH_AUXILIARY else {}
    return lambda classes: zoo.get_model(model, weights=None, num_classes=classes, **more)


def _close(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3)
    return f"; did you mean {', '.join(close)}?" if close else f"; it has {len(names)}, such as {names[0]}"
