"""All filter groups of a layer in one Triton kernel: it reads each group's channels through an index, convolves, adds bias and
residual sum, applies the ReLU and writes at the filters' positions, so that nothing is gathered, concatenated or scattered.

Shapes: N images, H W pixels of the input, P pixels of the output of all images, C channels of the input, D of the output,
F filters and R read channels of a group, T kernel taps.

1x1 and 3x3 kernels, any stride, channels_last; fp32 (TF32 where torch allows it), fp16, bf16, all summed in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from suite.pack.executions import Built, Layer, Operands, output_order, positions

_TILE_P, _TILE_F, _TILE_R = 128, 64, 32


@triton.jit
def _convolve(  # type: ignore[no-untyped-def]
    x, weight, bias, other, out, reads, places, tiles,
    height, width, channels, out_height, out_width, out_channels, pixels, stride, padding,
    SIDE: tl.constexpr, ADD: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr,
    TILE_P: tl.constexpr, TILE_F: tl.constexpr, TILE_R: tl.constexpr,
):  # fmt: skip
    """Output tile [TILE_P pixels, TILE_F filters of one group]. `tiles` has a row a filter tile: where the group's channels begin
    among `reads`, how many there are, where its weights begin, its first filter, how many it has, and the tile's first."""
    row = tiles + tl.program_id(1) * 6
    read_start, read_count = tl.load(row), tl.load(row + 1)
    weight_start, filter_start, filter_count, first = (
        tl.load(row + 2),
        tl.load(row + 3),
        tl.load(row + 4),
        tl.load(row + 5),
    )
    p = tl.program_id(0) * TILE_P + tl.arange(0, TILE_P)
    f = first + tl.arange(0, TILE_F)
    has_p, has_f = p < pixels, f < filter_count
    image, y, z = p // (out_height * out_width), p // out_width % out_height, p % out_width
    total = tl.full((TILE_P, TILE_F), 0.0, dtype=tl.float32)
    for tap in range(SIDE * SIDE):
        h, w = y * stride - padding + tap // SIDE, z * stride - padding + tap % SIDE
        inside = has_p & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        pixel = ((image * height + h) * width + w).to(tl.int64) * channels
        for start in range(0, read_count, TILE_R):
            r = start + tl.arange(0, TILE_R)
            has_r = r < read_count
            channel = tl.load(reads + read_start + r, mask=has_r, other=0)
            a = tl.load(x + pixel[:, None] + channel[None, :], mask=inside[:, None] & has_r[None, :], other=0.0)
            at = weight_start + (tap * read_count + r)[:, None] * filter_count + f[None, :]
            b = tl.load(weight + at, mask=has_r[:, None] & has_f[None, :], other=0.0)
            total = tl.dot(a, b, total, input_precision=PRECISION)
    total += tl.load(bias + filter_start + f, mask=has_f, other=0.0).to(tl.float32)[None, :]
    place = tl.load(places + filter_start + f, mask=has_f, other=0)
    at = p.to(tl.int64)[:, None] * out_channels + place[None, :]
    mask = has_p[:, None] & has_f[None, :]
    if ADD:
        total += tl.load(other + at, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        total = tl.maximum(total, 0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


class TritonConv(nn.Module):
    """[N, C, H, W] and, where there is a sum, what is added -> [N, D, H', W'], in channels_last."""

    def __init__(self, layer: Layer, operands: Operands, rows_D: Tensor) -> None:
        super().__init__()
        conv = layer.conv
        self.side = conv.weights[0].shape[-1]
        self.stride, self.padding, self.relu = int(conv.stride[0]), int(conv.padding[0]), layer.relu
        self.filters = len(rows_D)
        rest = rows_D[~torch.isin(rows_D, layer.place_O)]
        places = [positions(place, rows_D) for place in layer.places_G()]
        biases = [*layer.bias_O().split(conv.filters_G)]
        reads = [positions(channels, operands.columns_C) for channels in layer.reads_G]
        weights_TRF = [weight.permute(2, 3, 1, 0).flatten() for weight in conv.weights]
        if len(rest):  # channels of the sum that no filter adds to: filters that read nothing
            places.append((~torch.isin(rows_D, layer.place_O)).nonzero()[:, 0])
            biases.append(biases[0].new_zeros(len(rest)))
            reads.append(reads[0][:0])
            weights_TRF.append(weights_TRF[0][:0])
        tiles = []
        read_at = weight_at = filter_at = 0
        for place, channels, taps in zip(places, reads, weights_TRF, strict=True):
            for first in range(0, len(place), _TILE_F):
                tiles.append((read_at, len(channels), weight_at, filter_at, len(place), first))
            read_at, weight_at, filter_at = read_at + len(channels), weight_at + len(taps), filter_at + len(place)
        buffers = {"weight": torch.cat(weights_TRF), "bias": torch.cat(biases), "tiles": torch.tensor(tiles).int()}
        buffers |= {"reads": torch.cat(reads).int(), "places": torch.cat(places).int()}
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor.to(operands.x.device), persistent=False)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        count, channels, height, width = x.shape
        size = [(n + 2 * self.padding - self.side) // self.stride + 1 for n in (height, width)]
        shape = (count, self.filters, *size)
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        added = x if other is None else other.contiguous(memory_format=torch.channels_last)
        buffers: Any = self
        pixels = count * size[0] * size[1]
        _convolve[triton.cdiv(pixels, _TILE_P), len(buffers.tiles)](
            x, buffers.weight, buffers.bias, added, out, buffers.reads, buffers.places, buffers.tiles,
            height, width, channels, *size, self.filters, pixels, self.stride, self.padding,
            SIDE=self.side, ADD=other is not None, RELU=self.relu,
            PRECISION="tf32" if torch.backends.cudnn.allow_tf32 else "ieee",
            TILE_P=_TILE_P, TILE_F=_TILE_F, TILE_R=_TILE_R,
        )  # fmt: skip
        return out


class _Summed(nn.Module):
    """The kernel, and what puts the channels that are added where it wants them."""

    def __init__(self, conv: TritonConv, read_other: nn.Module) -> None:
        super().__init__()
        self.conv, self.read_other = conv, read_other

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.conv(x, self.read_other(other))


def kernel(layer: Layer, operands: Operands) -> Built:
    """The layer as one kernel, its output in the order of what is added."""
    rows_D = output_order(layer, operands)
    conv = TritonConv(layer, operands, rows_D)
    read_other = operands.read_other(rows_D)
    return (conv if read_other is None else _Summed(conv, read_other)), rows_D


def takes(layer: Layer, operands: Operands) -> bool:
    """Whether the kernel can compute the layer: square kernels and strides, no dilation, no fp64."""
    conv = layer.conv
    window = (conv.weights[0].shape[-2:], conv.stride, conv.padding)
    square = all(pair[0] == pair[1] for pair in window) and conv.dilation == (1, 1)
    return square and conv.weights[0].shape[-1] in (1, 3) and operands.x.dtype != torch.float64
