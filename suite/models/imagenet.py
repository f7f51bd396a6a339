"""torchvision's networks for ImageNet-size images; they run on 32x32 images too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torchvision.models as zoo
from torch import nn


def _build(builder: Callable[..., Any], classes: int) -> nn.Module:
    return builder(weights=None, num_classes=classes)


MODELS = {
    name: functools.partial(_build, getattr(zoo, name)) for name in ("resnet18", "resnet34", "resnet50", "vgg16_bn")
}
