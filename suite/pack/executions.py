"""How one packed layer is computed for inference: the executions, which all give the same result.

Shapes: N images, C channels of a tensor as it is laid out, O filters, I input channels, G filter groups, k kernel size.

A tensor of a deployed network may hold its channels in any order, and some that nobody reads: `columns_C` says which channel of
the packed network each one is, -1 for padding. So an execution is free to put out its filters in the order that suits it, and to
fill them up (`rounded`, `vectors`). Padding holds any finite values: whoever reads it gives it weights of 0.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.pack.layers import PackedConv, is_channels_last
from suite.pack.operations import FusedConv, PerGroup, Read, Reorder, Whole

ROUND = 16
"""Filters: the floats of one AVX-512 register, and whole tiles of a tensor core."""
WIDEST = 1.25
"""Channels of an output that is rounded up, as a multiple of its own: all that follows gets wider with it."""
VECTOR, MATRIX = 8, 32
"""Channels that a GPU moves at once (16 bytes of fp16), and those that its matrix units, for half precision, do best: there a 3x3
convolution of 64 channels takes less time than one of 34 or of 40 (`suite.measure.staircase`)."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A packed convolution (its batch norm folded) with what follows it: a residual sum, a ReLU.

    reads_G  the packed channels that each group reads
    place_O  where each filter stands among the `width` channels of the output, which is the residual sum's where there is one
    rank     in which order the output's only reader likes its channels, so that its groups read slices
    """

    name: str
    conv: PackedConv
    reads_G: list[Tensor]
    place_O: Tensor
    width: int
    relu: bool
    rank: Tensor

    def places_G(self) -> list[Tensor]:
        """Of each group, where its filters stand in the output."""
        return list(self.place_O.split(self.conv.filters_G))

    def bias_O(self) -> Tensor:
        """The bias, 0 where the convolution has none."""
        return self.conv.weights[0].new_zeros(len(self.place_O)) if self.conv.bias is None else self.conv.bias

    def weight_OIkk(self, rows_O: Tensor, reads_I: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias that read the channels `reads_I` and put out `rows_O`; 0 for -1 and where a group does not read."""
        first = self.conv.weights[0]
        weight = first.new_zeros(len(rows_O), len(reads_I), *first.shape[2:])
        bias = first.new_zeros(len(rows_O))
        for weight_OIkk, bias_O, reads, places in zip(
            self.conv.weights, self.bias_O().split(self.conv.filters_G), self.reads_G, self.places_G(), strict=True
        ):
            rows, filters = _matches(rows_O, places)
            columns, channels = _matches(reads_I, reads)
            weight[rows[:, None], columns] = weight_OIkk[filters][:, channels]
            bias[rows] = bias_O[filters]
        return weight, bias


def _matches(wanted: Tensor, have: Tensor) -> tuple[Tensor, Tensor]:
    """Index pairs (i, j) with wanted[i] == have[j], for distinct `have`."""
    equal = wanted[:, None] == have
    i, j = equal.nonzero().T
    return i, j


def positions(wanted: Tensor, columns_C: Tensor) -> Tensor:
    """Where the packed channels `wanted` stand among `columns_C`, -1 where they do not."""
    found = wanted[:, None] == columns_C
    return torch.where(found.any(1) & (wanted >= 0), found.int().argmax(1), -1)


def _or_any(position_C: Tensor, width: int) -> Tensor:
    """Instead of -1 the channel that stands in this place, so that a tensor with padding is read as it is."""
    return torch.where(position_C < 0, torch.arange(len(position_C)).clamp(max=width - 1), position_C)


def vectors(rows: Tensor, x: Tensor) -> Tensor:
    """On a GPU filled up with -1 to a multiple of `VECTOR`, from `MATRIX` on in half precision to one of `MATRIX`."""
    multiple = MATRIX if x.element_size() == 2 and len(rows) > MATRIX else VECTOR
    return F.pad(rows, (0, -len(rows) % multiple), value=-1) if x.is_cuda else rows


@dataclass(frozen=True, kw_only=True)
class Operands:
    """What a layer finds when it runs: its input and what is added to it, and which packed channels they hold.

    in_place  nobody needs `other` afterwards.
    """

    x: Tensor
    columns_C: Tensor
    other: Tensor | None = None
    other_columns_C: Tensor | None = None
    in_place: bool = False

    def read(self, wanted: Tensor) -> Read:
        """Reads the packed channels `wanted` of the input; -1 gives any channel, which weights of 0 then ignore."""
        width = len(self.columns_C)
        return Read(_or_any(positions(wanted, self.columns_C), width), width).to(self.x.device)

    def read_other(self, wanted: Tensor) -> Read | None:
        """Reads the packed channels `wanted` of what is added, 0 where it has none."""
        if self.other_columns_C is None:
            return None
        width = len(self.other_columns_C)
        position = positions(wanted, self.other_columns_C)
        return Read(torch.where(wanted < 0, _or_any(position, width), position), width).to(self.x.device)

    def summed(self, wanted: Tensor) -> tuple[nn.Module | None, bool]:
        """What gives the packed channels `wanted` of what is added, and whether the sum may be made in the tensor it gives."""
        read = self.read_other(wanted)
        if read is None:
            return None, False
        return (Reorder(read) if self.reorders(wanted) else read), self.in_place or read.copies

    def reorders(self, wanted: Tensor) -> bool:
        """Whether what is added can get the order `wanted` in its own memory: on a CPU, where the same channels are wanted."""
        held, other = self.other_columns_C, self.other
        if (
            held is None
            or other is None
            or not self.in_place
            or other.device.type != "cpu"
            or torch.equal(held, wanted)
        ):
            return False
        same = torch.equal(held.sort().values, wanted.sort().values) and bool((held >= 0).all())
        return same and is_channels_last(other) and other.is_contiguous(memory_format=torch.channels_last)


Built = tuple[nn.Module, Tensor]
"""An execution of one layer, and which packed channel each channel of its output is."""


def whole(layer: Layer, operands: Operands) -> Built:
    """One dense convolution over every channel as it comes, 0 where a group does not read: nothing is copied."""
    return _one(layer, operands, operands.columns_C)


def union(layer: Layer, operands: Operands) -> Built:
    """One dense convolution over the union of the kept channels, 0 where a group does not read."""
    position = positions(torch.cat(layer.reads_G).unique(), operands.columns_C).sort().values
    reads_I, slices = operands.columns_C[position], bool((position.diff() == 1).all())
    return _one(layer, operands, reads_I if slices else vectors(reads_I, operands.x))


def output_order(layer: Layer, operands: Operands) -> Tensor:
    """The order of output channels that costs nothing where any will do: that of what is added, else what the reader likes."""
    every = torch.arange(layer.width)
    held = operands.other_columns_C
    free = every[layer.rank.argsort(stable=True)]
    return vectors(free if held is None else torch.cat([held, every[~torch.isin(every, held)]]), operands.x)


def _one(layer: Layer, operands: Operands, reads_I: Tensor) -> Built:
    rows = output_order(layer, operands)
    weight, bias = layer.weight_OIkk(rows, reads_I)
    conv = FusedConv(layer.conv, weight, bias, 1, layer.relu, operands.x)
    return Whole(conv, operands.read(reads_I), *operands.summed(rows)), rows


def groups(layer: Layer, operands: Operands) -> Built:
    """One convolution per group on the channels that it keeps: a slice where they stand side by side, else gathered."""
    rows_G = [places[layer.rank[places].argsort(stable=True)] for places in layer.places_G()]
    convs, reads, alone = [], [], operands.other is None
    if alone:  # the last group's filters are filled up so that all of them are whole vectors
        rows_G[-1] = vectors(torch.cat(rows_G), operands.x)[sum(map(len, rows_G[:-1])) :]
    for rows, channels in zip(rows_G, layer.reads_G, strict=True):
        position = positions(channels, operands.columns_C).sort().values
        reads.append(Read(position, len(operands.columns_C)))
        weight, bias = layer.weight_OIkk(rows, operands.columns_C[position])
        convs.append(FusedConv(layer.conv, weight, bias, 1, layer.relu and alone, operands.x))
    rows = torch.cat(rows_G)
    held = torch.isin(torch.arange(layer.width), rows)
    rows = torch.cat([rows, (~held).nonzero()[:, 0]]) if operands.other is not None else rows
    read_other, in_place = operands.summed(rows)
    return PerGroup(convs, reads, read_other, layer.relu and not alone, copy=not in_place), rows


def padded(layer: Layer, operands: Operands) -> Built:
    """One grouped convolution: groups that keep fewer channels, or have fewer filters, are filled up with weights of 0."""
    return _grouped(layer, operands, 1)


def rounded(layer: Layer, operands: Operands) -> Built:
    """The same with a group's filters rounded up to a multiple of 16; rounding its channels as well only costs on a CPU."""
    return _grouped(layer, operands, ROUND)


def _grouped(layer: Layer, operands: Operands, multiple: int) -> Built:
    places_G, filters = list(layer.places_G()), _group_size(layer, operands, multiple)
    if (
        operands.other is not None
    ):  # channels of the sum that no filter adds to: into the smallest groups, as filters of 0
        rest = (~torch.isin(torch.arange(layer.width), torch.cat(places_G))).nonzero()[:, 0]
        for g, places in enumerate(places_G):
            filled, rest = rest[: filters - len(places)], rest[filters - len(places) :]
            places_G[g] = torch.cat([places, filled])
    else:
        places_G = [places[layer.rank[places].argsort(stable=True)] for places in places_G]
    channels = max(map(len, layer.reads_G))
    rows_G = [F.pad(places, (0, filters - len(places)), value=-1) for places in places_G]
    reads_G = [F.pad(reads, (0, channels - len(reads)), value=-1) for reads in layer.reads_G]
    parts = [layer.weight_OIkk(rows, reads) for rows, reads in zip(rows_G, reads_G, strict=True)]
    weight, bias = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    rows = torch.cat(rows_G)
    conv = FusedConv(layer.conv, weight, bias, len(rows_G), layer.relu, operands.x)
    return Whole(conv, operands.read(torch.cat(reads_G)), *operands.summed(rows)), rows


def _group_size(layer: Layer, operands: Operands, multiple: int) -> int:
    """Filters of each group when all are filled up alike; those of a sum hold its other channels too."""
    least = 0 if operands.other is None else -(-layer.width // len(layer.reads_G))
    return -(-max(least, *layer.conv.filters_G) // multiple) * multiple


def one_kernel(layer: Layer, operands: Operands, execution: str) -> Built:
    """All groups in one Triton kernel, which reads and writes channels where they are; `execution` names its tiles."""
    from suite.pack import triton_conv  # only where there is CUDA

    return triton_conv.kernel(layer, operands, TILES[execution])


@dataclass(frozen=True, kw_only=True)
class Tile:
    """What one program of the Triton kernel computes: `filters` at `pixels`, from `reads` channels at a time, `stages` of which
    are on their way.

    merged   all filter groups are taken for one, which reads whatever any of them reads
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


EXECUTIONS: dict[str, Callable[[Layer, Operands], Built]] = {
    "whole": whole,
    "union": union,
    "groups": groups,
    "padded": padded,
    "rounded": rounded,
    **{name: functools.partial(one_kernel, execution=name) for name in TILES},
}


def build(execution: str, layer: Layer, operands: Operands) -> Built:
    """The execution of that name, where the layer's input is."""
    module, columns_C = EXECUTIONS[execution](layer, operands)
    return (module if operands.x.device.type == "cpu" else module.to(operands.x.device)), columns_C


def offered(layer: Layer, operands: Operands) -> tuple[str, ...]:
    """The executions of a layer that differ here."""
    names = ["whole"]
    if len(torch.cat(layer.reads_G).unique()) < int((operands.columns_C >= 0).sum()):
        names.append("union")
    if len(layer.reads_G) > 1:
        names += ["groups", "padded"]
        if _group_size(layer, operands, ROUND) * len(layer.reads_G) <= WIDEST * layer.width:
            names.append("rounded")
    if operands.x.is_cuda and has_triton():
        from suite.pack import triton_conv

        names += triton_conv.offered(layer, operands)
    return tuple(names)


@functools.cache
def has_triton() -> bool:
    """Whether Triton can compile and run a kernel on this GPU; torch's builds for CUDA bring it, not the C compiler it needs."""
    if importlib.util.find_spec("triton") is None:
        return False
    from suite.pack import triton_conv

    try:
        triton_conv.probe()
    except Exception as error:  # of many kinds: its own, the compiler's, CUDA's
        log.warning("Triton does not work here (%s: %s); its kernels are not tried", type(error).__name__, error)
        return False
    return True
