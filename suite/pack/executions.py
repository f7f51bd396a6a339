"""The table of executions: equivalent computations of one packed layer for inference.

Shapes: N images, C channels of a tensor as it is laid out, O filters, I input channels, G filter groups.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from suite.pack.layer import TILES, Built, Layer, Operands, output_order, positions, vectors
from suite.pack.operations import FusedConv, PerGroup, Read, Whole

ROUND = 16
"""Filters: the floats of one AVX-512 register, and whole tiles of a tensor core."""
WIDEST = 1.25
"""Channels of an output that is rounded up, as a multiple of its own: all later layers get wider with it."""
log = logging.getLogger(__name__)


def whole(layer: Layer, operands: Operands) -> Built:
    """Build one dense convolution over all channels as laid out, without a copy.

    Weights are 0 for channels that a group does not read.
    """
    return _dense(layer, operands, operands.columns_C)


def union(layer: Layer, operands: Operands) -> Built:
    """Build one dense convolution over the union of the kept channels.

    Weights are 0 for channels that a group does not read.
    """
    position = positions(torch.cat(layer.reads_G).unique(), operands.columns_C).sort().values
    reads_I, is_slice = operands.columns_C[position], bool((position.diff() == 1).all())
    return _dense(layer, operands, reads_I if is_slice else vectors(reads_I, operands))


def _dense(layer: Layer, operands: Operands, reads_I: Tensor) -> Built:
    rows = output_order(layer, operands)
    weight, bias = layer.weight_OIkk(rows, reads_I)
    conv = FusedConv(layer.conv, weight, bias, 1, layer.relu, operands.x)
    return Whole(conv, operands.read(reads_I), *operands.addend_as(rows), operands.piece), rows


def groups(layer: Layer, operands: Operands) -> Built:
    """Build one convolution per group on its kept channels.

    Contiguous channels are a slice, others are gathered.
    """
    rows_G = [places[layer.rank[places].argsort(stable=True)] for places in layer.places_G()]
    convs, reads, alone = [], [], operands.addend is None
    if alone:  # the last group's filters are padded so that all of them are whole vectors
        rows_G[-1] = vectors(torch.cat(rows_G), operands)[sum(map(len, rows_G[:-1])) :]
    for rows, channels in zip(rows_G, layer.reads_G, strict=True):
        position = positions(channels, operands.columns_C).sort().values
        reads.append(Read(position, len(operands.columns_C)))
        weight, bias = layer.weight_OIkk(rows, operands.columns_C[position])
        convs.append(FusedConv(layer.conv, weight, bias, 1, layer.relu and alone, operands.x))
    rows = torch.cat(rows_G)
    if not alone:
        rows = torch.cat([rows, _without_filter(layer)])
    read_addend, in_place = operands.addend_as(rows)
    return PerGroup(convs, reads, read_addend, layer.relu and not alone, not in_place, operands.piece), rows


def _without_filter(layer: Layer) -> Tensor:
    """Return the channels of the sum that no filter adds to."""
    every = torch.arange(layer.width)
    return every[~torch.isin(every, layer.place_O)]


def padded(layer: Layer, operands: Operands) -> Built:
    """Build one grouped convolution; zero weights make the groups equal."""
    return _grouped(layer, operands, 1)


def rounded(layer: Layer, operands: Operands) -> Built:
    """Build `padded` with each group's filters rounded up to a multiple of 16."""
    return _grouped(layer, operands, ROUND)


def blocked(layer: Layer, operands: Operands) -> Built:
    """Build `rounded` with each group's channels rounded up as well.

    Runtimes with tensors in blocks of 16 channels may be faster with it; torch on a CPU is not.
    """
    return _grouped(layer, operands, ROUND, ROUND)


def _grouped(layer: Layer, operands: Operands, multiple: int, multiple_read: int = 1) -> Built:
    places_G, filters = layer.places_G(), _group_size(layer, operands, multiple)
    if operands.addend is None:
        places_G = [places[layer.rank[places].argsort(stable=True)] for places in places_G]
    else:  # channels of the sum that no filter adds to go into the smallest groups, as filters of 0
        rest = _without_filter(layer)
        for g, places in enumerate(places_G):
            fill, rest = rest[: filters - len(places)], rest[filters - len(places) :]
            places_G[g] = torch.cat([places, fill])
    channels = -(-max(map(len, layer.reads_G)) // multiple_read) * multiple_read
    rows_G = [F.pad(places, (0, filters - len(places)), value=-1) for places in places_G]
    reads_G = [F.pad(reads, (0, channels - len(reads)), value=-1) for reads in layer.reads_G]
    parts = [layer.weight_OIkk(rows, reads) for rows, reads in zip(rows_G, reads_G, strict=True)]
    weight, bias = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    rows = torch.cat(rows_G)
    conv = FusedConv(layer.conv, weight, bias, len(rows_G), layer.relu, operands.x)
    return Whole(conv, operands.read(torch.cat(reads_G)), *operands.addend_as(rows), operands.piece), rows


def _group_size(layer: Layer, operands: Operands, multiple: int) -> int:
    """Return the filters of each group after padding.

    The groups of a sum include its channels without a filter.
    """
    least = 0 if operands.addend is None else -(-layer.width // len(layer.reads_G))
    return -(-max(least, *layer.conv.filters_G) // multiple) * multiple


def one_kernel(layer: Layer, operands: Operands, execution: str) -> Built:
    """Build one Triton kernel for all groups; `execution` names its tile."""
    triton_conv = working_triton()
    assert triton_conv is not None, f"{execution} is not offered without Triton"
    return triton_conv.kernel(layer, operands, TILES[execution])


EXECUTIONS: dict[str, Callable[[Layer, Operands], Built]] = {
    "whole": whole,
    "union": union,
    "groups": groups,
    "padded": padded,
    "rounded": rounded,
    "blocked": blocked,
    **{name: functools.partial(one_kernel, execution=name) for name in TILES},
}


def build(execution: str, layer: Layer, operands: Operands) -> Built:
    """Build the execution of that name on the device of the layer's input."""
    module, columns_C = EXECUTIONS[execution](layer, operands)
    module.eval()  # in training `Take` gathers by a convolution, which takes many times as long
    return (module if operands.x.device.type == "cpu" else module.to(operands.x.device)), columns_C


def offered(layer: Layer, operands: Operands) -> tuple[str, ...]:
    """Return the executions of a layer that differ from each other for these operands."""
    names = ["whole"]
    if len(torch.cat(layer.reads_G).unique()) < int((operands.columns_C >= 0).sum()):
        names.append("union")
    if len(layer.reads_G) > 1:
        names += ["groups", "padded"]
        if _group_size(layer, operands, ROUND) * len(layer.reads_G) <= WIDEST * layer.width:
            names += ["rounded", "blocked"]
    if operands.x.is_cuda and working_triton() is not None:
        names += offered_tiles(layer, operands.x.dtype)
    return tuple(names)


def offered_tiles(layer: Layer, dtype: torch.dtype) -> list[str]:
    """Return the executions of the Triton kernel that differ from each other.

    The kernel takes square kernels of 1 or 3, square strides, no dilation and no fp64; the list is empty for any other layer.
    """
    conv = layer.conv
    kernel = conv.weights[0].shape[-2:]
    square = all(pair[0] == pair[1] for pair in (kernel, conv.stride, conv.padding)) and conv.dilation == (1, 1)
    if not square or kernel[0] not in (1, 3) or dtype == torch.float64:
        return []
    wide = (layer.width if len(conv.filters_G) == 1 else max(conv.filters_G)) > TILES["triton"].filters
    return ["triton", "triton_deep", *["triton_wide"] * wide, *["triton_whole"] * (len(conv.filters_G) > 1)]


@functools.cache
def working_triton() -> ModuleType | None:
    """Return the module of the Triton kernel, None if Triton does not work.

    The module is imported here because Triton is optional. CUDA builds of torch include Triton, but no C compiler.
    """
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        triton_conv = importlib.import_module("suite.pack.triton_conv")
        triton_conv.probe()
    except Exception as error:  # of many kinds: Triton's, the compiler's, CUDA's
        log.warning("Triton does not work on this GPU (%s: %s); its kernels are skipped", type(error).__name__, error)
        return None
    return triton_conv
