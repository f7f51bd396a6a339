"""Rules of operators: the channels that flow through each.

Shapes: C channels of one tensor.

Three facts flow through the network. `ids` has the number of the filter that makes a channel (-1 for none). `nonzero` is False
for a channel that is always zero. `read` is True for a channel that a later operator reads. The axis of a tensor is the dimension
of its channels; all other dimensions are positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, fx

from suite.plan import count

Kind = Literal[
    "input", "constant", "conv", "grouped", "bn", "shortcut", "linear", "sum", "switch", "product", "concat", "take", "view",
    "flatten", "pass", "shift", "whole", "fixed", "pending", "output",
]  # fmt: skip
Tie = Callable[[np.ndarray, np.ndarray], None]
"""Ties filters pairwise: they can only be removed together."""


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator of the network.

    The base class maps every channel to itself, and zero to zero.

    sources  nodes of the operands whose channels it reads
    axis     dimension of the channels of the result
    width    channels of the result
    """

    kind: ClassVar[Kind] = "pass"
    sources: list[fx.Node]
    axis: int = 1
    width: int = 0

    def ids(self, ids: list[np.ndarray], tie: Tie) -> np.ndarray:
        """Return the filter of each channel, from those of the operands."""
        return ids[0]

    def nonzero(self, operands: list[Tensor]) -> Tensor:
        """Return bool [C], False for channels that are always zero, from those of the operands."""
        return operands[0]

    def read(self, result: Tensor, operands: list[Tensor]) -> list[Tensor]:
        """Return bool [C] for each operand: the channels that are read.

        result    channels of the result that are read
        operands  channels of the operands that are not always zero
        """
        return [result for _ in self.sources]

    def macs(self, live: Tensor, operands: list[Tensor]) -> int:
        """Return the multiply-accumulates of one image for the live channels of result and operands."""
        return 0

    def every(self, live: bool = True) -> Tensor:
        """Return a mask of all channels of the result."""
        return torch.full((self.width,), live)


class Pass(Operator):
    """A channel-wise operator that maps zero to zero: activation, pooling, dropout."""


class Norm(Operator):
    """A batch norm. A channel that is always zero has scale and shift 0."""

    kind: ClassVar[Kind] = "bn"


class View(Operator):
    """A change of layout that moves all channels alike."""

    kind: ClassVar[Kind] = "view"


PASSING = (Pass, Norm, View)
"""Rules of the base class: channels are zero, and read, as those of the operand."""


class Shift(Operator):
    """A channel-wise operator that maps zero to another number: sigmoid, a sum with a constant."""

    kind: ClassVar[Kind] = "shift"

    def nonzero(self, operands: list[Tensor]) -> Tensor:
        return self.every()


class _Untied(Operator):
    """An operator whose channels have no filter and are never zero."""

    def ids(self, ids: list[np.ndarray], tie: Tie) -> np.ndarray:
        return np.full(self.width, -1)

    def nonzero(self, operands: list[Tensor]) -> Tensor:
        return self.every()


class Whole(_Untied):
    """An operator that mixes channels: layer norm, softmax. All channels are read."""

    kind: ClassVar[Kind] = "whole"

    def read(self, result: Tensor, operands: list[Tensor]) -> list[Tensor]:
        return [torch.ones_like(operand) for operand in operands]


@dataclass(frozen=True, kw_only=True)
class Fixed(Whole):
    """A layer that is computed on all channels: called several times, or a transposed convolution.

    full_macs  multiply-accumulates of one call
    """

    kind: ClassVar[Kind] = "fixed"
    full_macs: int

    def macs(self, live: Tensor, operands: list[Tensor]) -> int:
        return self.full_macs if count(live) else 0


class Input(Whole):
    """The images."""

    kind: ClassVar[Kind] = "input"


class Constant(Whole):
    """A parameter or buffer, which the reading operator cuts to its own channels."""

    kind: ClassVar[Kind] = "constant"


class Output(Whole):
    """The result of the network, which is read wholly."""

    kind: ClassVar[Kind] = "output"


class Pending(Whole):
    """A tensor between two views, with its channels in several dimensions; it is never built."""

    kind: ClassVar[Kind] = "pending"

    def read(self, result: Tensor, operands: list[Tensor]) -> list[Tensor]:
        return [torch.zeros_like(operand) for operand in operands]


class Conv(Operator):
    """A convolution that methods score.

    `Graph.live` has the rule, as it depends on the plan of the layer.
    """

    kind: ClassVar[Kind] = "conv"


@dataclass(frozen=True, kw_only=True)
class Linear(_Untied):
    """A linear layer, or a convolution that is never scored.

    Such a convolution makes logits or a gate. Outputs without a reader are dropped.
    macs_per_weight  positions, times the weights of a kernel
    """

    kind: ClassVar[Kind] = "linear"
    macs_per_weight: int = 1

    def read(self, result: Tensor, operands: list[Tensor]) -> list[Tensor]:
        return [torch.full_like(operands[0], bool(result.any()))]

    def macs(self, live: Tensor, operands: list[Tensor]) -> int:
        return count(live) * count(operands[0]) * self.macs_per_weight


@dataclass(frozen=True, kw_only=True)
class Grouped(Operator):
    """A depthwise or grouped convolution, which follows its input.

    A group is removed as a whole.

    groups           G
    macs_per_weight  positions, times the weights of a kernel
    """

    kind: ClassVar[Kind] = "grouped"
    groups: int
    macs_per_weight: int

    def by_group(self, mask: Tensor) -> Tensor:
        """Return bool [G], True for groups with a channel in the mask."""
        return mask if mask.shape[0] == self.groups else mask.view(self.groups, -1).any(1)

    def _filters(self, mask_G: Tensor) -> Tensor:
        return mask_G if self.width == self.groups else mask_G.repeat_interleave(self.width // self.groups)

    def ids(self, ids: list[np.ndarray], tie: Tie) -> np.ndarray:
        ids_GI = ids[0].reshape(self.groups, -1)
        tied_G = (ids_GI >= 0).all(1)  # a group that reads an untied channel cannot be removed
        for column in ids_GI[tied_G].T[1:]:
            tie(ids_GI[tied_G, 0], column)
        return np.where(tied_G, ids_GI[:, 0], -1).repeat(self.width // self.groups)

    def nonzero(self, operands: list[Tensor]) -> Tensor:
        return self._filters(self.by_group(operands[0]))

    def read(self, result: Tensor, operands: list[Tensor]) -> list[Tensor]:
        used_G = self.by_group(result)
        inputs = operands[0].shape[0] // self.groups
        return [used_G if inputs == 1 else used_G.repeat_interleave(inputs)]

    def macs(self, live: Tensor, operands: list[Tensor]) -> int:
        inputs, filters = len(operands[0]) // self.groups, self.width // self.groups
        return count(self.by_group(live)) * inputs * filters * self.macs_per_weight


class Tied(Operator):
    """An operator of several tensors with the same channels, whose filters are tied."""

    def ids(self, ids: list[np.ndarray], tie: Tie) -> np.ndarray:
        result = ids[0]
        for other in ids[1:]:
            both = (result >= 0) & (other >= 0)
            tie(result[both], other[both])
            result = np.maximum(result, other)
        return result


class Sum(Tied):
    """A residual sum, or another operator of two tensors that maps two zeros to zero."""

    kind: ClassVar[Kind] = "sum"

    def nonzero(self, operands: list[Tensor]) -> Tensor:
        return operands[0] | operands[1]


class Where(Sum):
    """A choice between tensors by a condition, the first operand."""

    def nonzero(self, operands: list[Tensor]) -> Tensor:
        return torch.stack(operands[1:]).any(0)


class Switch(Sum):
    """One tensor in train mode, another in eval mode."""

    kind: ClassVar[Kind] = "switch"


class Product(Tied):
    """A product of two tensors with the same channels.

    A channel is zero if one operand is.
    """

    kind: ClassVar[Kind] = "product"

    def nonzero(self, operands: list[Tensor]) -> Tensor:
        return operands[0] & operands[1]

    def read(self, result: Tensor, operands: list[Tensor]) -> list[Tensor]:
        return [result & operands[0] & operands[1] for _ in self.sources]


class Concat(Operator):
    """A concatenation of channels."""

    kind: ClassVar[Kind] = "concat"

    def ids(self, ids: list[np.ndarray], tie: Tie) -> np.ndarray:
        return np.concatenate(ids)

    def nonzero(self, operands: list[Tensor]) -> Tensor:
        return torch.cat(operands)

    def read(self, result: Tensor, operands: list[Tensor]) -> list[Tensor]:
        return list(result.split([len(operand) for operand in operands]))


@dataclass(frozen=True, kw_only=True)
class Take(Operator):
    """Channels by number: slice, split, shuffle, padding by zero channels.

    index  int64 [C], the channel of the operand, -1 for zero
    """

    kind: ClassVar[Kind] = "take"
    index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def ids(self, ids: list[np.ndarray], tie: Tie) -> np.ndarray:
        return np.append(ids[0], -1)[self.index.numpy()]

    def nonzero(self, operands: list[Tensor]) -> Tensor:
        return torch.cat([operands[0], torch.tensor([False])])[self.index]

    def read(self, result: Tensor, operands: list[Tensor]) -> list[Tensor]:
        mask = torch.zeros_like(operands[0])
        mask[self.index[result & (self.index >= 0)]] = True
        return [mask]


class Shortcut(Take):
    """An option-A shortcut: every n-th pixel, with zero channels on both sides."""

    kind: ClassVar[Kind] = "shortcut"


class Flatten(Take):
    """A flattening of channels and positions: each channel becomes one feature per position."""

    kind: ClassVar[Kind] = "flatten"
