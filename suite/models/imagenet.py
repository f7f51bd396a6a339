"""Networks of torchvision for ImageNet-size images, which accept 32x32 images too."""

from __future__ import annotations

import functools

from torch import nn


def _build(name: str, classes: int) -> nn.Module:
    from torchvision import models as zoo  # 90 MB of memory, loaded only if needed

    return zoo.get_model(name, weights=None, num_classes=classes)


MODELS = {name: functools.partial(_build, name) for name in ("resnet18", "resnet34", "resnet50", "vgg16_bn")}
