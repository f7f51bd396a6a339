"""Modules of executions: readers of channels, and convolutions fused with bias, sum and ReLU.

Shapes: N images, C channels of a tensor as it is laid out, O filters, I input channels, k kernel size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite import private_api
from suite.pack.modules import GroupedConv, Take, is_channels_last

Memory = Literal["any", "least"]
PIECES: Mapping[Memory, int] = {"any": 2**18, "least": 2**16}
"""Elements that a layer gathers or slices per step on a CPU. 2^18 stay in the cache; 2^16 take more calls, and their memory does
not count beside two tensors of a layer (`tests/benchmarks/memory.py`)."""
log = logging.getLogger(__name__)


class Read(nn.Module):
    """Channels of [N, C, H, W] by position, 0 for -1."""

    def __init__(self, position_C: Tensor, width: int) -> None:
        super().__init__()
        self.take = Take(position_C.clamp(min=0), width)
        self.register_buffer("missing", (position_C < 0).nonzero()[:, 0], persistent=False)
        self.missing: Tensor

    @property
    def copies(self) -> bool:
        """True if the result is a new tensor, not a view."""
        return len(self.missing) > 0 or not self.take.contiguous

    def forward(self, x: Tensor) -> Tensor:
        taken = self.take(x)
        if not len(self.missing):
            return taken
        # A gather is a new tensor, which a second one beside it would double.
        return (taken.index_fill if self.take.contiguous else taken.index_fill_)(1, self.missing, 0)


def onednn_fusible(x: Tensor) -> bool:
    """Return True if oneDNN can compute convolution, bias, sum and ReLU in one pass."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and private_api.has_onednn()


def cudnn_fusible(x: Tensor) -> bool:
    """Return True if cuDNN may fuse convolution, bias, sum and ReLU.

    For some shapes the fused operation raises RuntimeError.
    """
    return x.is_cuda and x.dtype != torch.float64 and private_api.has_cudnn()


class FusedConv(nn.Module):
    """Convolution, bias, residual sum and ReLU, in one operation if oneDNN or cuDNN can.

    like   the convolution with this stride, padding and dilation
    x      a tensor with the shape, type, layout and device of the inputs
    """

    def __init__(
        self, like: GroupedConv | nn.Conv2d, weight_OIkk: Tensor, bias_O: Tensor, groups: int, relu: bool, x: Tensor
    ) -> None:
        super().__init__()
        self.window = (like.padding, like.stride, like.dilation, groups)
        self.relu = relu
        self.by_onednn = onednn_fusible(x)
        self.by_cudnn = relu and cudnn_fusible(x)
        layout = torch.channels_last if is_channels_last(x) else torch.contiguous_format
        weight = weight_OIkk.contiguous(memory_format=layout)
        if self.by_onednn:
            shape = [x.shape[0], weight.shape[1] * groups, *x.shape[2:]]
            weight = private_api.onednn_weight(weight, self.window, shape)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias_O, persistent=False)
        self.weight: Tensor
        self.bias: Tensor

    def forward(self, x: Tensor, addend: Tensor | None = None, in_place: bool = False) -> Tensor:
        """Return the output; `in_place` allows to overwrite the addend."""
        if self.by_cudnn and (fused := self._cudnn(x, addend)) is not None:
            return fused
        if not self.by_onednn:
            padding, stride, dilation, groups = self.window
            y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
            y = y if addend is None else y.add_(addend)
            return y.relu_() if self.relu else y
        if addend is None:
            return private_api.onednn_convolution(x, self.weight, self.bias, self.window, relu=self.relu)
        return private_api.onednn_convolution_add(
            x, addend, self.weight, self.bias, self.window, relu=self.relu, in_place=in_place
        )

    def _cudnn(self, x: Tensor, addend: Tensor | None) -> Tensor | None:
        """Return the fused output, None from the first shape on that cuDNN cannot fuse."""
        try:
            return private_api.cudnn_convolution_relu(x, self.weight, self.bias, self.window, addend)
        except RuntimeError as error:
            if isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError)):
                raise
            log.info("cuDNN does not fuse a convolution of %s: %s", list(self.weight.shape), error)
            self.by_cudnn = False
            return None


class Reorder(nn.Module):
    """All channels of a channels_last tensor in another order, in place.

    A second tensor of this size would be the network's peak memory.
    """

    def __init__(self, read: Read, piece: int) -> None:
        super().__init__()
        self.read, self.piece = read, piece

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1).view(-1, x.shape[1])
        position_C = self.read.take.positions
        for piece in rows.split(max(1, self.piece // x.shape[1])):
            piece.copy_(piece.gather(1, position_C.expand(len(piece), -1)))
        return x


def _pieces(x: Tensor, reads: Iterable[Any], piece: int) -> list[slice]:
    """Return the parts of a batch that are convolved one after the other.

    The gathered channels of all images at once would be the network's peak memory, and so would slices, which oneDNN copies.
    """
    channels = max((read.take.length for read in reads if read.copies or not read.take.everything), default=0)
    images = max(1, piece // (channels * x.shape[2] * x.shape[3])) if channels and x.device.type == "cpu" else len(x)
    return [slice(start, start + images) for start in range(0, len(x), images)]


class Whole(nn.Module):
    """One convolution, grouped or not, on the channels of `read`, summed into those of `read_addend`."""

    def __init__(self, conv: FusedConv, read: Read, read_addend: nn.Module | None, in_place: bool, piece: int) -> None:
        super().__init__()
        self.conv, self.read, self.read_addend, self.in_place = conv, read, read_addend, in_place
        self.gathers, self.piece = read.copies, piece

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        if self.read_addend is not None:
            assert addend is not None
            addend = self.read_addend(addend)
        pieces = _pieces(x, [self.read], self.piece)
        if len(pieces) == 1:
            return self.conv(self.read(x), addend, self.in_place)
        out = addend if self.in_place and self.conv.by_onednn else None
        for piece in pieces:
            y = self.conv(self.read(x[piece]), None if addend is None else addend[piece], self.in_place)
            if out is None:
                out = _empty(y, len(x), y.shape[1])
            if out is not addend:
                out[piece] = y
        assert out is not None, "there is an image at least"
        return out


def _empty(like: Tensor, images: int, channels: int) -> Tensor:
    """Return an empty tensor with the map size and the layout of `like`."""
    if is_channels_last(like):
        return like.new_empty(images, *like.shape[2:], channels).permute(0, 3, 1, 2)
    return like.new_empty(images, channels, *like.shape[2:])


class PerGroup(nn.Module):
    """One convolution per group; each output is written or added to its slice at once."""

    def __init__(
        self,
        convs: Sequence[FusedConv],
        reads: Sequence[Read],
        read_addend: nn.Module | None,
        relu: bool,
        copy: bool,
        piece: int,
    ) -> None:
        super().__init__()
        self.convs, self.reads = nn.ModuleList(convs), nn.ModuleList(reads)
        self.filters = sum(len(conv.bias) for conv in convs)
        self.read_addend, self.relu, self.copy = read_addend, relu, copy
        self.gathers, self.piece = any(read.copies for read in reads), piece

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        total = None
        if self.read_addend is not None:
            total = self.read_addend(addend)
            total = total.clone() if self.copy else total
        for piece in _pieces(x, self.reads, self.piece):
            start = 0
            for conv, read in zip(self.convs, self.reads, strict=True):
                part = conv(read(x[piece]))
                if total is None:
                    total = _empty(part, len(x), self.filters)
                place = total[piece].narrow(1, start, part.shape[1])
                _ = place.copy_(part) if self.read_addend is None else place.add_(part)
                start += part.shape[1]
        assert total is not None, "there is a group at least"
        return total.relu_() if self.relu else total
