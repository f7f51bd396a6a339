"""torchvision's networks for ImageNet-size images; they run on 32x32 images too."""

from __future__ import annotations

import functools

from torch import nn


def _build(name: str, classes: int) -> nn.Module:
    from torchvision import models as zoo  # 90 MB, which runs on small images need not pay

    return zoo.get_model(name, weights=None, num_classes=classes)


MODELS = {name: functools.partial(_build, name) for name in ("resnet18", "resnet34", "resnet50", "vgg16_bn")}
