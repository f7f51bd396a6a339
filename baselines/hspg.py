"""OTOv2: half-space projected steps set zero-invariant groups of parameters to zero.

Shapes: O filters, S filter sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from suite.contract import Criterion, Learner, Ranking, State, Step, Task
from suite.graph import Graph
from suite.select import filter_planner, meet

AMPLIFY, MOST = 1.1, 10.0
"""A group that grows gets a weight AMPLIFY times what stops it, MOST times `lam` at most."""


class ZeroInvariantGroups:
    """Parameters of each filter set as one vector.

    These are filters, biases, and scales and shifts of batch norms, and of depthwise convolutions behind.

    If all of a group are zero, the set outputs zero whatever it reads.
    """

    def __init__(self, model: nn.Module, graph: Graph) -> None:
        self.parts: list[tuple[nn.Parameter, Tensor]] = []
        """Parameters, and the set of each of their rows [O]."""
        self.size_S = torch.zeros(graph.set_count)
        layers = [
            (layer, graph.filter_sets[name]) for name, conv in graph.convs.items() for layer in (name, conv.bn) if layer
        ]
        layers += [(layer, ids) for layer, ids in graph.channel_sets.items() if bool((ids >= 0).all())]
        for layer, set_O in layers:
            for parameter in model.get_submodule(layer).parameters(recurse=False):
                ids = set_O.to(parameter.device)
                self.parts.append((parameter, ids))
                self.size_S += torch.bincount(set_O, minlength=graph.set_count) * parameter[0].numel()
        device = self.parts[0][0].device
        self.size_S = self.size_S.to(device)

    def dot(self, left: list[Tensor], right: list[Tensor]) -> Tensor:
        """Return each group's inner product of two lists shaped like the parameters [S]."""
        total = torch.zeros_like(self.size_S)
        for (_, ids), a, b in zip(self.parts, left, right, strict=True):
            total.index_add_(0, ids, (a * b).reshape(len(ids), -1).sum(1).to(total.dtype))
        return total

    def values(self) -> list[Tensor]:
        """Return the parameters' values, not copied."""
        return [parameter.detach() for parameter, _ in self.parts]


def rows(value_S: Tensor, ids: Tensor, like: Tensor) -> Tensor:
    """Return the value of each row's set, shaped to multiply `like`."""
    return value_S[ids].view(-1, *[1] * (like.dim() - 1)).to(like.dtype)


class HalfSpace(Learner):
    """Picks redundant groups once, then pushes them towards zero and projects them there."""

    def __init__(self, settings: HSPG, model: nn.Module, graph: Graph, task: Task) -> None:
        assert task.budget is not None
        self.settings, self.graph, self.budget = settings, graph, task.budget
        self.groups = ZeroInvariantGroups(model, graph)
        self.redundant_S = torch.zeros_like(self.groups.size_S, dtype=torch.bool)
        self.zero_S = torch.zeros_like(self.redundant_S)
        self.before: list[Tensor] = []

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Keep the parameters as they are before the optimizer moves them."""
        self.before = [value.clone() for value in self.groups.values()]

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Pick once; then penalise redundant groups, and project those that left their half-space."""
        share = float(step.index) / step.total
        moved = [old - new for old, new in zip(self.before, self.groups.values(), strict=True)]
        if share >= self.settings.pick_share and not bool(self.redundant_S.any()):
            self._pick(moved)
        if not bool(self.redundant_S.any()):
            return
        lr = float(step.lr)
        norm_S = self.groups.dot(self.before, self.before).sqrt()
        lam_S = self.weights(norm_S, moved, lr) * self.redundant_S
        shrink_S = torch.where(norm_S > 0, lr * lam_S / norm_S, 0)
        for (parameter, ids), old in zip(self.groups.parts, self.before, strict=True):
            parameter.sub_(old * rows(shrink_S, ids, old))
        if share >= self.settings.project_share:
            inside_S = self.groups.dot(self.groups.values(), self.before) >= self.settings.epsilon * norm_S.square()
            self.zero_S |= self.redundant_S & ~inside_S
        for parameter, ids in self.groups.parts:
            parameter.mul_(rows((~self.zero_S).float(), ids, parameter))

    def weights(self, norm_S: Tensor, moved: list[Tensor], lr: float) -> Tensor:
        """Return the penalty's weight of each group [S]: `lam`, more for growing groups."""
        lam = self.settings.lam
        inner_S = self.groups.dot(self.before, moved) / lr
        lower_S = (-inner_S / norm_S).nan_to_num(0, 0, 0)
        upper_S = (-self.groups.dot(moved, moved) / lr**2 * norm_S / inner_S).nan_to_num(torch.inf)
        raised_S = (AMPLIFY * lower_S).clamp(lam, MOST * lam)
        raised_S = torch.where(raised_S >= upper_S, (lower_S + upper_S) / 2, raised_S)
        return torch.where(inner_S < 0, raised_S, lam)

    def _pick(self, moved: list[Tensor]) -> None:
        """Take the sets of the lowest saliency for redundant, as many as meet the budget."""
        saliency_S = saliency(self.groups, self.before, moved).cpu()
        scores = {name: saliency_S[ids] for name, ids in self.graph.filter_sets.items()}
        plan = meet(filter_planner(self.graph, scores, ranking=self.settings.ranking), self.graph, self.budget).plan
        for name, layer in plan.items():
            removed = self.graph.filter_sets[name][~layer.kept_O]
            self.redundant_S[removed.to(self.redundant_S.device)] = True

    def metrics(self) -> dict[str, float]:
        """Return the shares of sets that are redundant and that are zero."""
        return {
            "redundant_share": float(self.redundant_S.float().mean()),
            "zero_share": float(self.zero_S.float().mean()),
        }

    def state_dict(self) -> State:
        """Return which sets are redundant and which are zero [S]."""
        return {"redundant_S": self.redundant_S.clone(), "zero_S": self.zero_S.clone()}

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        self.redundant_S.copy_(state["redundant_S"])
        self.zero_S.copy_(state["zero_S"])


def saliency(groups: ZeroInvariantGroups, values: list[Tensor], moved: list[Tensor]) -> Tensor:
    """Return half the cosine minus half the inverse mean magnitude of each set [S].

    The cosine is that of a set's values with its descent direction.

    Both terms are divided by their norm over all sets. A set whose values descend towards zero, or are small, scores low.
    """
    norm_S, step_S = groups.dot(values, values).sqrt(), groups.dot(moved, moved).sqrt()
    cosine_S = (groups.dot(values, moved) / (norm_S * step_S)).nan_to_num(0)
    inverse_S = 1 / (norm_S / groups.size_S + 1e-6)
    return -0.5 * nn.functional.normalize(cosine_S, dim=0) - 0.5 * nn.functional.normalize(inverse_S, dim=0)


@dataclass(frozen=True, kw_only=True)
class HSPG(Criterion):
    """Norm of each zero-invariant group after training with half-space projected steps; zero groups go first.

    lam            weight of the penalty on redundant groups
    epsilon        a step must keep this share of a group's squared norm along its old direction
    pick_share     share of the stage after which redundant groups are picked
    project_share  share of the stage after which groups are projected
    """

    scopes = ("coupled",)
    granularity = "filter"
    source = (
        "Chen et al., OTOv2: Automatic, Generic, User-Friendly, ICLR 2023, section 3.2, algorithm 2 (DHSPG); the authors' "
        "optimizer/dhspg.py: saliency of cosine and magnitude, penalty after the momentum step, weight raised up to tenfold"
    )
    deviations = (
        "redundant groups are picked at the MACs budget instead of at a share of all groups; what is still above zero at the "
        "end is removed; pick and projection start at shares of the stage; weights are raised from the pick on, and the penalty "
        "acts on all redundant groups to the end, where the authors raise them from half of the steps before projection and stop "
        "at the target sparsity"
    )
    learns = True
    needs_budget = True
    start = "init"
    lowest: ClassVar[Mapping[str, float]] = {"lam": 0, "epsilon": 0, "pick_share": 0}
    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {"lam": (1e-3, 1e-2), "project_share": (0.2, 0.5)}

    lam: float = 1e-3
    epsilon: float = 0.0
    pick_share: float = 0.1
    project_share: float = 0.2
    ranking: Ranking = "raw"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.epsilon < 1:
            raise ValueError(f"hspg's epsilon must be below 1, got {self.epsilon}")
        if not 0 <= self.pick_share <= self.project_share < 1:
            raise ValueError(
                f"hspg needs 0 <= pick_share <= project_share < 1, got {self.pick_share} and {self.project_share}"
            )

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> HalfSpace:
        """Return the half-space projected steps for the task's budget."""
        return HalfSpace(self, model, graph, task)

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> norm of each filter's group [O]; redundant groups come first."""
        groups = ZeroInvariantGroups(model, graph)
        values = groups.values()
        norm_S = groups.dot(values, values).sqrt()
        redundant_S = state["redundant_S"].to(norm_S.device)
        norm_S = torch.where(redundant_S, norm_S - norm_S.max() - 1, norm_S)
        return {name: norm_S[ids.to(norm_S.device)] for name, ids in graph.filter_sets.items()}
