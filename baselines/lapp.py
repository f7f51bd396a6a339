"""LAPP: every layer learns a threshold on importance, under a constraint on MACs.

Shapes: L layers, O filters, N filters of all layers, S filter sets (tied filters share one mask).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from baselines._macs import MaskedMacs
from suite.contract import Budget, Criterion, Learner, Ranking, State, Step, Task
from suite.graph import Graph

KEPT_LAST = 1e3
"""Added to the score of an unmasked filter, so that masked filters go first."""
LINEAR = 0.02
"""Linear part of the penalty on excess MACs: a square alone has no slope at the constraint and stops just above it."""


class _Thresholds(Learner):
    """Learns one threshold a layer; filters of lower importance output 0.

    The mask multiplies scale and shift of the batch norm behind a filter. Both are kept unmasked too: the optimizer's
    moves of the masked ones, which the network has, are added to the unmasked ones after every step.
    """

    def __init__(self, settings: LAPP, model: nn.Module, graph: Graph, budget: Budget) -> None:
        self.settings = settings
        self.budget = budget
        self.weights = [model.get_parameter(f"{name}.weight") for name in graph.convs]
        self.bypassed = _bypassed(model, graph)
        device = self.weights[0].device
        norms = graph.batch_norms("lapp").values()
        self.gates: list[Tensor] = [model.get_parameter(f"{bn}.{kind}") for kind in ("weight", "bias") for bn in norms]
        self.sizes = [len(gate) for gate in self.gates]
        self.unmasked = torch.cat([gate.detach().clone() for gate in self.gates])
        self.ids = [ids.to(device) for ids in graph.filter_sets.values()]
        self.set_N = torch.cat(self.ids)
        members_SL = torch.stack([torch.bincount(ids, minlength=graph.set_count) for ids in self.ids], 1).float()
        self.member_SL = members_SL / members_SL.sum(1, keepdim=True)
        self.macs = MaskedMacs(model, graph, budget, device)
        self.threshold_L = torch.zeros(len(self.ids), device=device)
        self.mask_S = torch.ones(graph.set_count, device=device)
        self.fixed = False
        """True when the constraint is met for good: thresholds and mask then stay."""

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Train the bypass; move the thresholds by straight-through gradients of loss and MACs."""
        for kernel in self.bypassed:
            if kernel.grad is not None:
                centre(kernel.grad).mul_(2)
        if self.fixed:
            return
        slopes = torch.cat([_gradient(gate) for gate in self.gates]) * self.unmasked
        loss_S = torch.zeros_like(self.mask_S).index_add_(0, self.set_N.repeat(2), slopes)
        left, macs_S = self.macs(self.mask_S)
        allowed = 1 - self.budget.share * min(1.0, float(step.index + 1) / (self.settings.prune_share * step.total))
        excess = (left - allowed).clamp(min=0)
        weight = self.settings.macs_weight * len(self.threshold_L) * (excess + LINEAR * excess.sign())
        self.threshold_L += self.settings.threshold_lr * (loss_S + weight * macs_S) @ self.member_SL
        self.threshold_L.clamp_(min=0)

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Apply the optimizer's moves to the unmasked values, and set the new mask."""
        moved = torch.cat([gate.detach() for gate in self.gates]) - self.unmasked * self._mask_gates()
        self.unmasked += moved
        if not self.fixed:
            self._renew_mask()
            down = float(step.index + 1) >= self.settings.prune_share * step.total
            self.fixed = down and float(self.macs(self.mask_S)[0]) <= 1 - self.budget.share
        for gate, values in zip(self.gates, (self.unmasked * self._mask_gates()).split(self.sizes), strict=True):
            gate.copy_(values)

    def _renew_mask(self) -> None:
        """Set the mask to 1 if a set's mean importance exceeds its mean threshold.

        The best set of each layer stays too.
        """
        margins = [_importance(w) - t for w, t in zip(self.weights, self.threshold_L, strict=True)]
        members_S = torch.bincount(self.set_N, minlength=len(self.mask_S))
        margin_S = torch.zeros_like(self.mask_S).index_add_(0, self.set_N, torch.cat(margins)) / members_S
        self.mask_S = (margin_S > 0).to(margin_S.dtype)
        for ids in self.ids:
            self.mask_S[ids[margin_S[ids].argmax()]] = 1

    def _mask_gates(self) -> Tensor:
        return self.mask_S[self.set_N].repeat(2)

    def metrics(self) -> dict[str, float]:
        """Return the share of MACs left, the mean threshold, and the fixed flag."""
        return {
            "macs_left": float(self.macs(self.mask_S)[0]),
            "threshold": float(self.threshold_L.mean()),
            "fixed": float(self.fixed),
        }

    def state_dict(self) -> State:
        """Return thresholds [L], mask [S], unmasked scales and shifts, and the fixed flag."""
        names = ("threshold_L", "mask_S", "unmasked")
        return {**{name: getattr(self, name).clone() for name in names}, "fixed": self.fixed}

    def load_state_dict(self, state: State) -> None:
        """Restore the output of `state_dict`."""
        for name in ("threshold_L", "mask_S", "unmasked"):
            setattr(self, name, state[name].to(self.set_N.device, copy=True))
        self.fixed = state["fixed"]


@dataclass(frozen=True, kw_only=True)
class LAPP(Criterion):
    """Filters below their layer's learned threshold, from training that begins at the initial weights.

    prune_share   share of the stage in which the allowed MACs fall linearly to the budget
    threshold_lr  learning rate of the thresholds
    macs_weight   weight of the penalty on excess MACs (as a share of the dense ones, times the number of layers)
    ranking       "raw": importance minus threshold, in one order over the network
    """

    scopes = ("coupled",)
    granularity = "filter"
    source = "Zhai et al., LAPP: Layer Adaptive Progressive Pruning for Compressing CNNs from Scratch, arXiv 2309.14157 (2023)"
    deviations = (
        "written from the paper's abstract, without its equations or code; ours are the bypass (1x1, from zero weights, beside "
        "every layer with a larger odd kernel, merged into the kernel's centre, so it costs no MACs), "
        "the importance (L2 norm of a filter over its layer's mean), the straight-through gradient of the thresholds, the "
        "constraint (square and small linear penalty on the excess over linearly falling MACs), the rates, and that the mask "
        "acts on scale and shift of the batch norm and is fixed when the budget is first met after prune_share; residual "
        "streams are pruned too, tied filters by their mean; the best filter of every layer stays; where the mask removes more "
        "than the budget, the best masked filters come back, with zero scale; a batch norm behind a depthwise convolution, or in "
        "front of a convolution, is not masked"
    )
    learns = True
    needs_budget = True
    start = "init"
    version = 3
    evidence = "abstract"
    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "prune_share": (0.25, 0.5, 0.75),
        "threshold_lr": (0.01, 0.05, 0.25),
    }

    prune_share: float = 0.5
    threshold_lr: float = 0.05
    macs_weight: float = 1.0
    ranking: Ranking = "raw"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.prune_share < 1:
            raise ValueError(f"lapp's prune_share must lie between 0 and 1, got {self.prune_share}")
        if self.threshold_lr <= 0 or self.macs_weight <= 0:
            raise ValueError(
                f"lapp's threshold_lr and macs_weight must be above 0, got {self.threshold_lr} and {self.macs_weight}"
            )

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> Learner:
        """Return a threshold for every convolution, under the task's budget."""
        assert task.budget is not None
        return _Thresholds(self, model, graph, task.budget)

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> importance minus threshold [O]; masked filters come first."""
        mask_S = state["mask_S"].cpu()
        return {
            name: _importance(model.get_parameter(f"{name}.weight")).cpu() - threshold + KEPT_LAST * mask_S[ids]
            for (name, ids), threshold in zip(graph.filter_sets.items(), state["threshold_L"].cpu(), strict=True)
        }


def _bypassed(model: nn.Module, graph: Graph) -> list[nn.Parameter]:
    """Return the weights of odd kernels above 1 whose padding keeps the centre."""
    weights = []
    for name in graph.convs:
        conv = model.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        taps = zip(conv.kernel_size, conv.padding, conv.dilation, strict=False)
        if all(k > 1 and k % 2 and p == d * (k // 2) for k, p, d in taps):
            weights.append(model.get_parameter(f"{name}.weight"))
    return weights


def centre(w_OIkk: Tensor) -> Tensor:
    """Return the kernels' centres [O, I], into which a 1x1 bypass V merges.

    V starts at zero and gets the same gradient as the centre. The sum of both then moves as under a doubled gradient of the
    loss, for SGD with any momentum and weight decay.
    """
    return w_OIkk[:, :, w_OIkk.shape[2] // 2, w_OIkk.shape[3] // 2]


def _importance(w_OIkk: Tensor) -> Tensor:
    """Return the L2 norm of each filter over the layer's mean [O]."""
    norm_O = w_OIkk.detach().flatten(1).norm(dim=1)
    return norm_O / norm_O.mean().clamp(min=torch.finfo(norm_O.dtype).tiny)


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
