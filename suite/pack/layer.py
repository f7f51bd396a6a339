"""The data of one layer that executions build on, and the order of its channels.

Shapes: N images, C channels of a tensor as it is laid out, O filters, I input channels, G filter groups, k kernel size.

A tensor of a tuned network may hold its channels in any order, and channels without a reader. `columns_C` holds the packed
channel of each, -1 for padding. An execution may therefore put out its filters in any order and pad them. Padding holds any
finite values: every reader multiplies padding by weights of 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.pack.modules import GroupedConv, is_channels_last
from suite.pack.operations import PIECES, Read, Reorder

VECTOR, MATRIX = 8, 32
"""Channels per memory access of a GPU (16 bytes of fp16), and per step of its matrix units in half precision: there a 3x3
convolution of 64 channels takes less time than one of 34 or of 40 (`suite.measure.staircase`)."""

Built = tuple[nn.Module, Tensor]
"""An execution of one layer, and the packed channel of each channel of its output."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A packed convolution with the residual sum and the ReLU that follow it.

    The batch norm is folded.

    reads_G  the packed channels that each group reads
    place_O  the position of each filter among the `width` channels of the output, which are those of the residual sum if there
             is one
    rank     a sort key per output channel; in this order the groups of the output's only reader read slices
    """

    name: str
    conv: GroupedConv
    reads_G: list[Tensor]
    place_O: Tensor
    width: int
    relu: bool
    rank: Tensor

    def places_G(self) -> list[Tensor]:
        """Return the positions of each group's filters in the output."""
        return list(self.place_O.split(self.conv.filters_G))

    def bias_O(self) -> Tensor:
        """Return the bias, zeros if the convolution has none."""
        return self.conv.weights[0].new_zeros(len(self.place_O)) if self.conv.bias is None else self.conv.bias

    def weight_OIkk(self, rows_O: Tensor, reads_I: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight and bias that read the channels `reads_I` and put out `rows_O`.

        Entries are 0 for rows and channels of -1, and for channels that the group of a row does not read.
        """
        first = self.conv.weights[0]
        weight = first.new_zeros(len(rows_O), len(reads_I), *first.shape[2:])
        bias = first.new_zeros(len(rows_O))
        for weight_OIkk, bias_O, reads, places in zip(
            self.conv.weights, self.bias_O().split(self.conv.filters_G), self.reads_G, self.places_G(), strict=True
        ):
            rows, filters = (rows_O[:, None] == places).nonzero().T
            columns, channels = (reads_I[:, None] == reads).nonzero().T
            weight[rows[:, None], columns] = weight_OIkk[filters][:, channels]
            bias[rows] = bias_O[filters]
        return weight, bias

    def reference(self, operands: Operands) -> Tensor:
        """Return the output in the packed order of channels, by one plain convolution per group."""
        conv = self.conv
        parts = [
            F.conv2d(operands.read(reads)(operands.x), weight, bias, conv.stride, conv.padding, conv.dilation)
            for reads, weight, bias in zip(self.reads_G, conv.weights, self.bias_O().split(conv.filters_G), strict=True)
        ]
        y = torch.cat(parts, 1)
        read = operands.read_addend(torch.arange(self.width))
        total = y.new_zeros(y.shape[0], self.width, *y.shape[2:]) if read is None else read(operands.addend)
        total = total.index_add(1, self.place_O.to(y.device), y)
        return total.relu() if self.relu else total


def positions(channels: Tensor, columns_C: Tensor) -> Tensor:
    """Return the index of each packed channel in `columns_C`, -1 if it is not there."""
    equal = channels[:, None] == columns_C
    return torch.where(equal.any(1) & (channels >= 0), equal.int().argmax(1), -1)


def _or_any(position_C: Tensor, width: int) -> Tensor:
    """Replace -1 by its index, so that padding needs no gather."""
    return torch.where(position_C < 0, torch.arange(len(position_C)).clamp(max=width - 1), position_C)


@dataclass(frozen=True, kw_only=True)
class Operands:
    """Input and addend of a layer, with their packed channels.

    in_place  True if the addend may be overwritten
    piece     elements that are gathered or sliced per step (`operations.PIECES`)
    block     on a CPU, channels per block of the runtime's tensors; widths are padded to whole blocks
    """

    x: Tensor
    columns_C: Tensor
    addend: Tensor | None = None
    addend_columns_C: Tensor | None = None
    in_place: bool = False
    piece: int = PIECES["any"]
    block: int = 1

    def read(self, channels: Tensor) -> Read:
        """Return a reader of packed channels of the input.

        A channel of -1 reads any channel, for weights of 0.
        """
        width = len(self.columns_C)
        return Read(_or_any(positions(channels, self.columns_C), width), width).to(self.x.device)

    def read_addend(self, channels: Tensor) -> Read | None:
        """Return a reader of packed channels of the addend, 0 for channels that it lacks."""
        if self.addend_columns_C is None:
            return None
        width = len(self.addend_columns_C)
        position = positions(channels, self.addend_columns_C)
        return Read(torch.where(channels < 0, _or_any(position, width), position), width).to(self.x.device)

    def addend_as(self, channels: Tensor) -> tuple[nn.Module | None, bool]:
        """Return a reader of the addend's packed channels for a sum.

        The second value is True if the sum may overwrite its result. On a CPU the reader reorders the addend in place if it can.
        """
        read = self.read_addend(channels)
        if read is None:
            return None, False
        return (Reorder(read, self.piece) if self.reorders(channels) else read), self.in_place or read.copies

    def reorders(self, channels: Tensor) -> bool:
        """Return True if the addend can be reordered in place.

        It can on a CPU, in channels_last, if `channels` is a permutation of its channels.
        """
        columns, addend = self.addend_columns_C, self.addend
        if columns is None or addend is None or not self.in_place or addend.device.type != "cpu":
            return False
        permuted = not torch.equal(columns, channels) and torch.equal(columns.sort().values, channels.sort().values)
        dense = is_channels_last(addend) and addend.is_contiguous(memory_format=torch.channels_last)
        return permuted and dense and bool((columns >= 0).all())


def vectors(rows: Tensor, operands: Operands) -> Tensor:
    """Pad `rows` with -1 to whole blocks.

    On a GPU a block is a `VECTOR`. In half precision more than `MATRIX` rows are padded to a multiple of `MATRIX`.
    """
    x = operands.x
    wide = x.element_size() == 2 and len(rows) > MATRIX
    multiple = (MATRIX if wide else VECTOR) if x.is_cuda else operands.block
    return F.pad(rows, (0, -len(rows) % multiple), value=-1)


def output_order(layer: Layer, operands: Operands) -> Tensor:
    """Return the addend's order of output channels, else the order by `Layer.rank`."""
    every = torch.arange(layer.width)
    columns = operands.addend_columns_C
    if columns is None:
        return vectors(layer.rank.argsort(stable=True), operands)
    return vectors(torch.cat([columns, every[~torch.isin(every, columns)]]), operands)


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Work of one program of the Triton kernel.

    pixels, filters  the shape of its output tile
    reads            channels that it reads per step
    stages           steps whose loads are in flight
    merged           True: all filter groups are one, which reads the union of their channels
    """

    pixels: int
    filters: int
    reads: int
    stages: int
    merged: bool = False


TILES = {
    "triton": Tile(pixels=128, filters=64, reads=32, stages=4),
    "triton_deep": Tile(pixels=64, filters=64, reads=64, stages=3),
    "triton_wide": Tile(pixels=64, filters=128, reads=64, stages=3),
    "triton_whole": Tile(pixels=64, filters=128, reads=64, stages=3, merged=True),
}
"""By execution: of thirteen shapes, those that were fastest for some layer of a ResNet-50 on an H100 in fp16."""
