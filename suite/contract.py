"""Interface between pruning methods and the suite.

Shapes: O filters, I input channels, G filter groups of one convolution.

A method returns the channels that each filter keeps (`PruningPlan`). The suite trains, packs, fine-tunes, measures and stores in
the same way for every method. A plan contains no training state, and a method has no access to the test set.
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.graph import Graph
from suite.plan import Budget, ConvPlan, Per, Planner, PruningPlan, Ranking, Scope
from suite.registry import name_of
from suite.select import filter_planner

__all__ = [
    "Batch",
    "Budget",
    "ConvPlan",
    "Criterion",
    "Granularity",
    "Learner",
    "Network",
    "OptOut",
    "Per",
    "Planner",
    "Pruner",
    "PruningPlan",
    "Ranking",
    "Recipe",
    "Scope",
    "State",
    "Step",
    "Task",
]

Granularity = Literal["filter", "channel", "intra_channel"]
Batch = tuple[Tensor, Tensor]
State = dict[str, Any]
"""Result of a learner: tensors, numbers and strings in dicts and lists, which load with `weights_only=True`."""


@dataclass(frozen=True)
class Task:
    """Inputs of a method: training images and a seed, without the test set.

    train_epoch  epoch -> the seeded, augmented training batches of that epoch
    samples      n -> the same n training images in every call (all if there are fewer), not augmented, with labels
    budget       the share to remove; None in a learning stage that serves all budgets
    reference    the plan of another run, if `Pruner.needs_reference`
    rates        () -> the learning rate of each step of the stage; [] if nobody planned them
    """

    train_epoch: Callable[[int], Iterator[Batch]]
    samples: Callable[[int], Batch]
    seed: int
    budget: Budget | None = None
    reference: PruningPlan | None = None
    rates: Callable[[], list[float]] = list


Network = Callable[[Tensor], Tensor]
"""Images [B, C, H, W] -> logits [B, classes]."""


def cross_entropy(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of a batch."""
    return F.cross_entropy(network(images), labels)


@dataclass(frozen=True)
class Step:
    """Arguments of a learner's hooks: one step of the training loop.

    index    0 .. total - 1 over the whole stage
    images   this rank's part of the batch
    average  replaces tensors by their means over all ranks, for gradients that a learner computes itself
    loss     the loss of the schedule, in its precision
    parts    number of equal parts of the batch; each loss is of one part, times `loss_scale`

    In a captured step `lr` and `index` are tensors on the device.
    """

    model: nn.Module
    optimizer: torch.optim.SGD
    images: Tensor
    labels: Tensor
    lr: float | Tensor
    index: int | Tensor
    total: int
    average: Callable[[Sequence[Tensor]], None] = lambda tensors: None
    loss: Callable[[Network, Tensor, Tensor], Tensor] = cross_entropy
    parts: int = 1
    loss_scale: float = 1.0

    def unscaled(self, gradient: Tensor) -> Tensor:
        """Return a gradient of the scaled loss without `loss_scale`; an overflow is 0."""
        return gradient if self.loss_scale == 1 else (gradient / self.loss_scale).nan_to_num(0.0, 0.0, 0.0)

    def gradients(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients of the batch's loss by `weights`.

        The weights are leaves that replace parameters of the model.
        The model's own weights keep their gradients. With a `loss_scale`, an overflow counts as a gradient of 0.
        """
        leaves = list(weights.values())

        def network(images: Tensor) -> Tensor:
            return torch.func.functional_call(self.model, dict(weights), (images,))

        sums: list[Tensor] = []
        with torch.enable_grad():
            for images, labels in zip(self.images.chunk(self.parts), self.labels.chunk(self.parts), strict=True):
                loss = self.loss(network, images, labels) * (self.loss_scale / self.parts)
                gradients = torch.autograd.grad(loss, leaves)
                sums = [a + b for a, b in zip(sums, gradients, strict=True)] if sums else list(gradients)
        sums = [self.unscaled(gradient) for gradient in sums]
        self.average(sums)
        return dict(zip(weights, sums, strict=True))


class Learner:
    """Hooks of a method into the training loop; by default only `skip_step` does something."""

    capturable: ClassVar[bool] = False
    """True if no hook of a step synchronises with the device, so that a CUDA graph can capture the step."""
    generators: tuple[torch.Generator, ...] = ()
    """Generators on the device that the hooks draw from, registered with the CUDA graph."""

    def penalty(self) -> Tensor | None:
        """Return a scalar to add to the loss, or None."""
        return None

    def before_step(self, step: Step) -> None:
        """Run between the backward pass and the optimizer's step."""

    def after_step(self, step: Step) -> None:
        """Run after the optimizer's step."""

    def skip_step(self) -> None:
        """Run instead of both hooks when gradients overflow in fp16.

        By default it drops the gradients of tensors in attributes, and in lists and dicts there. Override it for anything else
        that a backward pass leaves.
        """
        members = [*vars(self).values()]
        for value in vars(self).values():
            if isinstance(value, Mapping):
                members += value.values()
            elif isinstance(value, list | tuple):
                members += value
        for tensor in members:
            if isinstance(tensor, Tensor) and tensor.is_leaf:
                tensor.grad = None

    def after_epoch(self, model: nn.Module) -> None:
        """Run after an epoch's steps, before `metrics` and before the accuracy is measured."""

    def metrics(self) -> dict[str, float]:
        """Return numbers for the training log, once an epoch."""
        return {}

    def finish(self, model: nn.Module) -> None:
        """Change the model in place after the last epoch, before its weights are saved.

        For example: fold additional layers back into the convolutions.
        """

    def state_dict(self) -> State:
        """Return the state for a bit-exact continuation and for the planner."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Restore a result of `state_dict`."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a method for a data set and model.

    source    "ours" if nobody published them
    finetune  fields of the fine-tuning schedule that a sweep chose, such as `lr`; grids put them over their own schedule
    """

    settings: Mapping[str, Any]
    source: str
    finetune: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OptOut:
    """Reason why a method does not run on a data set and model."""

    reason: str


WINNERS = Path(__file__).with_name("winners.toml")


@functools.cache
def _winners() -> dict[str, dict[tuple[str, str], Recipe]]:
    """Read `WINNERS`: method name -> recipes that tuning chose."""
    tables: dict[str, dict[str, dict[str, Any]]] = tomllib.loads(WINNERS.read_text())
    return {
        method: {
            (place.split("/")[0], place.split("/")[1]): Recipe(
                settings=trial.get("settings", {}),
                finetune=trial.get("finetune", {}),
                source=f"ours: best of {trial['trials']} trials in {trial['grid']}, validation part, "
                f"rows {' '.join(trial['rows'])}",
            )
            for place, trial in places.items()
        }
        for method, places in tables.items()
    }


@dataclass(frozen=True, kw_only=True)
class Pruner:
    """A pruning method; its fields are hyperparameters and part of a run's identity."""

    granularity: ClassVar[Granularity]
    source: ClassVar[str]
    """Paper, section and equation."""
    deviations: ClassVar[str] = ""
    """Differences between this implementation and the source; "" if there are none."""
    recipes: ClassVar[Mapping[tuple[str, str], Recipe | OptOut]] = {}
    """(data, model) -> settings; "*" stands for any. Winners of tuning are in winners.toml and come before these."""
    evidence: ClassVar[Literal["paper", "abstract", "latency"]] = "paper"
    """"abstract": written from the paper's abstract alone. Such a method is in no headline comparison.

    "latency": in latency grids only.
    """
    removes: ClassVar[bool] = True
    """False for the dense control, whose only budget is 0."""
    control: ClassVar[bool] = False
    """True for a baseline that every method must exceed, such as random filters."""
    lowest: ClassVar[Mapping[str, float]] = {}
    """Hyperparameter -> its smallest allowed value."""
    training: ClassVar[Mapping[str, Any]] = {}
    """Fields of the learning schedule that the authors fix, such as `lr`; grids put them over their own schedule."""
    penalty: ClassVar[tuple[str, float] | None] = None
    """A penalty's coefficient, such as "lam", and the sum of learning rates over the steps of the authors' CIFAR-10 training.

    The effect of a penalty grows with the product of both, so a grid with a shorter schedule may raise the coefficient
    (`suite.grids.cross`).
    """
    implied: ClassVar[Mapping[str, Any]] = {}
    """Hyperparameter -> the value that a run identity without it stands for, if that is not the default.

    For a field that came after rows existed, or whose default changed: earlier rows keep their keys and their meaning.
    """
    formerly: ClassVar[str] = ""
    """The name in run identities of a method whose file was renamed."""
    version: ClassVar[int] = 1
    """Raised if equal settings give other results than before; enters run identities from 2 on."""
    needs_budget: ClassVar[bool] = False
    """False if one learning stage serves all budgets."""
    start: ClassVar[Literal["base", "init"]] = "base"
    """Weights at the start of learning: the trained base, or its initialisation."""
    learns: ClassVar[bool] = False
    """True if `learner` returns a learner; the run then has a `learned` stage."""
    needs_reference: ClassVar[bool] = False
    """True for a method that takes its plan or its rates from another run (`Task.reference`)."""
    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Hyperparameter -> the values that tuning tries; {} for a method without tuning."""
    expected_failures: ClassVar[Mapping[str, str]] = {}
    """Name of a common check that this method cannot pass -> reason. The check must then fail."""

    def __post_init__(self) -> None:
        for name, low in self.lowest.items():
            if not getattr(self, name) >= low:
                raise ValueError(f"{self.method_name()}'s {name} must be at least {low}, got {getattr(self, name)}")

    @classmethod
    def method_name(cls) -> str:
        """Return the name of the method's file, package or entry point."""
        return name_of(cls.__module__)

    @classmethod
    def check_can_ignore(cls, layers: object) -> None:
        """Raise ValueError if layers are to stay whole and the method cannot leave any.

        A method that chooses its filters while it learns shrinks them there, too.
        """
        if layers and cls.needs_budget:
            raise ValueError(
                f"{cls.method_name()} chooses its filters while it learns, and cannot leave layers alone: drop ignored_layers, "
                "or take a method that chooses afterwards"
            )

    @classmethod
    def all_recipes(cls) -> dict[tuple[str, str], Recipe | OptOut]:
        """Return the method's own recipes and the winners of tuning, which replace them."""
        return {**cls.recipes, **_winners().get(cls.method_name(), {})}

    @classmethod
    def recipe(cls, data: str, model: str, *, tuned: bool = True) -> Recipe | OptOut:
        """Return the most specific recipe for a data set and model, else the defaults.

        Winners of tuning are left out unless `tuned`. A winner without settings, from a sweep of fine-tuning, has those of the
        method's own recipe.
        """
        places = ((data, model), ("*", model), (data, "*"), ("*", "*"))
        chosen, own = (
            next((recipes[place] for place in places if place in recipes), None)
            for recipes in (cls.all_recipes() if tuned else cls.recipes, cls.recipes)
        )
        if isinstance(chosen, Recipe) and isinstance(own, Recipe) and not chosen.settings:
            return dataclasses.replace(chosen, settings=own.settings)
        return chosen or Recipe(settings={}, source="the method's defaults")

    @classmethod
    def for_task(cls, data: str, model: str, **changes: Any) -> Pruner:
        """Return the method with its recipe for a data set and model, and with `changes`.

        Raises ValueError with the reason if the method opts out, and with all settings if one is unknown.
        """
        recipe = cls.recipe(data, model)
        if isinstance(recipe, OptOut):
            raise ValueError(f"{cls.__name__} does not run on {model} with {data}: {recipe.reason}")
        names = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted({*recipe.settings, *changes} - {*names}):
            raise ValueError(f"{cls.__name__} has no setting {unknown[0]!r}; it has: {', '.join(names) or 'none'}")
        return cls(**{**recipe.settings, **changes})

    @property
    def groups(self) -> int:
        """Maximum number of filter groups of a layer; 1 except for intra-channel methods."""
        return 1

    @property
    def step_cost(self) -> float:
        """Cost of a learning step in plain training steps, for estimates only."""
        return 1.0

    def facts(self, state: State) -> dict[str, float]:
        """Return numbers about the learned state that every row of the method records."""
        return {}

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> Learner | None:
        """Return the method's hooks into training, or None for a method without learning."""
        return None

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Return a function from the knob to a plan.

        Work that does not depend on the knob belongs here, where it runs once. `model` is in eval mode.
        """
        raise NotImplementedError

    def reconstruct(self, model: nn.Module, graph: Graph, plan: PruningPlan, task: Task) -> None:
        """Change the weights in place before packing, for example by least squares; eval mode."""


@dataclass(frozen=True, kw_only=True)
class Criterion(Pruner):
    """A method with one score per filter; the smallest scores are removed first.

    per   divide scores by the MACs or the milliseconds that the removal saves (`suite.select.filter_planner`)
    step  filter sets that are removed at once, for `per`

    `score` has at most 30 lines.
    """

    implied: ClassVar[Mapping[str, Any]] = {"scope": "coupled"}
    shared_deviations: ClassVar[str] = (
        "rates follow from a MACs budget, which bisection meets, instead of being set by hand; the best filter of every layer "
        "stays; a removed filter also loses its batch norm, so it adds nothing; filters that go together have the mean of their "
        "scores; scores of one order over the network are divided by their layer's mean, unless the ranking is raw"
    )
    """Deviations of every criterion; `deviations` has those of one."""
    scopes: ClassVar[tuple[Scope, ...]] = get_args(Scope)
    """Scopes that the method can have."""

    ranking: Ranking = "global"
    scope: Scope = "coupled"
    per: Per = ""
    step: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per not in get_args(Per) or self.step < 1:
            raise ValueError(
                f"{self.method_name()} has no per = {self.per!r} with step = {self.step}; choose per from '', macs, ms "
                "and a step of at least 1"
            )
        if self.step > 1 and not self.per:
            raise ValueError(f"{self.method_name()} has step = {self.step} without per: choose per from macs, ms")
        if self.scope not in self.scopes:
            raise ValueError(f"{self.method_name()} has no scope {self.scope!r}; choose {', '.join(self.scopes)}")

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer name -> float [O] for every layer of `graph`; larger is more important.

        `model` is in eval mode.
        """
        raise NotImplementedError

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Remove filters in the order of their scores (`suite.select`)."""
        scores = self.score(model, graph, state, task)
        return filter_planner(graph, scores, ranking=self.ranking, scope=self.scope, per=self.per, step=self.step)
