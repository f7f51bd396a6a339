"""The modules that executions of packed layers are made of: reading channels by position, and convolving them with all that
follows in one operation where oneDNN or cuDNN can.

Shapes: N images, C channels of a tensor as it is laid out, O filters, I input channels, k kernel size.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.pack.layers import PackedConv, Take, is_channels_last

PIECE = 2**18
"""Elements that are gathered at a time; on a CPU this many stay in the cache."""
log = logging.getLogger(__name__)


class Read(nn.Module):
    """Channels of [N, C, H, W] by position; -1 gives 0."""

    def __init__(self, position_C: Tensor, width: int) -> None:
        super().__init__()
        self.take = Take(position_C.clamp(min=0), width)
        self.register_buffer("missing", (position_C < 0).nonzero()[:, 0], persistent=False)
        self.missing: Tensor

    @property
    def copies(self) -> bool:
        """Whether the result is a tensor of its own."""
        return len(self.missing) > 0 or not self.take.contiguous

    def forward(self, x: Tensor) -> Tensor:
        x = self.take(x)
        return x.index_fill(1, self.missing, 0) if len(self.missing) else x


def onednn_fusible(x: Tensor) -> bool:
    """Whether oneDNN can compute convolution, bias, sum and ReLU in one pass here, on weights that are laid out ahead."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def cudnn_fusible(x: Tensor) -> bool:
    """Whether cuDNN may compute convolution, bias, sum and ReLU in one pass here; for some shapes it then says that it cannot."""
    return x.is_cuda and x.dtype != torch.float64 and torch.backends.cudnn.is_available()


class FusedConv(nn.Module):
    """Convolution, bias, residual sum and ReLU. In place: the sum is made in the tensor that is added to."""

    def __init__(
        self, like: PackedConv, weight_OIkk: Tensor, bias_O: Tensor, groups: int, relu: bool, x: Tensor
    ) -> None:
        super().__init__()
        self.window: tuple[Any, ...] = (
            like.padding,
            like.stride,
            like.dilation,
            groups,
        )  # as oneDNN's operators take it
        self.relu = relu
        self.by_onednn = onednn_fusible(x)
        self.by_cudnn = relu and cudnn_fusible(x)
        layout = torch.channels_last if is_channels_last(x) else torch.contiguous_format
        weight = weight_OIkk.contiguous(memory_format=layout)
        if self.by_onednn:
            shape = [x.shape[0], weight.shape[1] * groups, *x.shape[2:]]
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.window, shape)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias_O, persistent=False)
        self.weight: Tensor
        self.bias: Tensor

    def forward(self, x: Tensor, other: Tensor | None = None, in_place: bool = False) -> Tensor:
        after = "relu" if self.relu else "none"
        if self.by_cudnn and (fused := self._cudnn(x, other)) is not None:
            return fused
        if not self.by_onednn:
            padding, stride, dilation, groups = self.window
            y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
            y = y if other is None else y.add_(other)
            return y.relu_() if self.relu else y
        ops = torch.ops.mkldnn
        if other is None:
            return ops._convolution_pointwise(x, self.weight, self.bias, *self.window, after, [None], "")
        sum_then: tuple[Any, ...] = ("add", 1.0, "relu" if self.relu else None, [], "")
        if in_place:
            return ops._convolution_pointwise_(other, x, self.weight, self.bias, *self.window, *sum_then)
        return ops._convolution_pointwise(x, other, self.weight, self.bias, *self.window, *sum_then)

    def _cudnn(self, x: Tensor, other: Tensor | None) -> Tensor | None:
        """In one pass, None where cuDNN has none for these shapes; it is not asked again."""
        padding, stride, dilation, groups = self.window
        window = stride, padding, dilation, groups
        try:
            if other is None:
                return torch.cudnn_convolution_relu(x, self.weight, self.bias, *window)
            return torch.cudnn_convolution_add_relu(x, self.weight, other, 1.0, self.bias, *window)
        except RuntimeError as error:
            if isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError)):
                raise
            log.info("cuDNN does not fuse a convolution of %s: %s", list(self.weight.shape), error)
            self.by_cudnn = False
            return None


class Reorder(nn.Module):
    """All channels of a channels_last tensor in another order, in its own memory: a second one would be the network's peak."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1).view(-1, x.shape[1])
        position_C = self.read.take.positions
        for piece in rows.split(max(1, PIECE // x.shape[1])):
            piece.copy_(piece.gather(1, position_C.expand(len(piece), -1)))
        return x


class Whole(nn.Module):
    """One convolution, grouped or not, on the channels that `read` gives, summed into those of `read_other`."""

    def __init__(self, conv: FusedConv, read: Read, read_other: nn.Module | None, in_place: bool) -> None:
        super().__init__()
        self.conv, self.read, self.read_other, self.in_place = conv, read, read_other, in_place
        self.gathers = read.copies

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        if self.read_other is not None:
            assert other is not None
            other = self.read_other(other)
        images = max(1, PIECE // (self.read.take.length * x.shape[2] * x.shape[3]))
        if images >= len(x) or x.device.type != "cpu" or not self.read.copies:
            return self.conv(self.read(x), other, self.in_place)
        # What is gathered of all images at once would be the network's peak.
        out = other if self.in_place and self.conv.by_onednn else None
        for start in range(0, len(x), images):
            piece = slice(start, start + images)
            y = self.conv(self.read(x[piece]), None if other is None else other[piece], self.in_place)
            if out is None:
                out = _empty(y, len(x), y.shape[1])
            if out is not other:
                out[piece] = y
        assert out is not None, "there is an image at least"
        return out


def _empty(like: Tensor, images: int, channels: int) -> Tensor:
    """A tensor of maps like these, and in their layout."""
    if is_channels_last(like):
        return like.new_empty(images, *like.shape[2:], channels).permute(0, 3, 1, 2)
    return like.new_empty(images, channels, *like.shape[2:])


class PerGroup(nn.Module):
    """One convolution per group on the channels that it reads, each put, or summed, into its place as soon as it is done."""

    def __init__(
        self, convs: Sequence[FusedConv], reads: Sequence[Read], read_other: nn.Module | None, relu: bool, copy: bool
    ) -> None:
        super().__init__()
        self.convs, self.reads = nn.ModuleList(convs), nn.ModuleList(reads)
        self.filters = sum(len(conv.bias) for conv in convs)
        self.read_other, self.relu, self.copy = read_other, relu, copy
        self.gathers = any(read.copies for read in reads)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        total = None
        if self.read_other is not None:
            total = self.read_other(other)
            total = total.clone() if self.copy else total
        start = 0
        for conv, read in zip(self.convs, self.reads, strict=True):
            part = conv(read(x))
            if total is None:
                total = _empty(part, len(x), self.filters)
            place = total.narrow(1, start, part.shape[1])
            _ = place.copy_(part) if self.read_other is None else place.add_(part)
            start += part.shape[1]
        assert total is not None, "there is a group at least"
        return total.relu_() if self.relu else total
