"""CIFAR ResNet of the released code, built from its weights alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class _Block(nn.Module):
    def __init__(self, state: Mapping[str, Tensor], prefix: str, stride: int) -> None:
        super().__init__()
        self.conv_a, self.bn_a = _conv_bn(state[f"{prefix}.conv_a.weight"], stride)
        self.conv_b, self.bn_b = _conv_bn(state[f"{prefix}.conv_b.weight"])
        shortcut = state.get(f"{prefix}.downsample.0.weight")
        self.downsample = nn.Identity() if shortcut is None else nn.Sequential(*_conv_bn(shortcut, stride))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn_a(self.conv_a(x)))
        return torch.relu(self.bn_b(self.conv_b(out)) + self.downsample(x))


class ReleasedResNet(nn.Module):
    """Network with the stages and blocks of `state`; later stages begin with stride 2.

    Raises ValueError when `state` lacks one of its tensors or holds another.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        places = sorted(
            {(int(key.split(".")[0][6:]), int(key.split(".")[1])) for key in state if key.startswith("stage_")}
        )
        try:
            self.conv_1_3x3, self.bn_1 = _conv_bn(state["conv_1_3x3.weight"])
            blocks = [_Block(state, f"stage_{s}.{b}", 2 if s > 1 and b == 0 else 1) for s, b in places]
            classes, features = state["classifier.weight"].shape
        except KeyError as error:
            raise ValueError(f"the network's state lacks {error.args[0]}") from error
        self._stages = [f"stage_{s}" for s in dict.fromkeys(s for s, _ in places)]
        for name, stage in zip(self._stages, dict.fromkeys(s for s, _ in places), strict=True):
            members = [block for (s, _), block in zip(places, blocks, strict=True) if s == stage]
            self.add_module(name, nn.Sequential(*members))
        self.classifier = nn.Linear(features, classes)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.to(state["classifier.weight"].dtype)
        try:
            self.load_state_dict(dict(state))
        except RuntimeError as error:
            raise ValueError(f"the network's state does not fit: {' '.join(str(error).split())}") from error

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = torch.relu(self.bn_1(self.conv_1_3x3(x)))
        for name in self._stages:
            x = self.get_submodule(name)(x)
        return self.classifier(torch.flatten(self.avgpool(x), 1))


def _conv_bn(weight: Tensor, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    filters, channels, kernel, _ = weight.shape
    return nn.Conv2d(channels, filters, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(filters)
