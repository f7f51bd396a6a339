"""ResNets for 32x32 images (He et al. 2016, section 4.2).

Three stages of 16, 32 and 64 channels; depth = 6 n + 2. `resnetD` has 1x1-convolution shortcuts where the shape changes (option
B, as DSP's released code), `resnetD_a` has shortcuts without parameters (option A). Kaiming normal fan-out initialisation, zero
classifier bias.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from suite.models._layers import PaddedShortcut


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv_a = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn_a = nn.BatchNorm2d(channels)
        self.conv_b = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn_b = nn.BatchNorm2d(channels)
        self.downsample: nn.Module
        if stride == 1 and in_channels == channels:
            self.downsample = nn.Identity()
        elif option == "a":
            self.downsample = PaddedShortcut(in_channels, channels, stride)
        else:
            conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn_a(self.conv_a(x)))
        return torch.relu(self.bn_b(self.conv_b(out)) + self.downsample(x))


def _stage(blocks: int, in_channels: int, channels: int, stride: int, option: str) -> nn.Sequential:
    first = Block(in_channels, channels, stride, option)
    return nn.Sequential(first, *(Block(channels, channels, 1, option) for _ in range(blocks - 1)))


class CifarResNet(nn.Module):
    """`blocks` blocks in each of three stages; option "a" or "b" shortcuts."""

    def __init__(self, blocks: int, classes: int, option: str = "b", width: int = 16) -> None:
        super().__init__()
        self.conv_1_3x3 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn_1 = nn.BatchNorm2d(width)
        self.stage_1 = _stage(blocks, width, width, 1, option)
        self.stage_2 = _stage(blocks, width, 2 * width, 2, option)
        self.stage_3 = _stage(blocks, 2 * width, 4 * width, 2, option)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.kaiming_normal_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn_1(self.conv_1_3x3(x)))
        x = self.stage_3(self.stage_2(self.stage_1(x)))
        return self.classifier(torch.flatten(self.avgpool(x), 1))


def _build(depth: int, option: str, classes: int) -> CifarResNet:
    return CifarResNet((depth - 2) // 6, classes, option)


MODELS = {
    f"resnet{depth}{suffix}": functools.partial(_build, depth, option)
    for depth in (8, 20, 32, 44, 56, 110)
    for suffix, option in (("", "b"), ("_a", "a"))
}
