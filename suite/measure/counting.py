"""MACs and parameters of a network.

MACs are the multiply-accumulates of convolutions and linear layers of one image, in eval mode. fvcore and torch's own
counter both count them; if they disagree, no count is returned.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fvcore calls the deprecated torch.jit.script at import
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import addmm_flop_jit, conv_flop_jit, linear_flop_jit, matmul_flop_jit

_HANDLES: dict[str, Any] = {
    "aten::_convolution": conv_flop_jit,
    "aten::linear": linear_flop_jit,
    "aten::addmm": addmm_flop_jit,
    "aten::mm": matmul_flop_jit,
    "aten::matmul": matmul_flop_jit,
}
"""Counted operators, by fvcore's formulas (one multiply-add is one). All other handles of fvcore are cleared."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """Multiply-accumulates of one image, and the operators for which fvcore has no formula."""

    macs: int
    unsupported_ops: tuple[str, ...]


def count_macs(model: nn.Module, input_shape: tuple[int, ...]) -> Count:
    """Count the conv + linear MACs of `model` on one image [C, H, W].

    Raises ValueError if fvcore and torch's counter disagree.
    """
    from torch.utils.flop_counter import FlopCounterMode  # this module imports triton, 75 MB that only workers need

    image = torch.zeros(1, *input_shape, device=_device(model), dtype=_dtype(model))
    with _evaluating(model), torch.no_grad():
        counter = FlopCountAnalysis(model, image)
        counter.clear_op_handles().set_op_handle(**_HANDLES)
        counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        macs = int(counter.total())
        unsupported: Counter[str] = counter.unsupported_ops()
        with FlopCounterMode(display=False) as second:
            model(image)
    # torch counts two per multiply-add, and nothing but products in the networks of this suite.
    if second.get_total_flops() != 2 * macs:
        raise ValueError(
            f"the two MAC counters disagree: fvcore {macs}, torch {second.get_total_flops() / 2:g}; the network has a product "
            "that one of them does not count, so no count is reported"
        )
    return Count(macs=macs, unsupported_ops=tuple(sorted(unsupported)))


def count_params(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters(), torch.empty(0)).device


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters(), torch.empty(0)).dtype
