"""EagleEye: the best of random rates per layer, by accuracy with re-estimated batch norms.

Shapes: O filters, S filter sets.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from suite.contract import Budget, OptOut, Planner, Pruner, PruningPlan, Recipe, State, Task
from suite.graph import Graph
from suite.select import meet, same_layers, set_scores, without_sets

EVAL_BATCH = 250


@dataclass(frozen=True, kw_only=True)
class EagleEye(Pruner):
    """L1 pruning at the best random rates, judged with re-estimated batch norms.

    candidates   random rate vectors that are compared at the budget
    batches      training batches that re-estimate a candidate's batch-norm statistics
    images       training images that judge a candidate, as evaluated
    max_rate     largest rate of a layer relative to the others, before a vector is scaled to the budget
    """

    granularity = "filter"
    source = (
        "Li et al., EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning, ECCV 2020, sections 3.2 and 3.3; "
        "the authors' search.py: uniform rates, filters by L1 norm, about 50 batches for the statistics; their "
        "compress_config/res50_imagenet.yaml: stem, inner layers, and the last layers and shortcut of a stage together"
    )
    deviations = (
        "a vector is scaled until it meets the budget instead of drawn until one does; 50 vectors are compared, where the "
        "authors' search.py draws without end and their README shows index 985; 2,000 plain images of the training part "
        "judge, where the authors take 10,000 augmented ones; statistics are the plain mean over the batches instead of a "
        "running one; filters tied by residual sums go together (scope coupled), by the mean of their normalised norms "
        "instead of the first layer's"
    )
    needs_budget = True
    lowest: ClassVar[Mapping[str, float]] = {"candidates": 1, "batches": 1, "images": 1}
    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {"candidates": (10, 100)}
    recipes: ClassVar[Mapping[tuple[str, str], Recipe | OptOut]] = {
        ("digits", "*"): Recipe(
            settings={"candidates": 3, "batches": 2, "images": 64}, source="ours: a small data set"
        ),
    }

    candidates: int = 50
    batches: int = 50
    images: int = 2000
    max_rate: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.max_rate <= 1:
            raise ValueError(f"eagle_eye's max_rate must be above 0 and at most 1, got {self.max_rate}")

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Return the planner of the candidate that is most accurate at the task's budget.

        Raises ValueError if no candidate reaches the budget.
        """
        graph.batch_norms("eagle_eye")
        budget = task.budget or Budget(share=0.5)
        draw = torch.Generator().manual_seed(task.seed)
        best: tuple[float, Planner] | None = None
        for _ in range(self.candidates):
            planner = self._candidate(model, graph, draw)
            try:
                plan = meet(planner, graph, budget).plan
            except ValueError:  # these rates cannot be scaled to the budget
                continue
            accuracy = self.accuracy(model, graph, plan, task)
            if best is None or accuracy > best[0]:
                best = accuracy, planner
        if best is None:
            raise ValueError(
                f"none of eagle_eye's {self.candidates} random rate vectors reaches a budget of {budget.share:.2%}; "
                "give it more candidates or a smaller budget"
            )
        return best[1]

    def _candidate(self, model: nn.Module, graph: Graph, draw: torch.Generator) -> Planner:
        """Return a planner that removes filters by L1 norm at random, scaled rates."""
        norms = {name: model.get_parameter(f"{name}.weight").detach().abs().sum((1, 2, 3)) for name in graph.convs}
        sets, norm_S = set_scores(graph, norms, normalise=True)
        place_S = torch.full_like(norm_S, torch.inf)
        for members in same_layers(sets):
            rate = self.max_rate * float(torch.rand((), generator=draw))
            order = members[norm_S[members].argsort(stable=True)][:-1]
            place_S[order] = (
                torch.arange(len(order), dtype=torch.float64) / len(members) / max(rate, 0.01 * self.max_rate)
            )
        place_S /= 1.001 * float(place_S[place_S.isfinite()].max())  # below 1, so that a knob of 1 removes all of them
        return lambda knob: without_sets(graph, sets, place_S >= knob)

    @torch.no_grad()
    def accuracy(self, model: nn.Module, graph: Graph, plan: PruningPlan, task: Task, *, adapt: bool = True) -> float:
        """Return the masked network's accuracy on training images.

        Batch-norm statistics are re-estimated first if `adapt`.
        """
        candidate = copy.deepcopy(model)
        _mask(candidate, graph, plan)
        if adapt:
            re_estimate(candidate, self._batches(task))
        candidate.eval()
        images, labels = task.samples(self.images)
        correct = [
            (candidate(x).argmax(1) == y).sum()
            for x, y in zip(images.split(EVAL_BATCH), labels.split(EVAL_BATCH), strict=True)
        ]
        return float(torch.stack(correct).sum()) / len(labels)

    def _batches(self, task: Task) -> Iterator[Tensor]:
        """Yield images of training batches, from as many epochs as it takes.

        Raises ValueError if an epoch has no batch.
        """
        left, epoch = self.batches, 0
        while left:
            before = left
            for images, _ in task.train_epoch(epoch):
                yield images
                left -= 1
                if not left:
                    return
            if left == before:
                raise ValueError("eagle_eye re-estimates batch norms on training batches, and an epoch has none")
            epoch += 1

    @torch.no_grad()
    def reconstruct(self, model: nn.Module, graph: Graph, plan: PruningPlan, task: Task) -> None:
        """Give the pruned network the re-estimated statistics that it was chosen with."""
        _mask(model, graph, plan)
        re_estimate(model, self._batches(task))
        model.eval()


def _mask(model: nn.Module, graph: Graph, plan: PruningPlan) -> None:
    """Set the removed filters, and scales and shifts behind them, to zero."""
    for name, layer in graph.settle(plan).items():
        kept_O = layer.kept_O
        for part in (name, graph.convs[name].bn):
            for parameter in model.get_submodule(part).parameters(recurse=False) if part else ():
                parameter[~kept_O.to(parameter.device)] = 0


def re_estimate(model: nn.Module, batches: Iterator[Tensor]) -> None:
    """Replace the batch norms' running statistics by their means over the batches."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    for images in batches:
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
