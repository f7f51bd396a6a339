"""MACs and parameters of a network.

MACs are the multiply-accumulates of convolutions and linear layers of one image, in eval mode. fvcore and torch's own
counter both count them; if they disagree, no count is returned.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fvcore calls the deprecated torch.jit.script at import
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import conv_flop_jit, get_shape

from suite.measure.products import dispatched_macs, unfused


def _product(left: int) -> Callable[[list[Any], list[Any]], int]:
    """Return the formula of a product whose left factor is argument `left`.

    Elements of the result times the length of a row of the left factor.
    """
    return lambda inputs, outputs: math.prod(get_shape(outputs[0])) * get_shape(inputs[left])[-1]


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Return the MACs of query x key and of weights x value."""
    query, key = get_shape(inputs[0]), get_shape(inputs[1])
    return (math.prod(query) + math.prod(get_shape(outputs[0]))) * key[-2]


_HANDLES: dict[str, Any] = {"aten::_convolution": conv_flop_jit, "aten::scaled_dot_product_attention": _attention}
_HANDLES |= {f"aten::{name}": _product(0) for name in ("linear", "mm", "bmm", "matmul", "mv", "dot", "vdot", "inner")}
_HANDLES |= {f"aten::{name}": _product(1) for name in ("addmm", "baddbmm", "addmv")}
"""Operators that fvcore counts; one multiply-add is one. All other handles of fvcore are cleared."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """Multiply-accumulates of one image, and the operators for which fvcore has no formula."""

    macs: int
    unsupported_ops: tuple[str, ...]


def count_macs(model: nn.Module, input_shape: tuple[int, ...]) -> Count:
    """Count the conv + linear MACs of `model` on one image [C, H, W].

    Raises ValueError if fvcore and torch's counter disagree, or an operator has products that neither counts.
    """
    image = torch.zeros(1, *input_shape, device=_device(model), dtype=_dtype(model))
    with _evaluating(model), torch.no_grad(), unfused():
        counter = FlopCountAnalysis(model, image)
        counter.clear_op_handles().set_op_handle(**_HANDLES)
        counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        macs = int(counter.total())
        unsupported: Counter[str] = counter.unsupported_ops()
        dispatched = dispatched_macs(model, image)
    if dispatched != macs:
        raise ValueError(
            f"the two MAC counters disagree: fvcore {macs}, torch {dispatched:g}; the network has a product that one of them "
            "does not count, so no count is reported"
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
