"""First-order Taylor importance, pruned once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from suite.contract import Criterion, OptOut, Ranking, Recipe, Scope, State, Task
from suite.graph import Graph
from suite.select import sets_of_scope


@dataclass(frozen=True, kw_only=True)
class TaylorOnce(Criterion):
    """Squared first-order loss change if a filter's gated output becomes 0."""

    granularity = "filter"
    source = (
        "Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, section 3, gates after batch norm; the "
        "authors leave skip connections whole (scope inner), and prune them in a variant (scope coupled)"
    )
    formerly = "taylor"
    deviations = (
        "pruned once from training images as evaluated, batch-norm statistics fixed, not a few filters every few batches "
        "of a fine-tuning (`taylor`); without a batch norm the gate stands on weight and bias of the convolution"
    )
    search: ClassVar = {"batches": (10, 40), "ranking": ("raw", "global", "layer")}
    lowest: ClassVar = {"batches": 1, "batch_size": 1}
    recipes: ClassVar[Mapping[tuple[str, str], Recipe | OptOut]] = {
        ("imagenet", "*"): Recipe(settings={"batches": 100}, source="30 batches of 100 images or more, as the authors"),
    }

    ranking: Ranking = "raw"
    scope: Scope = "inner"
    batches: int = 10
    """Batches whose squares are averaged."""
    batch_size: int = 32
    """Images of a batch, whose loss is averaged before it is squared."""

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> mean over batches of (sum of gradient * parameter)^2 [O].

        Tied filters are one gate, whose products are summed first.


        Costs a forward and a backward pass of `batches * batch_size` images.
        """
        images, labels = task.samples(self.batches * self.batch_size)
        sets = {name: ids.to(images.device) for name, ids in sets_of_scope(graph, self.scope).items()}
        gates = [(name, p) for name in sets for p in model.get_submodule(graph.convs[name].bn or name).parameters()]
        score_S = torch.zeros(
            1 + max(int(ids.max()) for ids in sets.values()), dtype=torch.float64, device=images.device
        )
        for x, y in zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True):
            gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), [p for _, p in gates])
            change_S = torch.zeros_like(score_S)
            for (name, p), gradient in zip(gates, gradients, strict=True):
                change_S.index_add_(0, sets[name], (gradient * p.detach()).reshape(len(p), -1).sum(1).double())
            score_S += change_S.square() / self.batches
        return {
            name: score_S[sets[name]] if name in sets else torch.ones(conv.filters)
            for name, conv in graph.convs.items()
        }
