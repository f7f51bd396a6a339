"""What a pruning method and the suite say to each other.

Shapes: O filters, I input channels, G filter groups of one convolution.

A method says which filter still reads which channel (`PruningPlan`). The suite trains, packs, fine-tunes, measures and
stores, the same for all. A plan knows nothing of training, and a method never sees the test set.
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.graph import Graph
from suite.plan import Budget, ConvPlan, Planner, PruningPlan, Ranking, Scope
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
"""What a learner leaves behind: tensors, numbers and strings in dicts and lists, so that it loads with `weights_only=True`."""


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


Network = Callable[[Tensor], Tensor]
"""Images [B, C, H, W] -> logits [B, classes]."""


def cross_entropy(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of a batch."""
    return F.cross_entropy(network(images), labels)


@dataclass(frozen=True)
class Step:
    """One step of the suite's training loop, as a learner's hooks see it. `index` runs from 0 over the whole stage.

    In a captured step `lr` and `index` are tensors on the device. Where several GPUs share a batch, `images` are this one's, and
    `average` replaces tensors by their means over all of them: for gradients that a learner computes itself. `loss` is the
    schedule's, in its precision, and takes one of `parts` equal parts of the batch at a time, times `loss_scale`.
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

    def gradients(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients of the batch's loss by `weights`, leaves that stand in for parameters of the model.

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
        if self.loss_scale != 1:
            sums = [(gradient / self.loss_scale).nan_to_num(0.0, 0.0, 0.0) for gradient in sums]
        self.average(sums)
        return dict(zip(weights, sums, strict=True))


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

    def finish(self, model: nn.Module) -> None:
        """Change the model in place once learning has ended (fold added layers back); its weights are saved after it."""

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


WINNERS = Path(__file__).with_name("winners.toml")


@functools.cache
def _winners() -> dict[str, dict[tuple[str, str], Recipe]]:
    """Read `WINNERS`: method name -> recipes that tuning chose."""
    tables: dict[str, dict[str, dict[str, Any]]] = tomllib.loads(WINNERS.read_text())
    return {
        method: {
            (place.split("/")[0], place.split("/")[1]): Recipe(
                settings=trial["settings"],
                source=f"ours: best of {trial['trials']} trials in {trial['grid']}, validation part, "
                f"rows {' '.join(trial['rows'])}",
            )
            for place, trial in places.items()
        }
        for method, places in tables.items()
    }


@dataclass(frozen=True, kw_only=True)
class Pruner:
    """A pruning method: its fields are its hyperparameters and part of a run's identity."""

    granularity: ClassVar[Granularity]
    source: ClassVar[str]
    """Paper, section and equation."""
    deviations: ClassVar[str] = ""
    """Where this implementation differs from the source; "" if nowhere."""
    recipes: ClassVar[Mapping[tuple[str, str], Recipe | OptOut]] = {}
    """(data, model) -> settings; "*" stands for any. Winners of tuning are in winners.toml and come before these."""
    evidence: ClassVar[Literal["paper", "abstract", "latency"]] = "paper"
    """"abstract": written from the paper's abstract alone. Such a method is in no headline comparison.

    "latency": a control in latency grids only.
    """
    control: ClassVar[bool] = False
    """True for a baseline that every method has to beat, such as random filters."""
    lowest: ClassVar[Mapping[str, float]] = {}
    """Hyperparameter -> the smallest value that it may have."""
    training: ClassVar[Mapping[str, Any]] = {}
    """Fields of the learning schedule that the authors fix, such as `lr`; grids put them over their own schedule."""
    implied: ClassVar[Mapping[str, Any]] = {}
    """Hyperparameter -> the value that a run identity without it stands for, if that is not the default.

    For a field that came after rows existed, or whose default changed: earlier rows keep their keys and their meaning.
    """
    formerly: ClassVar[str] = ""
    """The name in run identities of a method whose file was renamed."""
    version: ClassVar[int] = 1
    """Raised if equal settings give other results than before; enters run identities from 2 on."""
    needs_budget: ClassVar[bool] = False
    """False when what is learned serves all budgets."""
    start: ClassVar[Literal["base", "init"]] = "base"
    """The weights that learning starts from: the trained base or its initialisation."""
    learns: ClassVar[bool] = False
    """True when `learner` returns one: the run then has a `learned` stage."""
    needs_reference: ClassVar[bool] = False
    """True for a method that takes its plan or its rates from another run (`Task.reference`)."""
    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Hyperparameter -> the values among which tuning chooses; {} when there is nothing to tune."""
    expected_failures: ClassVar[Mapping[str, str]] = {}
    """Name of a common check that this method cannot pass -> why. The check must then fail."""

    def __post_init__(self) -> None:
        for name, low in self.lowest.items():
            if not getattr(self, name) >= low:
                raise ValueError(f"{self.method_name()}'s {name} must be at least {low}, got {getattr(self, name)}")

    @classmethod
    def method_name(cls) -> str:
        """Return the name of the method's file in `baselines/`, or of its package."""
        parts = cls.__module__.split(".")
        return parts[-1] if parts[0] == "baselines" else parts[0]

    @classmethod
    def all_recipes(cls) -> dict[tuple[str, str], Recipe | OptOut]:
        """Return the method's own recipes and the winners of tuning, which replace them."""
        return {**cls.recipes, **_winners().get(cls.method_name(), {})}

    @classmethod
    def recipe(cls, data: str, model: str) -> Recipe | OptOut:
        """Return the most specific recipe for a data set and model; the defaults if there is none."""
        recipes = cls.all_recipes()
        for key in ((data, model), ("*", model), (data, "*"), ("*", "*")):
            if key in recipes:
                return recipes[key]
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

    implied: ClassVar[Mapping[str, Any]] = {"scope": "coupled"}
    shared_deviations: ClassVar[str] = (
        "rates follow from a MACs budget, which bisection meets, instead of being set by hand; the best filter of every layer "
        "stays; a removed filter also loses its batch norm, so it adds nothing; filters that go together have the mean of their "
        "scores; scores of one order over the network are divided by their layer's mean, unless the ranking is raw"
    )
    """Deviations of every criterion; `deviations` has those of one."""

    ranking: Ranking = "global"
    scope: Scope = "coupled"

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Layer name -> float [O], larger is more important, for every layer of `graph`; `model` is in eval mode."""
        raise NotImplementedError

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Remove filters in the order of their scores (`suite.select`)."""
        scores = self.score(model, graph, state, task)
        return filter_planner(graph, scores, ranking=self.ranking, scope=self.scope)
