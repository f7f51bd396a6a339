"""Plans and budgets: plain values that every other part of the suite builds on.

Shapes: O filters, I input channels, G filter groups of one convolution.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from suite.schedule import check_fields

Ranking = Literal["global", "raw", "layer", "isomorphic"]
"""Order of scores across layers. "global" divides the scores of a layer by their mean and sorts all layers together; "raw"
sorts all layers together without the division; "layer" removes the same share of every layer; "isomorphic" sorts as "global"
within each class of filter sets of the same topology, and removes the same share of every class."""
Scope = Literal["untied", "inner", "coupled"]
"""Filters that a criterion removes. "untied": those of every convolution but projection shortcuts, each on its own; a
residual sum keeps its width, and a removed filter adds nothing to it. "inner": only filters that neither a residual sum nor a
projection shortcut reads. "coupled": filters that meet in residual sums go together, from all their layers. In all scopes the
filters that one group of a grouped convolution reads go together."""


Per = Literal["", "macs", "ms"]
"""Cost by which importance is divided: none, MACs, or predicted milliseconds (of a run with a latency budget)."""
BudgetScope = Literal["network", "prunable", "latency"]
"""Resource that a `Budget` counts."""


def count(mask: Tensor) -> int:
    """Return the number of True entries of a mask on the CPU.

    A third of the time of `int(mask.sum())`.
    """
    return int(np.count_nonzero(mask.numpy()))


@dataclass(frozen=True, eq=False)
class ConvPlan:
    """Input channels that each filter of one convolution keeps.

    filter_group_O  int64 [O]     the group of each filter, 0..G-1
    kept_GI         bool  [G, I]  the input channels that the filters of each group keep
    kept_O          bool  [O]     False: the filter is removed, whatever its group keeps

    A filter without kept channels counts as removed. The constructor copies the tensors to the CPU.

    Raises ValueError if the shapes or types do not fit together.
    """

    filter_group_O: Tensor
    kept_GI: Tensor
    kept_O: Tensor

    def __post_init__(self) -> None:
        for name in ("filter_group_O", "kept_GI", "kept_O"):
            object.__setattr__(self, name, getattr(self, name).detach().cpu())
        group, kept, filters = self.filter_group_O, self.kept_GI, self.kept_O
        if group.dtype != torch.int64 or kept.dtype != torch.bool or filters.dtype != torch.bool:
            raise ValueError(
                f"a ConvPlan takes int64 groups and bool masks, got {group.dtype}, {kept.dtype} and {filters.dtype}"
            )
        if group.ndim != 1 or kept.ndim != 2 or filters.shape != group.shape or len(group) == 0:
            raise ValueError(
                "a ConvPlan takes filter_group_O [O], kept_GI [G, I], kept_O [O], "
                f"got {list(group.shape)}, {list(kept.shape)}, {list(filters.shape)}"
            )
        low, high = int(group.min()), int(group.max())
        if low < 0 or high >= len(kept):
            raise ValueError(f"filter groups must lie in 0..{len(kept) - 1}, got {low}..{high}")

    def having(self, *, kept_GI: Tensor | None = None, kept_O: Tensor) -> ConvPlan:
        """Return the plan with other masks of the same shapes.

        Without the constructor's checks and copies.
        """
        result = object.__new__(ConvPlan)
        fields = vars(result)
        fields["filter_group_O"], fields["kept_O"] = self.filter_group_O, kept_O
        fields["kept_GI"] = self.kept_GI if kept_GI is None else kept_GI
        return result

    def has_tensors_of(self, other: ConvPlan) -> bool:
        """Return True if the tensors are equal, so that both plans are written alike."""
        return (
            torch.equal(self.kept_O, other.kept_O)
            and (self.kept_GI is other.kept_GI or torch.equal(self.kept_GI, other.kept_GI))
            and (self.filter_group_O is other.filter_group_O or torch.equal(self.filter_group_O, other.filter_group_O))
        )

    def with_inputs(self, nonzero_I: Tensor) -> ConvPlan:
        """Return the plan that also removes the input channels outside of `nonzero_I`."""
        kept_GI = self.kept_GI & nonzero_I
        if kept_GI.shape[0] > 1:
            return self.having(kept_GI=kept_GI, kept_O=self.kept_O & kept_GI.any(1)[self.filter_group_O])
        return self.having(kept_GI=kept_GI, kept_O=self.kept_O if count(kept_GI) else torch.zeros_like(self.kept_O))

    def with_readers(self, read_O: Tensor) -> ConvPlan:
        """Return the plan that also removes the filters outside of `read_O`.

        A group without a filter keeps no channel.
        """
        kept_O = self.kept_O & read_O
        if self.kept_GI.shape[0] == 1:
            return self.having(kept_GI=self.kept_GI if count(kept_O) else torch.zeros_like(self.kept_GI), kept_O=kept_O)
        used_G = torch.zeros(self.kept_GI.shape[0], dtype=torch.bool)
        used_G[self.filter_group_O[kept_O]] = True
        return self.having(kept_GI=self.kept_GI & used_G[:, None], kept_O=kept_O)

    @property
    def read_I(self) -> Tensor:
        """bool [I], True for channels that a group keeps."""
        return self.kept_GI[0] if self.kept_GI.shape[0] == 1 else self.kept_GI.any(0)

    @staticmethod
    def from_mask(mask_OI: Tensor) -> ConvPlan:
        """Return the plan in which filter o reads channel i if `mask_OI[o, i]` is True."""
        rows, group = mask_OI.bool().unique(dim=0, return_inverse=True)
        return ConvPlan(group, rows, mask_OI.bool().any(1))

    @staticmethod
    def full(filters: int, channels: int) -> ConvPlan:
        """Return the plan that removes nothing."""
        return ConvPlan(
            torch.zeros(filters, dtype=torch.int64),
            torch.ones(1, channels, dtype=torch.bool),
            torch.ones(filters, dtype=torch.bool),
        )

    @property
    def kernels(self) -> int:
        """Number of kept kernels w[o, i]."""
        if self.kept_GI.shape[0] == 1:
            return count(self.kept_O) * count(self.kept_GI)
        filters_G = torch.bincount(self.filter_group_O[self.kept_O], minlength=len(self.kept_GI))
        return int((filters_G * self.kept_GI.sum(1)).sum())

    @property
    def mask_OI(self) -> Tensor:
        """bool [O, I], True if filter o reads channel i."""
        return self.kept_GI[self.filter_group_O] & self.kept_O[:, None]

    @property
    def groups(self) -> list[tuple[Tensor, Tensor]]:
        """Indices (filters, channels) of each group of the canonical form, ascending."""
        plan = self.canonical()
        return [
            (((plan.filter_group_O == g) & plan.kept_O).nonzero()[:, 0], kept.nonzero()[:, 0])
            for g, kept in enumerate(plan.kept_GI)
            if bool(kept.any())
        ]

    def __and__(self, other: ConvPlan) -> ConvPlan:
        """Return the plan that removes what either plan removes; one group per pair of groups."""
        kept_GI = (self.kept_GI[:, None] & other.kept_GI[None]).flatten(0, 1)
        group = self.filter_group_O * len(other.kept_GI) + other.filter_group_O
        return ConvPlan(group, kept_GI, self.kept_O & other.kept_O)

    def canonical(self) -> ConvPlan:
        """Merge groups that keep the same channels, ordered by their first filter.

        Removed filters are in group 0. A filter without kept channels is removed.
        """
        if self.kept_GI.shape[0] == 1:
            return self.with_inputs(self.kept_GI[0]).with_readers(self.kept_O)
        kept_O = self.kept_O & self.kept_GI.any(1)[self.filter_group_O]
        index_of_row: dict[bytes, int] = {}
        rows: list[Tensor] = []
        index_G = torch.zeros(len(self.kept_GI), dtype=torch.int64)
        for g in dict.fromkeys(self.filter_group_O[kept_O].tolist()):
            row = self.kept_GI[g]
            index_G[g] = index_of_row.setdefault(row.numpy().tobytes(), len(rows))
            if index_G[g] == len(rows):
                rows.append(row)
        kept_GI = torch.stack(rows) if rows else torch.zeros_like(self.kept_GI[:1])
        return ConvPlan(torch.where(kept_O, index_G[self.filter_group_O], 0), kept_GI, kept_O)


class PruningPlan(Mapping[str, ConvPlan]):
    """Mapping layer name -> `ConvPlan`.

    An absent layer is unpruned. Equality and hash use the canonical form.
    """

    def __init__(self, layers: Mapping[str, ConvPlan]) -> None:
        self._layers = dict(sorted(layers.items()))

    def __getitem__(self, name: str) -> ConvPlan:
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __and__(self, other: PruningPlan) -> PruningPlan:
        """Return the plan that removes what either plan removes."""
        common = {name: self[name] & other[name] for name in self if name in other}
        return PruningPlan({**self, **other, **common})

    def canonical(self) -> PruningPlan:
        """Return every pruned layer in canonical form, without the unpruned ones."""
        layers = {name: plan.canonical() for name, plan in self.items()}
        return PruningPlan(
            {name: plan for name, plan in layers.items() if plan.kernels < plan.kept_O.numel() * plan.kept_GI.shape[1]}
        )

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of the canonical form."""
        digest = hashlib.sha256()
        for name, tensor in self.canonical().to_tensors().items():
            digest.update(f"{name}{list(tensor.shape)}".encode() + tensor.numpy().tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PruningPlan) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return int(self.sha256[:15], 16)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return flat tensors for a file, the input of `from_tensors`."""
        return {
            f"{name}/{field}": getattr(plan, field)
            for name, plan in self.items()
            for field in ("filter_group_O", "kept_GI", "kept_O")
        }

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> PruningPlan:
        """Return the plan of a `to_tensors` result."""
        layers: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, field = key.rsplit("/", 1)
            layers.setdefault(name, {})[field] = tensor
        return PruningPlan({name: ConvPlan(**fields) for name, fields in layers.items()})


Runtime = Literal["torch", "onnxruntime", "openvino", "tensorrt"]
CONDITIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "onnxruntime": ("cpu", ("fp32",)),
    "openvino": ("cpu", ("fp32", "bf16")),
    "tensorrt": ("cuda", ("fp32", "fp16", "bf16")),
}
"""Runtime other than torch -> its device and precisions in this suite."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Conditions of a latency measurement. `device` "cpu" or "cuda"; `batch` images at once.

    runtime   "torch": all that the protocol tries; another one: both networks run in this runtime only
    threads   of the CPU; 0: all cores in a timed stage, the stage's own threads while a plan is made for a budget of time
    """

    device: Literal["cpu", "cuda"] = "cpu"
    batch: int = 32
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    layout: Literal["contiguous", "channels_last"] = "contiguous"
    protocol: Literal["quick", "full"] = "full"
    runtime: Runtime = "torch"
    threads: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.batch < 1:
            raise ValueError(f"batch = {self.batch}: latency is measured on at least one image")
        if self.threads < 0 or (self.threads and self.device != "cpu"):
            raise ValueError(
                f"threads = {self.threads}: a timing on a CPU takes 1 or more, or 0, one on {self.device} takes 0"
            )
        device, precisions = CONDITIONS.get(self.runtime, (self.device, (self.precision,)))
        if self.device != device or self.precision not in precisions:
            raise ValueError(
                f"runtime {self.runtime} runs on {device} in {' and '.join(precisions)}, and the timing is for {self.device} in "
                f"{self.precision}: change the one or the other"
            )


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Share of MACs or of time to remove, in [0, 1), counted without dead channels.

    scope     "network" counts all convolutions and linear layers; "prunable" counts the convolutions that are neither the
              stem nor a shortcut, as the DSP authors do; "latency" is the time of the dense network under `timing`
    timing    conditions of a latency budget: device, precision, batch, layout and protocol
    round_to  rounds the kept channels of every filter group and the kept filters up to a multiple (`suite.select.rounded`),
              for hardware that computes in such steps
    refill    gives removed filters and channels back, last removed first, while the budget stays met (`suite.refill`)
    """

    share: float
    scope: BudgetScope = "network"
    round_to: int = 1
    refill: bool = False
    timing: Timing | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.share, int | float) or not 0 <= self.share < 1:
            raise ValueError(
                f"budget {self.share!r} is outside [0, 1): it is the share of {self.resource} to remove, such as 0.6"
            )
        if self.scope not in get_args(BudgetScope):
            raise ValueError(f"budget scope {self.scope!r} is unknown; choose {', '.join(get_args(BudgetScope))}")
        if self.round_to < 1:
            raise ValueError(
                f"round_to = {self.round_to}: widths are rounded up to a multiple of 1 (off), 8, 16 or the like"
            )
        if self.timing is not None and not isinstance(self.timing, Timing):
            raise ValueError(f"timing = {self.timing!r}: it takes Timing(device=..., batch=...)")
        if (self.scope == "latency") != (self.timing is not None):
            wrong = "has no timing: add" if self.timing is None else f"of scope {self.scope!r} has a timing: drop"
            raise ValueError(f"a budget {wrong} timing=Timing(device=..., batch=...), the conditions of scope latency")
        if self.scope == "latency" and self.refill:
            raise ValueError("refill=True fills a budget of MACs; drop it for scope latency, whose plans are measured")

    @property
    def label(self) -> str:
        """Share in percent, with "of the time" for scope latency."""
        return f"{self.share:.2%}" + (" of the time" if self.scope == "latency" else "")

    @property
    def resource(self) -> str:
        """Name of what the budget removes: "MACs", "prunable MACs" or "time"."""
        return {"prunable": "prunable MACs", "latency": "time"}.get(self.scope, "MACs")


Planner = Callable[[float], PruningPlan]
"""knob in [0, 1] -> plan; monotone: a larger knob removes all that a smaller one does, and 0 removes nothing."""
