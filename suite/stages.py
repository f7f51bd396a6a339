"""Stages of a run, as data.

A stage's name is a hash of all its inputs, so equal work is done once.
    base     (data, model, schedule, seed)                        -> initial and final weights
    learned  (base, method and settings, schedule [, budget])     -> weights and the learner's state
    pruned   (learned or base, budget, fine-tuning, seed)         -> plan, packed network, one row
    timed    (pruned, device, precision, batch, ...)              -> one latency row, or one row of training steps

A field at its default does not enter the hash, so a new field with a default leaves old names unchanged. Therefore defaults
never change. If the default of a method's setting has to change, `Pruner.implied` keeps the value that earlier rows stand for,
and runs with the new default get new names.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from suite import weights
from suite.contract import Budget, Pruner
from suite.plan import Timing as Timing
from suite.schedule import Schedule, check_fields

Split = Literal["all", "tuning", "held_out"]
"""Training images: all, or all but the fixed validation part. Accuracies are on the test set; in "tuning" on the validation
part."""


class _Named:
    """A value with a name: a hash of its fields."""

    kind: ClassVar[str]

    @functools.cached_property
    def key(self) -> str:
        """`kind-` and 12 hex digits; name of the stage's folder and row."""
        text = json.dumps(self.identity, sort_keys=True, separators=(",", ":"))
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Content of the hash.

        Stages share the identities of their needs, so a grid is hashed in linear time.
        """
        return _fields(self)


@dataclass(frozen=True, kw_only=True)
class Base(_Named):
    """A trained network: `schedule` from scratch, or `weights` (then `schedule` is None).

    weights  public weights by name, or the path of a checkpoint of one's own (`suite.weights`); the identity has the SHA-256
             of such a file instead of its path
    """

    kind: ClassVar[str] = "base"
    data: str
    model: str
    schedule: Schedule | None = None
    seed: int
    weights: str = ""
    split: Split = "all"

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.schedule is None) == (not self.weights):
            raise ValueError("a base network has either a schedule or weights: public ones by name, others by path")
        if (own := weights.own_file(self.weights)) is not None:
            object.__setattr__(self, "weights", str(own.absolute()))  # jobs may have another working folder

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Content of the hash. Raises ValueError if a checkpoint of one's own cannot be read."""
        own = weights.own_file(self.weights)
        digest = {"weights": weights.digest(self.weights)} if own else {}
        # names from before the default of `schedule` have its None
        return {"schedule": None, **_fields(self), **digest}

    @property
    def base(self) -> Base:
        """The base network itself, as every stage has one."""
        return self

    @property
    def label(self) -> str:
        """Description for people."""
        own = weights.own_file(self.weights)
        return f"{self.data}/{self.model} {own.name if own else self.weights or f'seed {self.seed}'}"

    @property
    def needs(self) -> tuple[Stage, ...]:
        """Stages whose outputs this stage reads."""
        return ()


@dataclass(frozen=True, kw_only=True)
class Learned(_Named):
    """Learning before pruning: groups, sparse weights. `budget` is set only if learning depends on it."""

    kind: ClassVar[str] = "learned"
    base: Base
    settings: Pruner
    schedule: Schedule
    seed: int
    budget: Budget | None = None

    @property
    def label(self) -> str:
        """Description for people."""
        at = f" at {self.budget.label}" if self.budget else ""
        return f"{self.base.data}/{self.base.model} {describe(self.settings)}{at} seed {self.seed}"

    @property
    def needs(self) -> tuple[Stage, ...]:
        """Stages whose outputs this stage reads."""
        return (self.base,)


@dataclass(frozen=True, kw_only=True)
class Pruned(_Named):
    """One run: a method at a budget, fine-tuned and measured.

    learning   None if the method does not learn
    reference  run whose plan the method follows; None if the method follows none
    ignored_layers  layers, or modules with layers, whose filters and channels all stay
    """

    kind: ClassVar[str] = "pruned"
    base: Base
    settings: Pruner
    learning: Schedule | None
    budget: Budget
    finetune: Schedule
    seed: int
    smoke: bool = False
    reference: Pruned | None = None
    ignored_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.settings.needs_reference != (self.reference is not None):
            verb = "follows another run: give it" if self.settings.needs_reference else "follows no other run: drop"
            raise ValueError(f"{self.settings.method_name()} {verb} `reference`")
        if self.reference is not None:
            own, followed = ((run.base.data, run.base.model, run.base.split) for run in (self, self.reference))
            if own != followed:
                raise ValueError(
                    f"{self.settings.method_name()} on {'/'.join(own)} follows a run on {'/'.join(followed)}: "
                    "give it a `reference` of the same data, model and split"
                )
        if not self.settings.removes and self.budget.share:
            raise ValueError(f"{self.settings.method_name()} removes nothing: give it a budget of 0")
        self.settings.check_can_ignore(self.ignored_layers)
        if self.settings.learns and self.learning is None:
            raise ValueError(f"{self.settings.method_name()} learns before it prunes: give it a `learning` schedule")
        for schedule in (self.base.schedule, self.learning):
            if schedule and schedule.compute.packed != "union":
                raise ValueError("Compute.packed is of packed networks: give it to the `finetune` schedule alone")
            if schedule and schedule.cycles > 1:
                raise ValueError("cycles plan again between them: give them to the `finetune` schedule alone")
        for schedule in (self.base.schedule, self.learning, self.finetune):
            if schedule and schedule.keep == "best_validation" and self.base.split == "all":
                raise ValueError("keep='best_validation' needs a validation part: give the base split='held_out'")
            if schedule and schedule.keep == "best_test" and self.base.split != "all":
                raise ValueError("keep='best_test' reads the test set; give the base split='all'")

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Content of the hash; the settings of a follower name its reference's method."""
        fields = _fields(self)
        if self.reference is not None:
            named = dict(identity(self.reference.settings))
            method, settings = named.pop("method"), ", ".join(f"{name}={value}" for name, value in named.items())
            fields["settings"] = {**fields["settings"], "like": f"{method}({settings})" if settings else method}
        return fields

    @property
    def schedule(self) -> Schedule:
        """Schedule that the stage itself trains by."""
        return self.finetune

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.settings.method_name()

    @property
    def described(self) -> str:
        """The method with its settings and the method that it follows: `scratch(like=dsp(groups=3), groups=3)`."""
        return describe(self.settings, self.reference.settings if self.reference else None, self.ignored_layers)

    @functools.cached_property
    def learned(self) -> Learned | None:
        """Learned stage of the method, or None if the method does not learn."""
        if not self.settings.learns or self.learning is None:
            return None
        budget = self.budget if self.settings.needs_budget else None
        return Learned(base=self.base, settings=self.settings, schedule=self.learning, seed=self.seed, budget=budget)

    @property
    def plain_epochs(self) -> float:
        """Epochs of base network, learning and fine-tuning, in plain-step equivalents.

        Learning from initial weights and followers that start there replace the base network.
        """
        base = self.base.schedule.epochs if self.base.schedule and self.settings.start == "base" else 0
        learning = self.learned.schedule.epochs * self.settings.step_cost if self.learned else 0.0
        return base + learning + self.finetune.epochs

    @property
    def label(self) -> str:
        """Description for people."""
        base, rounded = self.base, f" rounded to {self.budget.round_to}" if self.budget.round_to > 1 else ""
        return f"{base.data}/{base.model} {self.described} {self.budget.label}{rounded} seed {self.seed}"

    @property
    def needs(self) -> tuple[Stage, ...]:
        """Stages whose outputs this stage reads."""
        return tuple(stage for stage in (self.base, self.learned, self.reference) if stage is not None)


@dataclass(frozen=True, kw_only=True)
class Timed(_Named):
    """Latency of a packed network beside its dense one. Runs alone on its device."""

    kind: ClassVar[str] = "timed"
    pruned: Pruned
    timing: Timing
    schedule: ClassVar[None] = None
    """It trains nothing by a schedule of its own."""

    @property
    def base(self) -> Base:
        """The base network of the run."""
        return self.pruned.base

    @property
    def label(self) -> str:
        """Description for people."""
        timing = self.timing
        runtime = "" if timing.runtime == "torch" else f", {timing.runtime}"
        threads = f", {timing.threads} thread{'s' * (timing.threads > 1)}" if timing.threads else ""
        return f"{self.pruned.label} on {timing.device}, batch {timing.batch}, {timing.precision}{runtime}{threads}"

    @property
    def needs(self) -> tuple[Stage, ...]:
        """Stages whose outputs this stage reads."""
        return (self.pruned,)


@dataclass(frozen=True, kw_only=True)
class TimedSteps(Timed):
    """Training steps per second: one run alone, and several equal runs together on one device.

    timing     device, batch, precision and layout of the steps, and the length of the measurement
    training   stage whose steps are taken: on the dense network, with the method's learner, or on the packed network
    together   runs that share the device; 1 measures a run alone
    processes  True: each run is a process; False: branches of one CUDA graph if the steps can be captured, else turns
    """

    training: Literal["base", "learning", "finetune"]
    together: int = 1
    processes: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.together < 1 or (self.processes and self.together < 2):
            raise ValueError(
                f"together = {self.together}, processes = {self.processes}: take 1 run, or 2 or more in processes"
            )
        if self.training == "learning" and self.pruned.learned is None:
            raise ValueError(f"{self.pruned.method} does not learn: measure 'base' or 'finetune'")

    @property
    def label(self) -> str:
        """Description for people."""
        together = f", {self.together} together in {'processes' if self.processes else 'one process'}"
        run = self.base if self.training == "base" else self.pruned
        where = f"on {self.timing.device}, batch {self.timing.batch}, {self.timing.precision}"
        return f"{run.label}: {self.training} steps {where}{together if self.together > 1 else ''}"

    @property
    def needs(self) -> tuple[Stage, ...]:
        """Stages whose outputs this stage reads."""
        return (self.pruned,) if self.training == "finetune" else (self.base,)


Stage = Base | Learned | Pruned | Timed


def describe(settings: Pruner, reference: Pruner | None = None, ignored_layers: Sequence[str] = ()) -> str:
    """Return the method's name with the settings that differ from its defaults: `dsp(groups=3)`."""
    changed = [f"like={describe(reference)}"] if reference else []
    changed += [f"without={'+'.join(ignored_layers)}"] if ignored_layers else []
    changed += [
        f"{field.name}={getattr(settings, field.name)}"
        for field in dataclasses.fields(settings)
        if getattr(settings, field.name) != field.default
    ]
    return settings.method_name() + (f"({', '.join(changed)})" if changed else "")


def identity(value: Any) -> Any:
    """Return the content of the hash as plain JSON values.

    Fields at their default are absent; methods stand by name.
    """
    if isinstance(value, _Named):
        return value.identity
    if not dataclasses.is_dataclass(value):
        return value
    if not isinstance(value, Pruner):
        return _fields(value)
    version = {"version": value.version} if value.version > 1 else {}
    return {"method": value.formerly or value.method_name(), **version, **_fields(value, value.implied)}


def _fields(value: Any, implied: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    fields = [(field.name, getattr(value, field.name), field.default) for field in dataclasses.fields(value)]
    return {name: identity(item) for name, item, default in fields if item != implied.get(name, default)}


def in_order(stages: Iterable[Stage]) -> list[Stage]:
    """Return the stages and all their needs, each once, needs first."""
    ordered: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key not in ordered:
            for needed in stage.needs:
                visit(needed)
            ordered[stage.key] = stage

    for stage in stages:
        visit(stage)
    return list(ordered.values())
