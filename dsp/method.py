"""DSP as a method of the suite: hyperparameters, learner and planner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn

from dsp.dose import lam_for
from dsp.fixed import cluster_filters, shuffle_filters
from dsp.groups import PenaltyScale, SecondOrder
from dsp.layers import learned_groups, prunable_convs
from dsp.learner import GroupLearner, Settings
from dsp.per_cost import per_cost_planner
from dsp.recipes import RECIPES
from dsp.selection import coupled_thresholds, energy_planner
from suite.contract import Granularity, OptOut, Per, Planner, Pruner, Recipe, State, Task
from suite.graph import Graph
from suite.select import sets_of_scope

Grouping = Literal["learned", "random", "kmeans"]
FilterPruned = Literal["closing", "none", "all", "coupled"]


@dataclass(frozen=True, kw_only=True)
class DSP(Pruner):
    """Dynamic structure pruning: learned filter groups, each of which drops its own input channels.

    groups         G, the filter groups of a layer; 1 is channel pruning by group lasso
    lam            lambda, the weight of the group penalty
    dose           if given, lambda is the one that gives this dose (`dsp.dose`) on the weights before learning, and `lam`
                   is reset to its default, so that a recipe's lambda does not enter the identity
    temperature    of the relaxed groups
    logit_lr       Adam's learning rate of the group logits. Adam moves a logit by at most about this rate in a step, so a
                   learning of fewer steps than the authors' 46,800 needs a larger rate
    penalty_scale  "activations" weighs a layer's penalty by the size of its input too, "size" (as published) does not
    second_order   how the logits see that the groups move the weights: "exact" derivative, "released" reproduces the
                   authors' code, "none" needs no second forward and backward pass
    grouping       "learned"; "random" and "kmeans" (of the base filters) fix the groups, all else equal
    filter_pruned  the layers that lose whole filters too: the last convolution of every residual branch ("closing"),
                   no or all prunable ones, or these names; "coupled": the layers that write to a residual stream lose the
                   same filters, so that the stream gets narrower (an ablation, not the paper's rule)
    per            "" ranks by energy, as published; "macs" and "ms" by energy per saved MAC or millisecond (`dsp.per_cost`)
    step           channels of every group, or filters, that go at once, for `per`
    """

    granularity: ClassVar[Granularity] = "intra_channel"
    source: ClassVar[str] = (
        "Park et al., Dynamic Structure Pruning for Compressing CNNs, AAAI 2023, section 3; arXiv 2303.09736"
    )
    deviations: ClassVar[str] = (
        "unless second_order is 'released', it is the exact derivative and denominators have no epsilon; "
        "a norm of 0 has subgradient 0; a beta below every share removes nothing"
    )
    recipes: ClassVar[Mapping[tuple[str, str], Recipe | OptOut]] = RECIPES
    learns: ClassVar[bool] = True
    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "lam": (5e-4, 2e-3, 8e-3),
        "temperature": (0.25, 0.5, 1.0),
        "penalty_scale": ("activations", "size"),
    }

    groups: int = 2
    lam: float = 2e-3
    dose: float | None = None
    temperature: float = 0.5
    logit_lr: float = 1e-3
    penalty_scale: PenaltyScale = "activations"
    second_order: SecondOrder = "exact"
    grouping: Grouping = "learned"
    filter_pruned: FilterPruned | tuple[str, ...] = "closing"
    per: Per = ""
    step: int = 1

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ValueError(f"groups = {self.groups} must be at least 1")
        if not self.lam >= 0:
            raise ValueError(f"lam = {self.lam} must not be negative")
        if self.dose is not None and not 0 <= self.dose < inf:
            raise ValueError(f"dose = {self.dose} must be a number of at least 0")
        if self.dose is not None:
            object.__setattr__(self, "lam", type(self).lam)
        for field in ("temperature", "logit_lr"):
            if not 0 < getattr(self, field) < inf:
                raise ValueError(f"{field} = {getattr(self, field)} must be positive")
        for field, choices in (("penalty_scale", PenaltyScale), ("second_order", SecondOrder), ("grouping", Grouping)):
            _one_of(field, getattr(self, field), get_args(choices))
        _one_of("per", self.per, get_args(Per))
        if self.step < 1:
            raise ValueError(f"step = {self.step} must be at least 1")
        if isinstance(self.filter_pruned, str):
            _one_of("filter_pruned", self.filter_pruned, (*get_args(FilterPruned), "a tuple of layer names"))
        if self.per and self.filter_pruned == "coupled":
            raise ValueError(
                f"per = {self.per!r} ranks the channels of layers: take another filter_pruned than 'coupled'"
            )

    @property
    def step_cost(self) -> float:
        """Plain training steps that one of group learning costs."""
        unrolled = self.grouping == "learned" and self.groups > 1 and self.second_order != "none"
        return 2.1 if unrolled else 1.05

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> GroupLearner:
        """Return the hooks of group learning.

        Raises ValueError if a layer has fewer filters than groups.
        """
        lam = self.lam
        if self.dose is not None:
            lam = lam_for(self.dose, model, graph, task.rates(), self.groups, self.penalty_scale)
        settings = Settings(
            groups=self.groups,
            lam=lam,
            temperature=self.temperature,
            penalty_scale=self.penalty_scale,
            second_order=self.second_order,
            logit_lr=self.logit_lr,
        )
        fixed = None
        if self.grouping != "learned":
            fix = shuffle_filters if self.grouping == "random" else cluster_filters
            fixed = fix(model, prunable_convs(graph, self.groups), self.groups, task.seed)
        return GroupLearner(model, graph, settings, seed=task.seed, fixed_groups=fixed)

    def facts(self, state: State) -> dict[str, float]:
        """Return dose, group entropy (ln G: nothing learned) and share of sparse kernels."""
        if "sparse_share" not in state:
            return {}
        dose = state["dose_per_rate"] * state["rate_sum"]
        return {"dose": dose, **{name: state[name] for name in ("group_entropy_nats", "sparse_share")}}

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Return beta -> plan, from the weights and the learned groups.

        Raises ValueError if the state does not fit the network.
        """
        filter_group = learned_groups(state, graph, self.groups)
        if self.per:
            weights = {name: model.get_parameter(f"{name}.weight") for name in filter_group}
            filters = self._filter_pruned_layers(graph)
            return per_cost_planner(graph, weights, filter_group, self.groups, filters, per=self.per, step=self.step)
        stream = self._stream(graph) if self.filter_pruned == "coupled" else {}
        weights = {name: model.get_parameter(f"{name}.weight") for name in {**filter_group, **stream}}
        coupled = coupled_thresholds(weights, stream) if stream else {}
        return energy_planner(weights, filter_group, self.groups, self._filter_pruned_layers(graph), coupled)

    def _stream(self, graph: Graph) -> dict[str, Tensor]:
        """Return layer -> filter sets of the layers that write to residual streams."""
        everything = sets_of_scope(graph, "coupled")
        if not any(conv.role == "closing" for conv in graph.convs.values()):
            raise ValueError(
                "filter_pruned = 'coupled' narrows residual streams, and this network has none; take 'none' or 'all'"
            )
        inner = sets_of_scope(graph, "inner")
        return {name: ids for name, ids in everything.items() if name not in inner}

    def _filter_pruned_layers(self, graph: Graph) -> frozenset[str]:
        prunable = {name: conv for name, conv in graph.convs.items() if conv.prunable}
        if isinstance(self.filter_pruned, str):
            roles = {"closing": ("closing",), "all": ("inner", "closing")}.get(self.filter_pruned, ())
            return frozenset(name for name, conv in prunable.items() if conv.role in roles)
        if unknown := [name for name in self.filter_pruned if name not in prunable]:
            raise ValueError(f"filter_pruned names {unknown[0]!r}; the prunable layers are {', '.join(prunable)}")
        return frozenset(self.filter_pruned)


def _one_of(field: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field} = {value!r} is unknown; choose from: {', '.join(choices)}")
