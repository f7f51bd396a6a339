"""VGG networks with batch norm for 32x32 images: convolutions, then one linear layer.

`vgg16` has the 13 convolutions of Simonyan and Zisserman 2015 (configuration D) and a 512 -> classes classifier, the
usual CIFAR form. `vgg6` is a narrow network of five convolutions for quick runs.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
VGG6 = ("M", 16, "M", 32, 32, "M", 64, 64, "M")


class CifarVGG(nn.Module):
    """3x3 convolutions of given widths, each with batch norm and ReLU.

    "M" in `layout` is a 2x2 max pooling.
    """

    def __init__(self, layout: tuple[int | str, ...], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for item in layout:
            if isinstance(item, int):
                conv = nn.Conv2d(channels, item, 3, padding=1, bias=False)
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                layers += [conv, nn.BatchNorm2d(item), nn.ReLU()]
                channels = item
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


MODELS = {
    "vgg16": functools.partial(CifarVGG, VGG16),
    "vgg6": functools.partial(CifarVGG, VGG6),
}
