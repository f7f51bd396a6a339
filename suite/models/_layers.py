"""Layers that several models share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PaddedShortcut(nn.Module):
    """Option A of He et al. 2016, section 4.2.

    Takes every `stride`-th pixel and pads with zero channels on both sides.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))
