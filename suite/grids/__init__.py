"""Grids by name: a file with `GRID`, here or in a folder of plug-ins."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
import runpy
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite import methods, registry
from suite.contract import Budget, OptOut, Pruner
from suite.registry import Plugin, pick_plugin
from suite.schedule import Schedule
from suite.stages import Base, Pruned, Stage, Timed, TimedSteps, Timing, in_order

logger = logging.getLogger(__name__)

SMOKE_DATA = "digits"
SAMPLE_SIZES = ("images", "batches", "candidates")
"""Settings that are numbers of samples, in every method that has them."""
SMOKE_IMAGES = 256


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Runs that are compared with each other, and how their latency is measured."""

    title: str
    about: str
    """What it shows, where its numbers come from, and what is ours."""
    runs: Callable[[], Sequence[Pruned]]
    """A function, so that a method whose file is broken stops only the grids that need it."""
    timings: tuple[Timing, ...] = (Timing(protocol="quick"),)
    steps: Callable[[Sequence[Pruned]], Sequence[TimedSteps]] | None = None
    """(runs) -> measurements of training steps (`suite.run.steps_stage`); None for none."""
    family: str = ""
    """The method whose comparisons with its rivals are declared before the grid runs; "" for none.

    `suite.report.statistics.pairs` has the rules. Settings in brackets, as in "dsp(groups=4, grouping=learned)", declare these
    variants alone.
    """
    commit: str = ""
    """The commit at which `suite.study` computes all runs of a long study; "" for other grids."""

    def __post_init__(self) -> None:
        if not callable(self.runs):
            raise ValueError("GRID's runs is a function that returns a list of runs: write runs=runs, not runs=runs()")
        if not isinstance(self.timings, tuple) or not all(isinstance(each, Timing) for each in self.timings):
            raise ValueError(f"GRID's timings is a tuple, such as (Timing(protocol='quick'),), got {self.timings!r}")

    def declares(self, run: Pruned) -> bool:
        """Return True for a run of the method, with the settings, that `family` names."""
        method, _, listed = self.family.removesuffix(")").partition("(")
        declared = [[part.strip() for part in setting.split("=", 1)] for setting in listed.split(",") if setting]
        settings = [[name, str(value)] for name, value in vars(run.settings).items()]
        return run.method == method and all(setting in settings for setting in declared)


def names() -> list[str]:
    """Return the names of all grids."""
    return [*_plugins()]


@registry.cached
def _plugins() -> dict[str, Plugin]:
    """Return name -> file of all grids in order; of two equal names the first."""
    every = [*registry.own("grids"), *registry.added("grids")]
    first = {plugin.name: plugin for plugin in reversed(every)}
    return dict(sorted(first.items()))


def load(name: str) -> Grid:
    """Return the grid `name`, or the grid of a .py file.

    Raises ValueError with the valid names, or with what is wrong with the file.
    """
    path = Path(name)
    if name.endswith(".py") and path.absolute().parent not in registry.folders():
        grid = _run(path).get("GRID")
    else:
        plugin = pick_plugin("grid", path.stem if name.endswith(".py") else name, _plugins())
        module = registry.load(plugin)
        if isinstance(module, registry.Broken):
            raise ValueError(f"grid file {module.file} cannot be run: {module.reason}")
        grid = vars(module).get("GRID")
    if not isinstance(grid, Grid):
        raise ValueError(f"the grid file {name} must define GRID = Grid(...), as suite/grids/quickstart.py does")
    return grid


def _run(path: Path) -> dict[str, object]:
    if not path.is_file():
        raise ValueError(f"grid file {path} does not exist; the grids by name are: {', '.join(names())}")
    try:
        return runpy.run_path(str(path))
    except (Exception, SystemExit) as error:  # a user's file may fail in any way
        raise ValueError(f"grid file {path} cannot be run: {registry.reason(error, str(path))}") from error


def folder_name(name: str) -> str:
    """Return the name of the grid's folder of tables and figures."""
    return Path(name).stem


def runs_of(grid: Grid, *, only: str = "", smoke: bool = False) -> list[Pruned]:
    """Return the grid's runs whose label contains a text of `only`; small ones with `smoke`.

    `only` is one text, or several with | between them. A text may be the key of a run or of a stage that it needs, or the
    beginning of a key.

    Raises ValueError when none is left, or with what is wrong with the grid.
    """
    try:
        listed = grid.runs()
        wrong = [each for each in listed if not isinstance(each, Pruned)] if isinstance(listed, Sequence) else [listed]
        if wrong:
            kind = type(wrong[0]).__name__
            raise ValueError(f"the runs of {grid.title!r} are one list, as `[*cross(...), *cross(...)]`; got a {kind}")
        runs = list({run.key: run for run in listed}.values())  # a run that is listed twice is one run
    except ValueError:
        raise
    except (Exception, SystemExit) as error:  # a user's file may fail in any way
        reason = registry.reason(error, inspect.getfile(grid.runs)) if inspect.isfunction(grid.runs) else repr(error)
        raise ValueError(f"the runs of {grid.title!r} cannot be listed: {reason}") from error
    check_classes(runs)
    if smoke:
        runs = smoked(runs)
    if not runs:
        raise ValueError(f"the grid {grid.title!r} has no runs: every method opts out, or it lists none")
    if grid.family and not any(map(grid.declares, runs)):
        kinds = ", ".join(sorted({run.method for run in runs}))
        raise ValueError(
            f"the grid {grid.title!r} declares the family {grid.family!r}, but has no such run; its methods: {kinds}"
        )
    if bare := without_control(runs):
        logger.warning(
            f"grid {grid.title!r} has no dense control on {', '.join(bare)}, so its drops include the effect of longer training: "
            "add suite.grids.dense_control(bases=..., finetune=...)"
        )
    texts, chosen = only.split("|"), set[str]()
    if len(texts) > 1 and "" in texts:
        raise ValueError(f"--only {only!r} has no text on one side of a |; write it as 'TEXT|TEXT'")
    for text in texts:
        fitting = {run.key for run in runs if text.lower() in run.label.lower() or _has_key(run, text)}
        if not fitting:
            raise ValueError(
                f"--only {text!r} fits none of the {len(runs)} runs; the first is called {runs[0].label!r}"
            )
        chosen |= fitting
    return [run for run in runs if run.key in chosen]


def _has_key(run: Pruned, start: str) -> bool:
    """Return True if a key of the run or of its needs begins with `start`."""
    looks_like_key = start.partition("-")[0] in ("base", "learned", "pruned") and "-" in start
    return looks_like_key and any(stage.key.startswith(start) for stage in in_order([run]))


def check_classes(runs: Iterable[Pruned]) -> None:
    """Raise ValueError if a method is a class of a grid file."""
    grid_modules = {plugin.module for plugin in _plugins().values()}
    for kind in {type(run.settings) for run in runs}:
        in_grid = kind.__module__ not in sys.modules or kind.__module__ in grid_modules
        if in_grid and methods.discover().get(kind.method_name()) is not kind:
            raise ValueError(
                f"the method {kind.__name__} is a class of {kind.__module__}, which is no file of a method; put it in a file "
                "of its own, FOLDER/NAME.py, and give --plugins FOLDER"
            )


def without_control(runs: Iterable[Pruned]) -> list[str]:
    """Return networks with trained runs of several methods but no dense control.

    Runs on the validation part choose hyperparameters and make no claims.
    """
    of_network: dict[str, set[str]] = {}
    for run in runs:
        if run.finetune.epochs and run.base.split != "tuning" and not run.smoke:
            of_network.setdefault(f"{run.base.data}/{run.base.model}", set()).add(run.method)
    return [name for name, kinds in of_network.items() if len(kinds) > 1 and "dense_control" not in kinds]


def stages_of(grid: Grid, runs: Iterable[Pruned], *, smoke: bool = False) -> list[Stage]:
    """Return the runs, their measurements and all stages these need, in order."""
    timings = (Timing(protocol="quick"),) if smoke else grid.timings
    runs = list(runs)
    measured = grid.steps(runs) if grid.steps else ()
    if smoke:
        small = Timing(protocol="quick")
        measured = [dataclasses.replace(stage, timing=small, together=min(2, stage.together)) for stage in measured]
    return in_order([*runs, *(Timed(pruned=run, timing=timing) for run in runs for timing in timings), *measured])


def smoked(runs: Iterable[Pruned]) -> list[Pruned]:
    """Return the runs on embedded data: one seed, one budget, 256 images an epoch."""
    small: dict[tuple[str, str], Pruned] = {}
    for run in runs:
        small.setdefault((run.base.model, run.described), _smoked(run))
    return list(dict.fromkeys(small.values()))


def _smoked(run: Pruned) -> Pruned:
    base = Base(
        data=SMOKE_DATA,
        model=run.base.model,
        schedule=_shortened(run.base.schedule or run.finetune),
        seed=0,
        split=run.base.split,
    )
    return dataclasses.replace(
        run,
        base=base,
        settings=_fewer_samples(run.settings, base),
        learning=_shortened(run.learning) if run.learning else None,
        finetune=_shortened(run.finetune),
        seed=0,
        smoke=True,
        reference=_smoked(run.reference) if run.reference else None,
    )


def _fewer_samples(settings: Pruner, base: Base) -> Pruner:
    """Return the settings with the recipe's sample sizes for `base`, if smaller."""
    recipe = type(settings).recipe(base.data, base.model)
    sizes = {} if isinstance(recipe, OptOut) else recipe.settings
    smaller = {name: min(getattr(settings, name), sizes[name]) for name in SAMPLE_SIZES if name in sizes}
    return dataclasses.replace(settings, **smaller)


def _shortened(schedule: Schedule) -> Schedule:
    batch = min(schedule.batch, 64)
    return dataclasses.replace(
        schedule,
        epochs=1,
        cycles=1,
        replan_pp=0.0,
        keep_after=0,
        warmup_epochs=0,
        batch=batch,
        accumulate=math.gcd(schedule.accumulate, batch),
        epoch_images=SMOKE_IMAGES,
    )


def cross(
    *,
    bases: Iterable[Base],
    method: str,
    budgets: Iterable[float | Budget],
    finetune: Schedule,
    learning: Schedule | None = None,
    scratch: Schedule | None = None,
    total: float | None = None,
    seeds: Iterable[int] | None = None,
    ignored_layers: str | Iterable[str] = (),
    penalty_images: int | None = None,
    tuned: bool = True,
    **changes: object,
) -> list[Pruned]:
    """Return runs of one method on every base at every budget, with its recipe.

    `changes` replace settings of the recipe.

    learning  of methods that learn from the base weights; `Pruner.training` replaces fields of it
    scratch   of methods that learn from the initial weights; None takes the schedule of the base network
    total     epochs of learning and fine-tuning in plain-step equivalents: fine-tuning gets what learning leaves, so that all
              methods train equally; None takes the epochs of `finetune`
    ignored_layers  layers, or modules with layers, whose filters and channels all stay
    penalty_images  training images of an epoch: a penalty (`Pruner.penalty`) keeps the authors' product of coefficient and
                    summed learning rates on the schedule of `learning`; None keeps the recipe's coefficient
    tuned           replace the fields of `finetune` that the recipe has (`Recipe.finetune`); False in a sweep
    The seed of a run is that of its base, or each of `seeds`. A base for which the method opts out is left out.
    Raises ValueError if a method that learns from initial weights has no schedule.
    """
    kind = methods.get(method)
    runs, ignored = [], (ignored_layers,) if isinstance(ignored_layers, str) else tuple(ignored_layers)
    for base in bases:
        recipe = kind.recipe(base.data, base.model)
        if isinstance(recipe, OptOut):
            continue
        own = dataclasses.replace(finetune, **recipe.finetune) if tuned else finetune
        settings = kind.for_task(base.data, base.model, **changes)
        taught = _learning(kind, base, learning, scratch) if kind.learns else None
        if penalty_images is not None and taught is not None:
            settings = _same_penalty(settings, taught, penalty_images)
        for budget in budgets:
            for seed in (base.seed,) if seeds is None else seeds:
                runs.append(
                    Pruned(
                        base=base,
                        settings=settings,
                        learning=taught,
                        budget=budget if isinstance(budget, Budget) else Budget(share=budget, refill=True),
                        finetune=own if total is None else _rest(own, total, settings, base, taught),
                        seed=seed,
                        ignored_layers=ignored,
                    )
                )
    return runs


def _same_penalty(settings: Pruner, taught: Schedule, images: int) -> Pruner:
    """Return the settings with the authors' penalty, to three digits."""
    if settings.penalty is None:
        return settings
    name, authors = settings.penalty
    ratio = authors / sum(taught.rates(min(images, taught.epoch_images or images) // taught.batch))
    return dataclasses.replace(settings, **{name: float(f"{getattr(settings, name) * ratio:.3g}")})


def _rest(finetune: Schedule, total: float, settings: Pruner, base: Base, taught: Schedule | None) -> Schedule:
    """Return the fine-tuning schedule with the epochs that learning leaves of `total`.

    Learning from initial weights replaces the training of the base network, so only its epochs beyond that count. In place of
    public weights it counts as their training. Epochs are rounded to whole cycles.
    Raises ValueError if learning alone costs more than `total`.
    """
    spent = taught.epochs * settings.step_cost if taught else 0.0
    if settings.start == "init" and taught:
        spent = max(0.0, spent - (base.schedule or taught).epochs)
    if spent > total:
        raise ValueError(
            f"learning of {settings.method_name()} costs {spent:g} plain epochs, more than the total {total:g}"
        )
    return dataclasses.replace(finetune, epochs=finetune.cycles * round((total - spent) / finetune.cycles))


def dense_control(
    *, bases: Iterable[Base], finetune: Schedule, learning: Schedule | None = None, **options: Any
) -> list[Pruned]:
    """Return the dense networks of a grid, trained for its base, learning and fine-tuning schedules.

    learning  None if no method of the grid learns
    """
    if learning is None:
        learning = Schedule(epochs=0, lr=finetune.lr, weight_decay=finetune.weight_decay, batch=finetune.batch)
    return cross(
        bases=bases, method="dense_control", budgets=(Budget(share=0),), finetune=finetune, learning=learning, **options
    )


def _learning(kind: type[Pruner], base: Base, learning: Schedule | None, scratch: Schedule | None) -> Schedule | None:
    """Return the schedule of a method that learns, with the fields that its authors fix."""
    if kind.start == "init":
        learning = scratch or base.schedule
        if learning is None:
            raise ValueError(
                f"{kind.method_name()} trains from initial weights, and {base.label} has no schedule: give `scratch`"
            )
    return dataclasses.replace(learning, **kind.training) if learning else None


def follow(
    references: Iterable[Pruned],
    method: str,
    *,
    finetune: Callable[[Pruned], Schedule] | None = None,
    **changes: object,
) -> list[Pruned]:
    """Return for each run a run of `method` that follows its plan.

    Base, budget and seed are the same, and the number of groups if the method has groups.

    finetune  reference -> schedule; None takes the reference's own
    """
    kind = methods.get(method)
    has_groups = any(field.name == "groups" for field in dataclasses.fields(kind))
    return [
        Pruned(
            base=run.base,
            settings=kind.for_task(
                run.base.data,
                run.base.model,
                **({"groups": run.settings.groups} if has_groups else {}),
                **changes,
            ),
            learning=None,
            budget=run.budget,
            finetune=finetune(run) if finetune else run.finetune,
            seed=run.seed,
            reference=run,
            ignored_layers=run.ignored_layers,
        )
        for run in references
        if not isinstance(kind.recipe(run.base.data, run.base.model), OptOut)
    ]
