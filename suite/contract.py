"""What a pruning method and the suite say to each other.

Shapes: O filters, I input channels, G filter groups of one convolution.

A method says which filter still reads which channel (`PruningPlan`). The suite trains, packs, fine-tunes, measures and
stores, the same for all. A plan knows nothing of training, and a method never sees the test set.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from suite.graph import Graph

Granularity = Literal["filter", "channel", "intra_channel"]
Ranking = Literal["global", "raw", "layer"]
"""How scores of different layers compare: "global" divides them by their layer's mean and "raw" takes them as they are, for
one order over the network; "layer" removes the same share of every layer."""
Batch = tuple[Tensor, Tensor]
State = dict[str, Any]
"""What a learner leaves behind: tensors, numbers and strings in dicts and lists, so that it loads with `weights_only=True`."""


# ---- plans -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ConvPlan:
    """What the filters of one convolution still read.

    filter_group_O  int64 [O]     the group of each filter, 0..G-1
    kept_GI         bool  [G, I]  the input channels that the filters of each group still read
    kept_O          bool  [O]     False: the filter is removed, whatever its group keeps

    A filter that reads nothing counts as removed. The tensors are taken to the CPU.

    Raises ValueError when the shapes or types do not fit together.
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

    @staticmethod
    def of(mask_OI: Tensor) -> ConvPlan:
        """The plan in which filter o reads channel i where `mask_OI` [O, I] is True."""
        rows, group = mask_OI.bool().unique(dim=0, return_inverse=True)
        return ConvPlan(group, rows, mask_OI.bool().any(1))

    @staticmethod
    def full(filters: int, channels: int) -> ConvPlan:
        """The plan that removes nothing."""
        return ConvPlan(
            torch.zeros(filters, dtype=torch.int64),
            torch.ones(1, channels, dtype=torch.bool),
            torch.ones(filters, dtype=torch.bool),
        )

    @property
    def mask_OI(self) -> Tensor:
        """bool [O, I]: filter o reads channel i."""
        return self.kept_GI[self.filter_group_O] & self.kept_O[:, None]

    @property
    def groups(self) -> list[tuple[Tensor, Tensor]]:
        """(filters, channels) of each group of the canonical form: indices, ascending."""
        plan = self.canonical()
        return [
            (((plan.filter_group_O == g) & plan.kept_O).nonzero()[:, 0], kept.nonzero()[:, 0])
            for g, kept in enumerate(plan.kept_GI)
            if bool(kept.any())
        ]

    def __and__(self, other: ConvPlan) -> ConvPlan:
        """The plan that removes what either removes; a group for each pair of groups."""
        kept_GI = (self.kept_GI[:, None] & other.kept_GI[None]).flatten(0, 1)
        group = self.filter_group_O * len(other.kept_GI) + other.filter_group_O
        return ConvPlan(group, kept_GI, self.kept_O & other.kept_O)

    def canonical(self) -> ConvPlan:
        """The one form of this plan: groups that keep the same channels are one, in the order of their first filter.

        Removed filters stand in group 0, and a filter that reads nothing is removed.
        """
        kept_O = self.kept_O & self.kept_GI.any(1)[self.filter_group_O]
        number: dict[bytes, int] = {}
        rows: list[Tensor] = []
        renamed = torch.zeros(len(self.kept_GI), dtype=torch.int64)
        used = self.filter_group_O[kept_O].tolist()
        for g in dict.fromkeys(used):
            row = self.kept_GI[g]
            index = number.setdefault(row.numpy().tobytes(), len(rows))
            if index == len(rows):
                rows.append(row)
            renamed[g] = index
        kept_GI = torch.stack(rows) if rows else torch.zeros_like(self.kept_GI[:1])
        return ConvPlan(torch.where(kept_O, renamed[self.filter_group_O], 0), kept_GI, kept_O)


class PruningPlan(Mapping[str, ConvPlan]):
    """Layer name -> `ConvPlan`; an absent layer is untouched. Compares and hashes in canonical form."""

    def __init__(self, layers: Mapping[str, ConvPlan]) -> None:
        self._layers = dict(sorted(layers.items()))

    def __getitem__(self, name: str) -> ConvPlan:
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __and__(self, other: PruningPlan) -> PruningPlan:
        """The plan that removes what either removes."""
        both = {name: self[name] & other[name] for name in self if name in other}
        return PruningPlan({**self, **other, **both})

    def canonical(self) -> PruningPlan:
        """Every layer in canonical form; layers from which nothing is removed are absent."""
        layers = {name: plan.canonical() for name, plan in self.items()}
        return PruningPlan({name: plan for name, plan in layers.items() if not bool(plan.mask_OI.all())})

    @property
    def sha256(self) -> str:
        """Digest of the canonical form."""
        digest = hashlib.sha256()
        for name, tensor in self.canonical().to_tensors().items():
            digest.update(f"{name}{list(tensor.shape)}".encode() + tensor.numpy().tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PruningPlan) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return int(self.sha256[:15], 16)

    def to_tensors(self) -> dict[str, Tensor]:
        """Flat tensors for a file; `from_tensors` reads them back."""
        return {
            f"{name}/{field}": getattr(plan, field)
            for name, plan in self.items()
            for field in ("filter_group_O", "kept_GI", "kept_O")
        }

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> PruningPlan:
        """The plan that `to_tensors` wrote."""
        layers: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, field = key.rsplit("/", 1)
            layers.setdefault(name, {})[field] = tensor
        return PruningPlan({name: ConvPlan(**fields) for name, fields in layers.items()})


# ---- what a run asks for ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The share of MACs to remove, in [0, 1), after dead channels are gone.

    scope "network" counts all convolutions and linear layers; "prunable" counts the convolutions that are neither the
    stem nor a shortcut, as the DSP authors do. `round_to` rounds the widths that are left up to a multiple, where hardware
    computes in such steps: the kept channels of every filter group, and the kept filters (`suite.select.rounded`).
    """

    share: float
    scope: Literal["network", "prunable"] = "network"
    round_to: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"budget {self.share} is outside [0, 1): it is the share of MACs to remove, such as 0.6")
        if self.scope not in ("network", "prunable"):
            raise ValueError(f"budget scope {self.scope!r} is unknown; choose network or prunable")
        if self.round_to < 1:
            raise ValueError(
                f"round_to = {self.round_to}: widths are rounded up to a multiple of 1 (off), 8, 16 or the like"
            )


@dataclass(frozen=True)
class Task:
    """What a method may look at: training images and a seed, never the test set.

    train_epoch  epoch -> the seeded, augmented training batches of that epoch
    samples      n -> n training images (all, where there are fewer) as evaluated, not augmented, with labels; always the same
    budget       what is to be removed; None while learning what serves all budgets
    reference    the plan of another run, for methods that follow one (`Pruner.needs_reference`)
    """

    train_epoch: Callable[[int], Iterator[Batch]]
    samples: Callable[[int], Batch]
    seed: int
    budget: Budget | None = None
    reference: PruningPlan | None = None


@dataclass(frozen=True)
class Step:
    """One step of the suite's training loop, as a learner's hooks see it. `index` runs from 0 over the whole stage.

    In a captured step `lr` and `index` are tensors on the device. Where several GPUs share a batch, `images` are this one's, and
    `average` replaces tensors by their means over all of them: for gradients that a learner computes itself.
    """

    model: nn.Module
    optimizer: torch.optim.SGD
    images: Tensor
    labels: Tensor
    lr: float | Tensor
    index: int | Tensor
    total: int
    average: Callable[[Sequence[Tensor]], None] = lambda tensors: None


class Learner:
    """Hooks of a method into the suite's one training loop; override what is needed."""

    capturable: ClassVar[bool] = False
    """True when nothing in the hooks of a step waits for the device, so that it may be captured in a CUDA graph."""
    generators: tuple[torch.Generator, ...] = ()
    """The generators on the device that the hooks draw from, for a captured step."""

    def penalty(self) -> Tensor | None:
        """A scalar to add to the loss, or None."""
        return None

    def before_step(self, step: Step) -> None:
        """Called when the gradients are there, before the optimizer uses them."""

    def after_step(self, step: Step) -> None:
        """Called after the optimizer's step."""

    def after_epoch(self, model: nn.Module) -> None:
        """Called when an epoch's steps are done, before `metrics` and before any accuracy is measured."""

    def metrics(self) -> dict[str, float]:
        """Numbers for the training log, once an epoch."""
        return {}

    def state_dict(self) -> State:
        """Everything that a bit-exact continuation and the later planning need."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method's settings for a data set and model, and where they come from ("ours" when nobody published them)."""

    settings: Mapping[str, Any]
    source: str


@dataclass(frozen=True, kw_only=True)
class OptOut:
    """Why a method does not run on a data set and model."""

    reason: str


Planner = Callable[[float], PruningPlan]
"""knob in [0, 1] -> plan; monotone: a larger knob removes all that a smaller one does, and 0 removes nothing."""


@dataclass(frozen=True, kw_only=True)
class Pruner:
    """A pruning method: its fields are its hyperparameters and part of a run's identity."""

    granularity: ClassVar[Granularity]
    source: ClassVar[str]
    """Paper, section and equation."""
    deviations: ClassVar[str] = ""
    """Where this implementation differs from the source; "" if nowhere."""
    recipes: ClassVar[Mapping[tuple[str, str], Recipe | OptOut]] = {}
    """(data, model) -> settings; "*" stands for any. The first that fits, most specific first, is taken."""
    needs_budget: ClassVar[bool] = False
    """False when what is learned serves all budgets."""
    start: ClassVar[Literal["base", "init"]] = "base"
    """The weights that learning starts from: the trained base or its initialisation."""
    learns: ClassVar[bool] = False
    """True when `learner` returns one: the run then has a `learned` stage."""
    needs_reference: ClassVar[bool] = False
    """True when it follows another run's plan (`Task.reference`). It then has a field `like`, which names that run's method."""
    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Hyperparameter -> the values among which tuning chooses; {} when there is nothing to tune."""
    expected_failures: ClassVar[Mapping[str, str]] = {}
    """Name of a common check that this method cannot pass -> why. The check must then fail."""

    @classmethod
    def recipe(cls, data: str, model: str) -> Recipe | OptOut:
        """The most specific recipe for this data set and model; the defaults when there is none."""
        for key in ((data, model), ("*", model), (data, "*"), ("*", "*")):
            if key in cls.recipes:
                return cls.recipes[key]
        return Recipe(settings={}, source="the method's defaults")

    @classmethod
    def for_task(cls, data: str, model: str, **changes: Any) -> Pruner:
        """The method with its recipe for this data set and model.

        Raises ValueError with the reason when the method opts out, or with its settings when it has none of this name.
        """
        found = cls.recipe(data, model)
        if isinstance(found, OptOut):
            raise ValueError(f"{cls.__name__} does not run on {model} with {data}: {found.reason}")
        names = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted({*found.settings, *changes} - {*names}):
            raise ValueError(f"{cls.__name__} has no setting {unknown[0]!r}; it has: {', '.join(names) or 'none'}")
        return cls(**{**found.settings, **changes})

    @property
    def groups(self) -> int:
        """The most filter groups a layer may have; 1 but for intra-channel methods."""
        return 1

    @property
    def step_cost(self) -> float:
        """What a learning step costs, in plain training steps; for estimates only."""
        return 1.0

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> Learner | None:
        """The method's hooks into training, or None when it does not learn."""
        return None

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """A function from the knob to a plan. What does not depend on the knob is done here, once; `model` is in eval mode."""
        raise NotImplementedError

    def reconstruct(self, model: nn.Module, graph: Graph, plan: PruningPlan, task: Task) -> None:
        """Change the weights in place before they are packed (least-squares reconstruction and the like); eval mode."""


@dataclass(frozen=True, kw_only=True)
class Criterion(Pruner):
    """The small common case: one score per filter, the smallest go first. Write `score` in at most 30 lines."""

    ranking: Ranking = "global"

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Layer name -> float [O], larger is more important, for every layer of `graph`; `model` is in eval mode."""
        raise NotImplementedError

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Remove filters in the order of their scores, coupled ones together (`suite.select`)."""
        from suite.select import filter_planner

        return filter_planner(graph, self.score(model, graph, state, task), ranking=self.ranking)
