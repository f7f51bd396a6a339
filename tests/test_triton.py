"""The Triton kernel, by its interpreter on a CPU: every kernel size, stride, sum and precision; on CUDA in whole networks."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from collections.abc import Iterator, Sequence
from types import ModuleType

import pytest
import torch
from test_pack_executions import packed_of
from torch import Tensor, nn
from torch.nn import functional

from suite.pack import tuned
from suite.pack.executions import EXECUTIONS, offered, offered_tiles
from suite.pack.layer import TILES, Layer, Operands, positions
from suite.pack.modules import GroupedConv, PackedConv
from suite.pack.operations import Read
from suite.pack.trial import tolerance

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ON_CUDA = pytest.mark.skipif(DEVICE == "cpu", reason="Triton's interpreter takes bf16 for integers")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


@pytest.fixture(scope="module")
def triton_conv() -> Iterator[ModuleType]:
    """The kernel's module, interpreted where there is no GPU. Triton decides that when a kernel is defined."""
    from suite.pack import triton_conv

    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            patch.setenv("TRITON_INTERPRET", "1")
        yield importlib.reload(triton_conv)
    importlib.reload(triton_conv)


@torch.no_grad()
def layer_of(
    kernel: int,
    stride: int,
    relu: bool,
    filters_G: list[int],
    dtype: torch.dtype,
    *,
    extra: int = 0,
    reads_G: Sequence[Tensor] | None = None,
) -> Layer:
    """A layer on 40 channels whose groups keep 37, 9 and 1 of them; `extra` channels of its sum get nothing from it."""
    generator = torch.Generator().manual_seed(kernel + stride)
    reads_G = [*(reads_G or [torch.randperm(40, generator=generator)[:count] for count in (37, 9, 1)])]
    conv = PackedConv(nn.Conv2d(40, sum(filters_G), kernel, stride, kernel // 2), reads_G, filters_G, 40)
    for parameter in conv.parameters():
        parameter.normal_(0, 0.2, generator=generator)
    width = sum(filters_G) + extra
    place_O = torch.randperm(width, generator=generator)[: sum(filters_G)]
    conv.to(DEVICE, dtype)
    return Layer(
        name="it",
        conv=GroupedConv(conv),
        reads_G=reads_G,
        place_O=place_O,
        width=width,
        relu=relu,
        rank=torch.rand(width),
    )


@torch.no_grad()
def in_order(built: tuple[nn.Module, Tensor], layer: Layer, *inputs: Tensor) -> Tensor:
    got = built[0].to(DEVICE)(*inputs)
    return Read(positions(torch.arange(layer.width), built[1]), got.shape[1]).to(DEVICE)(got)


SLICES = [torch.arange(3, 37), torch.arange(36, 40), torch.arange(12)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=ON_CUDA)])
@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize(
    ("execution", "kernel", "stride"),
    [*itertools.product(["triton"], [1, 3], [1, 2]), *((name, 3, 1) for name in TILES if name != "triton")],
)
@torch.no_grad()
def test_one_kernel_computes_all_groups(
    triton_conv: ModuleType, execution: str, kernel: int, stride: int, sliced: bool, dtype: torch.dtype
) -> None:
    """Channels by index, and slices, whose vectors hold channels that the group does not read, or that are padding."""
    reads_G = SLICES if sliced else None
    layer = layer_of(kernel, stride, relu=kernel == 3, filters_G=[70, 5, 16], dtype=dtype, reads_G=reads_G)
    order = torch.arange(40) if sliced else torch.randperm(40)
    columns_C = functional.pad(order, (0, 8), value=-1)
    x = torch.randn(2, len(columns_C), 7, 9).to(DEVICE, dtype)
    x[:, 40:] = 1e3  # padding may hold anything
    operands = Operands(x=x, columns_C=columns_C)
    module, rows = triton_conv.kernel(layer, operands, TILES[execution])
    assert module.sliced == (sliced or execution == "triton_whole")
    got = in_order((module, rows), layer, x)
    expected = in_order(EXECUTIONS["groups"](layer, operands), layer, x)
    assert got.shape == expected.shape == (2, 91, *((7, 9) if stride == 1 else (4, 5)))
    assert float((got - expected).abs().max()) < TOLERANCE[dtype] * float(expected.abs().max())
    assert float(expected.abs().max()) > 0.5


@pytest.mark.parametrize(("filters", "extra"), [(16, 0), (21, 0), (16, 24), (200, 0)])
@pytest.mark.parametrize("add", [False, True])
@torch.no_grad()
def test_one_group_writes_its_output_as_it_stands(triton_conv: ModuleType, filters: int, extra: int, add: bool) -> None:
    layer = layer_of(1, 1, True, [filters], torch.float32, extra=extra * add, reads_G=[torch.arange(40)])
    x, other = (torch.randn(2, channels, 7, 9).to(DEVICE) for channels in (40, layer.width))
    operands = Operands(x=x, columns_C=torch.arange(40))
    inputs = [x]
    if add:
        operands = dataclasses.replace(operands, addend=other, addend_columns_C=torch.randperm(layer.width))
        inputs.append(other)
    module, rows = triton_conv.kernel(layer, operands)
    assert (module.conv if add else module).direct == (len(rows) % 8 == 0)
    got = in_order((module, rows), layer, *inputs)
    expected = in_order(EXECUTIONS["groups"](layer, operands), layer, *(one.clone() for one in inputs))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("held", ["all", "some", "padded"])
@pytest.mark.parametrize("relu", [False, True])
@torch.no_grad()
def test_the_sum_is_part_of_the_kernel(triton_conv: ModuleType, relu: bool, held: str) -> None:
    """Channels of the sum that no filter adds to, and channels that only filters make."""
    layer = layer_of(1, 1, relu, [20, 4, 9], torch.float32, extra=7)
    other_columns_C = {"all": torch.randperm(40), "some": torch.randperm(40)[:30]}.get(held, torch.randperm(43) - 3)
    other_columns_C = torch.where(other_columns_C < 0, -1, other_columns_C)
    x, other = torch.randn(1, 40, 6, 5, device=DEVICE), torch.randn(1, len(other_columns_C), 6, 5, device=DEVICE)
    operands = Operands(x=x, columns_C=torch.arange(40), addend=other, addend_columns_C=other_columns_C)
    got = in_order(triton_conv.kernel(layer, operands), layer, x, other.clone())
    expected = in_order(EXECUTIONS["groups"](layer, operands), layer, x, other.clone())
    assert float((got - expected).abs().max()) < 1e-5
    assert bool((expected < 0).any()) != relu


def test_where_the_kernel_is_offered() -> None:
    x = torch.randn(1, 40, 4, 4)
    operands = Operands(x=x, columns_C=torch.arange(40))

    def names(kernel: int, filters_G: list[int], dtype: torch.dtype = torch.float32) -> list[str]:
        layer = layer_of(kernel, 1, True, filters_G, dtype, reads_G=[torch.arange(40)] * len(filters_G))
        return offered_tiles(layer, dtype)

    assert names(3, [4, 4, 4]) == ["triton", "triton_deep", "triton_whole"]
    assert names(1, [64]) == ["triton", "triton_deep"]
    assert names(1, [65]) == ["triton", "triton_deep", "triton_wide"]
    alone = layer_of(1, 1, True, [40], torch.float32, extra=60, reads_G=[torch.arange(40)])
    assert "triton_wide" in offered_tiles(alone, x.dtype), "all rows of a sum are written"
    assert names(5, [4, 4, 4]) == names(3, [4], torch.float64) == []
    assert not set(offered(layer_of(3, 1, True, [4, 4, 4], torch.float32), operands)) & set(TILES), "not on a CPU"


def test_the_kernel_needs_cuda() -> None:
    with pytest.raises(ValueError, match="execution 'triton' needs a CUDA device, and the images are on the CPU"):
        tuned(packed_of("resnet8", 2, 0.5), torch.zeros(1, 3, 32, 32), execution="triton")


@pytest.mark.cuda
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", TOLERANCE)
@torch.no_grad()
def test_whole_networks_on_cuda(dtype: torch.dtype) -> None:
    for name in ("resnet8", "resnet50"):
        packed = packed_of(name, 2, 0.5).to("cuda")
        x = torch.randn(4, 3, 32, 32, device="cuda", dtype=dtype)
        network, choice = tuned(packed, x, execution="triton")
        assert "triton" in choice.layers.values()
        expected = packed.float().cpu()(x.float().cpu())
        error = (network(x).float().cpu() - expected).abs().max()
        assert float(error) < tolerance(network(x)) * float(expected.abs().max())
