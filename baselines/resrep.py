"""ResRep: 1x1 compactors behind convolutions learn the filters to remove, and are folded back.

Shapes: O filters, I input channels. A compactor is a matrix [O, O]; its row o makes output o.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.contract import Budget, Criterion, Learner, PruningPlan, Ranking, Scope, State, Step, Task
from suite.graph import Graph
from suite.select import filter_planner, meet, sets_of_scope

FOLD_IMAGES = 512
"""Training images over which a folded layer's batch-norm statistics are taken."""


class Compactors(Learner):
    """Trains the compactors beside the network, with gradient reset for chosen rows.

    The compactors belong to the learner, not to the network: a forward hook applies each behind its batch norm, or behind the
    convolution if it has none. They have their own momentum and no weight decay.
    """

    def __init__(self, settings: ResRep, model: nn.Module, graph: Graph, task: Task) -> None:
        assert task.budget is not None
        self.settings, self.graph, self.task = settings, graph, task
        self.budget: Budget = task.budget
        self.layers = inner_layers(graph)
        if not self.layers:
            raise ValueError(
                "resrep puts compactors behind convolutions whose filters are tied to no others; this network has none"
            )
        device = next(model.parameters()).device
        self.matrix = {
            name: torch.eye(graph.convs[name].filters, device=device).requires_grad_() for name in self.layers
        }
        self.momentum = {name: torch.zeros_like(matrix) for name, matrix in self.matrix.items()}
        self.kept_O = {name: torch.ones(len(matrix), device=device) for name, matrix in self.matrix.items()}
        """1 where the task's gradient passes, 0 where it is reset."""
        self.handles = [
            model.get_submodule(graph.convs[name].bn or name).register_forward_hook(_applied(matrix))
            for name, matrix in self.matrix.items()
        ]

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Choose the rows to reset, every `interval` steps, or more often in a short stage."""
        index = int(step.index)
        every = max(1, min(self.settings.interval, int(self.settings.full_share * step.total)))
        if index % every == 0:
            self._choose(self.settings.due(index / step.total) * self.budget.share)

    def _choose(self, share: float) -> None:
        """Reset the rows with the smallest norms, as many as remove this share of MACs."""
        plan = PruningPlan({})
        if share > 0:
            norms = row_norms(self.matrix, self.graph)
            planner = filter_planner(self.graph, norms, ranking=self.settings.ranking, scope=self.settings.scope)
            plan = meet(
                planner, self.graph, Budget(share=share, scope=self.budget.scope, timing=self.budget.timing)
            ).plan
        for name, kept_O in self.kept_O.items():
            kept_O.copy_(plan[name].kept_O if name in plan else torch.ones(len(kept_O)))

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Move the compactors by the task's gradient, unless reset, and the lasso's."""
        gradients = {name: step.unscaled(m.grad) for name, m in self.matrix.items() if m.grad is not None}
        step.average(list(gradients.values()))
        for name, gradient in gradients.items():
            matrix = self.matrix[name]
            norm_O = matrix.norm(dim=1, keepdim=True)
            lasso = torch.where(norm_O > 0, matrix / norm_O, 0)
            total = self.kept_O[name][:, None] * gradient + self.settings.lam * lasso
            self.momentum[name].mul_(self.settings.momentum).add_(total)
            matrix.sub_(self.momentum[name] * step.lr)
            matrix.grad = None

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Return the share of rows that are reset, and their mean norm."""
        kept, norms = torch.cat(list(self.kept_O.values())), torch.cat([m.norm(dim=1) for m in self.matrix.values()])
        reset = kept == 0
        return {
            "reset_share": float(reset.float().mean()),
            "reset_norm": float(norms[reset].mean()) if reset.any() else 1.0,
        }

    @torch.no_grad()
    def finish(self, model: nn.Module) -> None:
        """Fold the compactors into the convolutions; in eval mode the network computes the same function."""
        for handle in self.handles:
            handle.remove()
        shifts = {name: _fold(model, name, self.graph.convs[name].bn, matrix) for name, matrix in self.matrix.items()}
        _take_statistics(model, {self.graph.convs[name].bn or "": shift for name, shift in shifts.items()}, self.task)

    def state_dict(self) -> State:
        """Return compactors and momenta [O, O], and the rows that are not reset [O]."""
        parts = {"matrix": self.matrix, "momentum": self.momentum, "kept_O": self.kept_O}
        return {key: {name: tensor.detach().clone() for name, tensor in part.items()} for key, part in parts.items()}

    @torch.no_grad()
    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned, in place, since the hooks hold the compactors."""
        for key in ("matrix", "momentum", "kept_O"):
            for name, tensor in getattr(self, key).items():
                tensor.copy_(state[key][name])


def _applied(matrix: Tensor) -> Any:
    """Return a forward hook that multiplies the output's channels by `matrix`."""
    return lambda module, inputs, output: F.conv2d(output, matrix.to(output.dtype)[:, :, None, None])


def inner_layers(graph: Graph) -> list[str]:
    """Return the layers of scope "inner" whose filters are tied to no others.

    Raises ValueError if the scope has no layers.
    """
    in_scope = sets_of_scope(graph, "inner")
    owners = torch.zeros(graph.set_count, dtype=torch.int64)
    for ids in graph.filter_sets.values():
        owners[ids.unique()] += 1
    return [
        name
        for name, ids in graph.filter_sets.items()
        if name in in_scope and bool((owners[ids] == 1).all()) and len(ids) == len(ids.unique())
    ]


def row_norms(matrices: Mapping[str, Tensor], graph: Graph) -> dict[str, Tensor]:
    """Return layer -> norm of each compactor row [O].

    A layer without a compactor has larger values than every row.
    """
    most = max(float(matrix.detach().norm(dim=1).max()) for matrix in matrices.values())
    return {
        name: matrices[name].detach().norm(dim=1) if name in matrices else torch.full((conv.filters,), 1 + most)
        for name, conv in graph.convs.items()
    }


def _fold(model: nn.Module, name: str, bn: str | None, matrix: Tensor) -> Tensor:
    """Fold a layer's batch-norm scale and compactor into its filters; return the shift [O]."""
    conv = model.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    scale, shift = torch.ones_like(matrix[0]), torch.zeros_like(matrix[0])
    if bn is not None:
        norm = model.get_submodule(bn)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - scale * norm.running_mean
    if conv.bias is not None:
        shift = shift + scale * conv.bias
        conv.bias.zero_()
    folded = (matrix * scale) @ conv.weight.flatten(1)
    conv.weight.copy_(folded.view_as(conv.weight))
    shift = matrix @ shift
    if bn is None:
        assert conv.bias is not None or not bool(shift.any())
        if conv.bias is not None:
            conv.bias.copy_(shift)
    return shift


def _take_statistics(model: nn.Module, shift_of: Mapping[str, Tensor], task: Task) -> None:
    """Set statistics of new inputs, and scales and shifts that add `shift_of` [O].

    Layers are done in the order of execution, each on the outputs of those done before.
    """
    was_training = model.training
    model.eval()
    images = task.samples(FOLD_IMAGES)[0]

    def measure(shift: Tensor) -> Any:
        def hook(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            variance, mean = torch.var_mean(inputs[0].float(), dim=(0, 2, 3), correction=0)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            norm.weight.copy_((norm.running_var + norm.eps).sqrt())
            norm.bias.copy_(shift + norm.running_mean)

        return hook

    handles = [model.get_submodule(bn).register_forward_pre_hook(measure(s)) for bn, s in shift_of.items() if bn]
    model(images)
    for handle in handles:
        handle.remove()
    model.train(was_training)


@dataclass(frozen=True, kw_only=True)
class ResRep(Criterion):
    """Norm of each filter after its compactor was folded in, smallest first.

    lam           weight of the lasso on the compactors' rows
    momentum      momentum of the compactors
    interval      steps between two choices of the rows to reset
    start_share   share of the stage before the first rows are reset
    full_share    share of the stage at which the reset rows meet the budget
    """

    scopes = ("inner",)
    granularity = "filter"
    source = (
        "Ding et al., ResRep: Lossless CNN Pruning via Decoupling Remembering and Forgetting, ICCV 2021, section 3; the "
        "authors' rr/exp_resrep.py: inner layers only (scope inner), lasso 1e-4, compactor momentum 0.99, a choice every 200 "
        "iterations after 5 of 480 epochs, lr 0.01, weight decay 1e-4"
    )
    deviations = (
        "the number of reset rows grows linearly to the budget instead of by four a choice, and choices are more frequent in a "
        "stage of few steps, so that short schedules reach it; "
        "rows go in the order of their norms until the budget is met, where the authors remove all below 1e-5; biases have "
        "the schedule's rate instead of twice the rate; biases and batch-norm scales decay as the weights, where the authors' "
        "do not; batches are those of the grid, not of 64 (CIFAR-10) or 256 (ImageNet); a folded layer keeps a batch norm, "
        "which computes the same function in eval mode, where the authors deploy a bias"
    )
    learns = True
    penalty: ClassVar = ("lam", 782 * 480 * 0.01 / 2)
    needs_budget = True
    training: ClassVar[Mapping[str, Any]] = {"lr": 0.01, "weight_decay": 1e-4}
    lowest: ClassVar[Mapping[str, float]] = {"lam": 0, "momentum": 0, "interval": 1}
    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {"lam": (1e-4, 1e-3, 1e-2), "full_share": (0.1, 0.5)}

    lam: float = 1e-4
    momentum: float = 0.99
    interval: int = 200
    start_share: float = 0.01
    full_share: float = 0.1
    ranking: Ranking = "raw"
    scope: Scope = "inner"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.momentum < 1:
            raise ValueError(f"resrep's momentum must be below 1, got {self.momentum}")
        if not 0 <= self.start_share < self.full_share <= 1:
            raise ValueError(
                f"resrep needs 0 <= start_share < full_share <= 1, got {self.start_share} and {self.full_share}"
            )

    def due(self, share: float) -> float:
        """Return the reset part of the budget at this share of the stage."""
        return min(1.0, max(0.0, (share - self.start_share) / (self.full_share - self.start_share)))

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> Compactors:
        """Return the compactors of `inner_layers`, for the task's budget."""
        return Compactors(self, model, graph, task)

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> norm of each compactor row [O]; layers without a compactor come last."""
        return row_norms(state["matrix"], graph)
