"""Modules of a packed network.

Shapes: N images, O live filters, I live input channels, G filter groups, k kernel size.

A channel index is a position in the packed input, whose channels are the live ones of the full network in some order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FOLDED_SHARE, FOLDED_WIDTH = 0.6, 32
"""A training step with channels_last reads all input channels of a layer, with weights of 0, if its union is more than this
share of them or they are at most this many: a matrix unit takes as long for 16 channels as for 6."""

SPLIT_PRODUCTS, SPLIT_SHARE = 100, 0.75
"""A layer trains faster by groups than by the union of their channels if a gathered value is a factor of at least so many
products in a group (filters * kernel entries / stride^2, mean of the groups), and if the groups have at most this share of the
union's products. Measured in fp32 on a CPU with AVX2, for layers of ResNet-20, -50 and VGG-16."""


def is_channels_last(x: Tensor) -> bool:
    """Return True if the channels of one pixel of [N, C, H, W] are contiguous."""
    return x.ndim == 4 and x.stride(1) == 1 and x.shape[1] > 1


def one_hot(positions: Tensor, width: int, like: Tensor) -> Tensor:
    """Return the 1x1 kernel [O, C, 1, 1] that takes the channels at `positions`.

    Its convolution is exact. In training with channels_last it takes less time than a gather, whose backward pass adds
    channel by channel.
    """
    return F.one_hot(positions, width).to(like.dtype)[..., None, None]


class Take(nn.Module):
    """Channels by position: a view if contiguous, else a gather.

    The channels are in dimension `axis`.
    """

    def __init__(self, positions: Tensor, width: int, axis: int = 1) -> None:
        super().__init__()
        self.register_buffer("positions", positions, persistent=False)
        steps = positions.diff()
        self.axis = axis
        self.contiguous = bool((steps == 1).all())
        self.start, self.length = int(positions[0]), len(positions)
        self.everything = self.contiguous and self.length == width
        self.positions: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.everything:
            return x
        channels_last = self.axis == 1 and is_channels_last(x)
        if self.training and channels_last and x.is_floating_point():
            return F.conv2d(x, one_hot(self.positions, x.shape[1], x))
        return self.gather(x)

    def gather(self, x: Tensor) -> Tensor:
        """Return the channels as a view or by a copy, never by a convolution."""
        if self.contiguous:
            return x.narrow(self.axis, self.start, self.length)
        if x.device.type != "cpu" or not (self.axis == 1 and is_channels_last(x)):
            return x.index_select(self.axis, self.positions)
        # On a CPU index_select takes about ten times as long as a gather of rows if channels are contiguous.
        rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        rows = rows.gather(1, self.positions.expand(rows.shape[0], -1))  # len() would be a constant of an export
        return rows.view(x.shape[0], *x.shape[2:], self.length).permute(0, 3, 1, 2)


class PackedConv(nn.Module):
    """A convolution whose filter groups read different channels; its output channels are ordered by group.

    reads_G     positions of the channels that each group keeps
    filters_G   number of live filters of each group
    like        the convolution with this stride, dilation and presence of a bias
    padding     numeric, of the convolution if None

    `forward` is one dense convolution over the union of the kept channels, with weights of 0 outside of a group's channels, or in
    training after `split` one convolution a group. `suite.pack.tuned` replaces these forms for inference.
    """

    def __init__(
        self,
        like: nn.Conv2d,
        reads_G: list[Tensor],
        filters_G: list[int],
        width: int,
        padding: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.stride, self.dilation = like.stride, like.dilation
        self.padding: Any = like.padding if padding is None else padding
        self.filters_G = filters_G
        takes = [Take(positions, width) for positions in reads_G]
        self.takes = nn.ModuleList(takes)
        self.weights = nn.ParameterList(
            like.weight.new_empty(filters, len(positions), *like.kernel_size)
            for positions, filters in zip(reads_G, filters_G, strict=True)
        )
        self.bias = None if like.bias is None else nn.Parameter(like.bias.new_empty(sum(filters_G)))
        in_order = len(reads_G) == 1 and takes[0].contiguous
        union = reads_G[0] if in_order else torch.cat(reads_G).unique()
        self.union_take = takes[0] if in_order else Take(union, width)
        self.width = width
        whole = len(reads_G) == 1 and takes[0].everything
        self.folds = not whole and (self.union_take.length > FOLDED_SHARE * width or width <= FOLDED_WIDTH)
        if self.folds:
            self._register_rows(reads_G)
        for g, positions in enumerate(reads_G):
            self.register_buffer(f"columns_{g}", torch.searchsorted(union, positions), persistent=False)
        self.splits = False

    def split(self) -> None:
        """Train by one convolution a group, if that is faster by the rule of `SPLIT_PRODUCTS`."""
        per_value = sum(self.filters_G) * math.prod(self.weights[0].shape[2:]) / math.prod(self.stride)
        pairs = sum(weight.shape[0] * weight.shape[1] for weight in self.weights)
        saves = pairs <= SPLIT_SHARE * sum(self.filters_G) * self.union_take.length
        self.splits = saves and per_value >= SPLIT_PRODUCTS * len(self.filters_G)

    def _register_rows(self, reads_G: list[Tensor]) -> None:
        """Register the entries of `folded_weight` that the weights fill."""
        width, filters_G = self.width, self.filters_G
        firsts = torch.tensor([0, *filters_G]).cumsum(0).tolist()
        rows = [
            ((torch.arange(filters, device=positions.device) + first)[:, None] * width + positions).flatten()
            for first, filters, positions in zip(firsts, filters_G, reads_G, strict=False)
        ]
        self.register_buffer("rows", torch.cat(rows), persistent=False)

    def union_weight(self) -> Tensor:
        """Return the weight [O, I, k, k] over the union of kept channels."""
        channels = self.union_take.length
        rows = [
            weight.new_zeros(len(weight), channels, *weight.shape[2:]).index_copy(
                1, self.get_buffer(f"columns_{g}"), weight
            )
            for g, weight in enumerate(self.weights)
        ]
        return torch.cat(rows)

    def folded_weight(self) -> Tensor:
        """Return the weight [O, C, k, k] over all input channels."""
        kernel = self.weights[0].shape[2:]
        kernels = torch.cat([weight.reshape(-1, kernel.numel()) for weight in self.weights])
        every = kernels.new_zeros(sum(self.filters_G) * self.width, kernel.numel())
        return every.index_copy_(0, self.get_buffer("rows"), kernels).view(-1, self.width, *kernel)

    def forward(self, x: Tensor) -> Tensor:
        if self.splits and self.training:
            takes: Any = self.takes
            return by_group(self, (take.gather(x) for take in takes))
        if self.folds and self.training and is_channels_last(x):
            return F.conv2d(x, self.folded_weight(), self.bias, self.stride, self.padding, self.dilation)
        one = len(self.weights) == 1  # its channels may be in another order than the union's
        take, weight = (self.takes[0], self.weights[0]) if one else (self.union_take, self.union_weight())
        return F.conv2d(take(x), weight, self.bias, self.stride, self.padding, self.dilation)


class GroupedConv(nn.Module):
    """The inference form of a `PackedConv`: one convolution per filter group, with the same parameters."""

    def __init__(self, conv: PackedConv) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.filters_G, self.takes, self.weights, self.bias = conv.filters_G, conv.takes, conv.weights, conv.bias

    @property
    def reads_G(self) -> list[Tensor]:
        """Positions of the channels that each group keeps."""
        return [take.get_buffer("positions") for take in self.takes]

    def forward(self, x: Tensor) -> Tensor:
        return by_group(self, (take(x) for take in self.takes))


def by_group(conv: PackedConv | GroupedConv, inputs_G: Iterable[Tensor]) -> Tensor:
    """Return the output of one convolution per group on its channels."""
    biases = [None] * len(conv.weights) if conv.bias is None else list(conv.bias.split(conv.filters_G))
    outputs = [
        F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation)
        for x, weight, bias in zip(inputs_G, conv.weights, biases, strict=True)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)


class PackedShortcut(nn.Module):
    """An option-A shortcut without its zero channels: every `stride`-th pixel of the live channels."""

    def __init__(self, stride: int, positions: Tensor, width: int) -> None:
        super().__init__()
        self.stride = stride
        self.take = Take(positions, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and is_channels_last(x):
            return F.conv2d(x, one_hot(self.take.positions, x.shape[1], x), stride=self.stride)
        return self.take(x)[:, :, :: self.stride, :: self.stride]


class SumInto(nn.Module):
    """A residual sum whose `addend` has a subset of the channels of `total`."""

    def __init__(self, positions: Tensor) -> None:
        super().__init__()
        self.register_buffer("positions", positions, persistent=False)
        self.positions: Tensor

    def forward(self, total: Tensor, addend: Tensor) -> Tensor:
        if self.training and is_channels_last(total):
            return total + F.conv2d(addend, one_hot(self.positions, total.shape[1], addend).transpose(0, 1))
        return total.index_add(1, self.positions, addend)


class Spread(nn.Module):
    """Channels scattered to their positions among `width` channels, 0 elsewhere. They are in dimension `axis`."""

    def __init__(self, positions: Tensor, width: int, axis: int = 1) -> None:
        super().__init__()
        self.width = width
        self.axis = axis
        self.register_buffer("positions", positions, persistent=False)
        self.positions: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.axis == 1 and is_channels_last(x):
            return F.conv2d(x, one_hot(self.positions, self.width, x).transpose(0, 1))
        shape = (*x.shape[: self.axis], self.width, *x.shape[self.axis + 1 :])
        return x.new_zeros(shape).index_copy(self.axis, self.positions, x)


class Constant(nn.Module):
    """The result of a layer without live inputs: its bias for every image, or zeros.

    sizes  [C, ...] of one image; `axis` is the dimension of the channels in the batch
    """

    def __init__(self, bias: Tensor | None, sizes: Sequence[int], axis: int = 1) -> None:
        super().__init__()
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.sizes = tuple(sizes)
        self.trailing = (1,) * (len(sizes) - axis)

    def forward(self, image: Tensor) -> Tensor:
        zeros = image.new_zeros(image.shape[0], *self.sizes)
        return zeros if self.bias is None else zeros + self.bias.view(-1, *self.trailing)
