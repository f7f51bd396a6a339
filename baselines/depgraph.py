"""DepGraph: the norm of all weights that are removed together, and a penalty on it.

Shapes: O filters, I input channels, S filter sets, F families: the sets that share a layer compete with each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.contract import Criterion, Learner, Ranking, State, Step, Task
from suite.graph import Graph
from suite.select import coupled_sets

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class _Coupled:
    """Weights of filter sets along one dimension: filters, batch-norm scales or read channels."""

    parameter: nn.Parameter
    dim: int
    set_N: Tensor
    """int64: the set of each entry of that dimension; S for what belongs to none."""
    present_S: Tensor
    """bool [S + 1]: True for sets with an entry."""

    @classmethod
    def make(cls, parameter: nn.Parameter, dim: int, ids_N: Tensor, count: int) -> _Coupled:
        """Return the weights of sets 0..count-1; a negative id belongs to none."""
        set_N = torch.where(ids_N < 0, count, ids_N)
        present_S = torch.bincount(set_N, minlength=count + 1) > 0  # once: a CUDA graph cannot capture it
        return cls(parameter, dim, set_N.to(parameter.device), present_S.to(parameter.device))

    def energies(self) -> Tensor:
        """Sum of squares of each entry [N]."""
        return self.parameter.detach().square().movedim(self.dim, 0).reshape(len(self.set_N), -1).sum(1)

    def spread(self, value_S: Tensor) -> Tensor:
        """Return the value of each entry's set, shaped to multiply the weights."""
        shape = [1] * self.parameter.dim()
        shape[self.dim] = -1
        return value_S[self.set_N].view(shape)


def coupled_weights(model: nn.Module, graph: Graph) -> list[_Coupled]:
    """Return all weights that are removed with each filter set.

    These are its filters, their batch-norm scales, and the weights that read its channels.
    """
    weights = []
    for name, ids in graph.filter_sets.items():
        bn = graph.convs[name].bn
        for layer in (name, bn) if bn else (name,):
            weight = model.get_parameter(f"{layer}.weight")
            weights.append(_Coupled.make(weight, 0, ids, graph.set_count))
    for name, ids in graph.input_sets.items():
        weight = model.get_parameter(f"{name}.weight")
        weights.append(_Coupled.make(weight, 1, ids, graph.set_count))
    return weights


def group_energies(coupled: list[_Coupled], count: int, reduction: Reduction) -> Tensor:
    """Return the summed or mean squared weights that each filter set couples [S]."""
    total, members = coupled[0].parameter.new_zeros(2, count + 1)
    for weights in coupled:
        total.index_add_(0, weights.set_N, weights.energies())
        members += weights.present_S
    return total[:count] / members[:count] if reduction == "mean" else total[:count]


class _GroupPenalty(Learner):
    """Adds reg * gamma_S * W to the gradients.

    gamma_S rises from 1 for the largest set of a family to 2^alpha for the smallest.
    """

    capturable = True

    def __init__(self, model: nn.Module, graph: Graph, settings: DepGraph) -> None:
        self.reg = settings.reg
        self.alpha = settings.alpha
        self.reduction = settings.reduction
        self.coupled = coupled_weights(model, graph)
        self.count = graph.set_count
        families = coupled_sets(graph.filter_sets)
        self.family_S = torch.empty(self.count, dtype=torch.int64)
        for number, ids in enumerate(families):
            self.family_S[ids] = number
        self.family_S = self.family_S.to(self.coupled[0].parameter.device)
        self.families = len(families)

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Put the penalty's gradient on top of the loss's."""
        rate_S = F.pad(self.reg * self._gamma(), (0, 1))
        for weights in self.coupled:
            if weights.parameter.grad is not None:
                weights.parameter.grad.addcmul_(weights.parameter, weights.spread(rate_S))

    def _gamma(self) -> Tensor:
        norm_S = group_energies(self.coupled, self.count, self.reduction).sqrt()
        low_F, high_F = (
            norm_S.new_zeros(self.families).scatter_reduce_(0, self.family_S, norm_S, reduce, include_self=False)
            for reduce in ("amin", "amax")
        )
        low_S, high_S = low_F[self.family_S], high_F[self.family_S]
        return torch.exp2(self.alpha * (high_S - norm_S) / (high_S - low_S).clamp(min=torch.finfo(norm_S.dtype).tiny))

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Return the penalty and the share of sets below 1 % of the mean norm."""
        energy_S = group_energies(self.coupled, self.count, self.reduction)
        norm_S = energy_S.sqrt()
        return {
            "penalty": float(self.reg / 2 * (self._gamma() * energy_S).sum()),
            "empty_sets": float((norm_S < 0.01 * norm_S.mean()).float().mean()),
        }


@dataclass(frozen=True, kw_only=True)
class DepGraph(Criterion):
    """Norm of all weights coupled to a filter, after training with a penalty.

    reg        weight of the penalty
    alpha      the smallest group of a family is penalised 2^alpha times as much as its largest
    reduction  energy of a group: "mean" or "sum" over the weights that it couples
    ranking    "raw": energies over the largest of their family, in one order (the authors' normalizer max)
    """

    scopes = ("coupled",)
    granularity = "channel"
    source = (
        "Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, section 3.3; Torch-Pruning 1.6.1, with the "
        "settings of the authors' CIFAR runs (reg 5e-4, no weight decay, lr 0.01); groups go through sums (scope coupled)"
    )
    deviations = (
        "groups come from the suite's own channel graph, which also ties padded shortcuts; as in the authors' code, gamma "
        "follows the norms, not their squares, and reg is the factor of the gradient; ranked once at the end, not again in "
        "each of 400 pruning steps"
    )
    learns = True
    penalty: ClassVar = ("reg", 391 * (60 * 0.01 + 20 * 0.001 + 20 * 0.0001))
    training: ClassVar[Mapping[str, Any]] = {"lr": 0.01, "weight_decay": 0.0}
    implied: ClassVar[Mapping[str, Any]] = {"reduction": "sum", "ranking": "global", "reg": 1e-4}
    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {"reg": (1e-4, 5e-4, 1e-3), "alpha": (2.0, 4.0)}
    lowest: ClassVar = {"reg": 0, "alpha": 0}

    reg: float = 5e-4
    alpha: float = 4.0
    reduction: Reduction = "mean"
    ranking: Ranking = "raw"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduction not in get_args(Reduction):
            raise ValueError(
                f"depgraph's reduction {self.reduction!r} is unknown; choose {', '.join(get_args(Reduction))}"
            )

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> Learner:
        """Return the penalty on all coupled weights."""
        return _GroupPenalty(model, graph, self)

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> energy of each filter's group [O].

        If the ranking is raw, it is divided by the largest of its family.
        """
        energy_S = group_energies(coupled_weights(model, graph), graph.set_count, self.reduction)
        if self.ranking == "raw":
            for ids in coupled_sets(graph.filter_sets):
                members = ids.to(energy_S.device)
                energy_S[members] /= energy_S[members].max().clamp(min=torch.finfo(energy_S.dtype).tiny)
        return {name: energy_S[ids.to(energy_S.device)] for name, ids in graph.filter_sets.items()}
