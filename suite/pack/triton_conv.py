"""One Triton kernel for all filter groups of a layer.

The kernel reads each group's channels in place, convolves, adds bias and addend, applies the ReLU and writes to the positions of
the filters. No step gathers, concatenates or scatters.

Shapes: N images, H W pixels of the input, P pixels of the output of all images, C channels of the input, D of the output,
F filters of one tile and R channels that they read, T kernel taps.

1x1 and 3x3 kernels, any stride, channels_last; fp32 (TF32 where torch allows it), fp16, bf16, all summed in fp32.

If every group reads one slice of the channels, 16 bytes are loaded at once; else each channel by its index. If one set of
filters is the whole output in its order, 16 bytes are stored at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

from suite.pack.layer import TILES, VECTOR, Built, Layer, Operands, Tile, output_order, positions


@triton.jit
def _convolve(  # type: ignore[no-untyped-def]
    x, weight, bias, other, out, reads, places, tiles,
    tile_count, height, width, channels, out_height, out_width, out_channels, pixels,
    SIDE: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, SLICED: tl.constexpr, DIRECT: tl.constexpr,
    ADD: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
    TILE_P: tl.constexpr, TILE_F: tl.constexpr, TILE_R: tl.constexpr,
):  # fmt: skip
    """Compute an output tile [TILE_P pixels, TILE_F filters].

    `tiles` has a row per tile of filters: index of its first channel (in x, or in `reads`, a list of channels of x), number of
    channels, index of its weights [T, R, F], index of its first filter (in `bias`, and in `places`, a list of channels of the
    output), number of filters. `channels` and `out_channels` are in units of IN and OUT, so that the compiler can move as many
    elements at once.
    """
    # Tiles of the same pixels run side by side and share their reads in the cache.
    row = tiles + tl.program_id(0) % tile_count * 5
    read_start, read_count, weight_start = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    filter_start, filter_count = tl.load(row + 3), tl.load(row + 4)
    if SLICED:
        read_start, read_count = tl.multiple_of(read_start, IN), tl.multiple_of(read_count, IN)
    if DIRECT:
        filter_start, filter_count = tl.multiple_of(filter_start, 16), tl.multiple_of(filter_count, OUT)
    p = tl.program_id(0) // tile_count * TILE_P + tl.arange(0, TILE_P)
    f = tl.arange(0, TILE_F)
    r = tl.arange(0, TILE_R)
    has_p, has_f = p < pixels, f < filter_count
    image, y, z = p // (out_height * out_width), p // out_width % out_height, p % out_width
    steps = (read_count + TILE_R - 1) // TILE_R
    block = weight + tl.multiple_of(weight_start, 16) + r[:, None] * TILE_F + f[None, :]
    total = tl.full((TILE_P, TILE_F), 0.0, dtype=tl.float32)
    for step in range(SIDE * SIDE * steps):
        tap, at = step // steps, step % steps * TILE_R
        if SIDE == 1 and STRIDE == 1 and PADDING == 0:
            inside, pixel = has_p, p
        else:
            h, w = y * STRIDE - PADDING + tap // SIDE, z * STRIDE - PADDING + tap % SIDE
            inside = has_p & (h >= 0) & (h < height) & (w >= 0) & (w < width)
            pixel = (image * height + h) * width + w
        has_r = at + r < read_count
        channel = read_start + at + r if SLICED else tl.load(reads + read_start + at + r, mask=has_r, other=0)
        place = pixel.to(tl.int64)[:, None] * (channels * IN) + channel[None, :]
        a = tl.load(x + place, mask=inside[:, None] & has_r[None, :], other=0.0)
        b = tl.load(block + step * (TILE_R * TILE_F))
        total = tl.dot(a, b, total, input_precision=PRECISION)
    total += tl.load(bias + filter_start + f, mask=has_f, other=0.0).to(tl.float32)[None, :]
    column = filter_start + f if DIRECT else tl.load(places + filter_start + f, mask=has_f, other=0)
    place = p.to(tl.int64)[:, None] * (out_channels * OUT) + column[None, :]
    mask = has_p[:, None] & has_f[None, :]
    if ADD:
        total += tl.load(other + place, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        total = tl.maximum(total, 0.0)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Filters that read the same channels.

    places  positions of the filters in the output
    reads   positions of the channels in the input
    """

    places: Tensor
    reads: Tensor

    def aligned(self) -> _Part:
        """Extend the reads to whole vectors; the additional channels get weights of 0."""
        low, high = int(self.reads[0]) // VECTOR * VECTOR, -(-int(self.reads[-1] + 1) // VECTOR) * VECTOR
        return _Part(places=self.places, reads=torch.arange(low, high))


class TritonConv(nn.Module):
    """[N, C, H, W] and an addend -> [N, D, H', W'] in channels_last."""

    def __init__(self, layer: Layer, operands: Operands, rows_D: Tensor, tile: Tile) -> None:
        super().__init__()
        conv, self.tile = layer.conv, tile
        self.side, self.stride, self.padding = conv.weights[0].shape[-1], int(conv.stride[0]), int(conv.padding[0])
        self.relu, self.filters = layer.relu, len(rows_D)
        width = len(operands.columns_C)
        parts = _parts(layer, operands, rows_D, merged=tile.merged)
        self.vector_in = VECTOR if width % VECTOR == 0 else 1
        self.vector_out = VECTOR if len(rows_D) % VECTOR == 0 else 1
        self.sliced = self.vector_in > 1 and all(bool((part.reads.diff() == 1).all()) for part in parts)
        self.direct = self.vector_out > 1 and len(parts) == 1
        if self.sliced:
            parts = [part.aligned() if len(part.reads) else part for part in parts]
        tiles, weights, biases = [], [], []
        read_at = weight_at = filter_at = 0
        for part in parts:
            for places in part.places.split(self.tile.filters):
                weight, bias = self._weight_TRF(layer, rows_D[places], operands.columns_C[part.reads])
                start = int(part.reads[0]) if self.sliced and len(part.reads) else read_at
                tiles.append((start, len(part.reads), weight_at, filter_at, len(places)))
                weights.append(weight.flatten())
                biases.append(bias)
                weight_at, filter_at = weight_at + weight.numel(), filter_at + len(places)
            read_at += len(part.reads)
        buffers = {"weight": torch.cat(weights), "bias": torch.cat(biases), "tiles": torch.tensor(tiles).int()}
        buffers |= {"reads": torch.cat([part.reads for part in parts]).int()}
        buffers |= {"places": torch.cat([part.places for part in parts]).int()}
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor.to(operands.x.device), persistent=False)

    def _weight_TRF(self, layer: Layer, rows_F: Tensor, reads_R: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of one tile, padded with 0 to whole blocks, and its bias."""
        weight, bias = layer.weight_OIkk(rows_F, reads_R)
        weight_TRF = weight.permute(2, 3, 1, 0).flatten(0, 1)
        missing = -len(reads_R) % self.tile.reads, self.tile.filters - len(rows_F)
        return F.pad(weight_TRF, (0, missing[1], 0, missing[0])), bias

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        count, channels, height, width = x.shape
        size = [(n + 2 * self.padding - self.side) // self.stride + 1 for n in (height, width)]
        shape = (count, self.filters, *size)
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        sum_of = x if addend is None else addend.contiguous(memory_format=torch.channels_last)
        buffers: Any = self
        pixels, tiles, tile = count * size[0] * size[1], len(buffers.tiles), self.tile
        _convolve[(triton.cdiv(pixels, tile.pixels) * tiles,)](
            x, buffers.weight, buffers.bias, sum_of, out, buffers.reads, buffers.places, buffers.tiles,
            tiles, height, width, channels // self.vector_in, *size, self.filters // self.vector_out, pixels,
            SIDE=self.side, STRIDE=self.stride, PADDING=self.padding, SLICED=self.sliced, DIRECT=self.direct,
            ADD=addend is not None, RELU=self.relu, PRECISION="tf32" if torch.backends.cudnn.allow_tf32 else "ieee",
            IN=self.vector_in, OUT=self.vector_out, TILE_P=tile.pixels, TILE_F=tile.filters, TILE_R=tile.reads,
            num_warps=4, num_stages=tile.stages if x.element_size() == 2 else 2,
        )  # fmt: skip
        return out


def _parts(layer: Layer, operands: Operands, rows_D: Tensor, *, merged: bool) -> list[_Part]:
    """Return one part per filter group, and one for rows without a filter.

    Merged groups, and a single group, are one part of all rows: its store is direct, and a scattered one takes ten times as long.
    """
    if merged or len(layer.reads_G) == 1:
        reads = positions(torch.cat(layer.reads_G).unique(), operands.columns_C).sort().values
        hull = torch.arange(int(reads[0]), int(reads[-1]) + 1)  # gaps get weights of 0
        return [_Part(places=torch.arange(len(rows_D)), reads=hull)]
    reads_G = [positions(channels, operands.columns_C).sort().values for channels in layer.reads_G]
    places_G = [positions(places, rows_D).sort().values for places in layer.places_G()]
    rest = (~torch.isin(rows_D, layer.place_O)).nonzero()[:, 0]
    parts: Sequence[_Part] = [
        _Part(places=places, reads=reads) for places, reads in zip(places_G, reads_G, strict=True)
    ]
    return [*parts, _Part(places=rest, reads=rest[:0])] if len(rest) else [*parts]


class _Summed(nn.Module):
    """The kernel after a reader that orders the channels of the addend."""

    def __init__(self, conv: TritonConv, read_addend: nn.Module) -> None:
        super().__init__()
        self.conv, self.read_addend = conv, read_addend

    def forward(self, x: Tensor, addend: Tensor) -> Tensor:
        return self.conv(x, self.read_addend(addend))


def kernel(layer: Layer, operands: Operands, tile: Tile = TILES["triton"]) -> Built:
    """Build the layer as one kernel, with the output in the order of the addend."""
    rows_D = output_order(layer, operands)
    conv = TritonConv(layer, operands, rows_D, tile)
    read_addend = operands.read_addend(rows_D)
    return (conv if read_addend is None else _Summed(conv, read_addend)), rows_D


@triton.jit
def _count(out, ONE: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(out, ONE)


def probe() -> None:
    """Compile and run a minimal kernel; raises the error of Triton, the compiler or CUDA."""
    _count[(1,)](torch.zeros(1, device="cuda", dtype=torch.int32), ONE=1)
    torch.cuda.synchronize()
