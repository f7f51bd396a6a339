"""List of methods: `python -m suite.methods` prints it.

A file in `baselines/` or in a folder of plug-ins is a method, named by the file; so is the package `dsp`. A file that cannot
be used stops only itself: it is listed with the reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from suite import cli, registry
from suite.contract import Criterion, Granularity, OptOut, Pruner, Recipe
from suite.registry import Broken, Plugin, pick_plugin

HOMES = ("dsp",)
"""Packages that are one method each."""
WIDTH = 180
"""Columns of the table where there is no terminal."""


@registry.cached
def discover() -> dict[str, type[Pruner] | Broken]:
    """Return method name -> its class, or the reason why it cannot be used."""
    result = {home: _load(Plugin(home, home, home)) for home in HOMES}
    result |= {plugin.name: _load(plugin) for plugin in registry.own("methods")}
    for plugin in registry.added("methods"):
        module = registry.load(plugin)
        if not isinstance(module, Broken) and registry.MARKS.keys() & vars(module).keys() and not _classes(plugin):
            continue  # a file of models, data sets or a grid
        if plugin.name in result:
            reason = f"there is a method {plugin.name} already; rename the file"
            result[plugin.module] = Broken(file=plugin.file, reason=reason)
        else:
            result[plugin.name] = _load(plugin)
    return result


def _load(plugin: Plugin) -> type[Pruner] | Broken:
    """Return the method in a plug-in, or the reason why it cannot be used."""
    module = registry.load(plugin)
    if isinstance(module, Broken):
        return module
    kinds = _classes(plugin)
    if len(kinds) != 1:
        reason = f"it must define exactly one subclass of Pruner or Criterion, found {len(kinds)}"
        return Broken(file=plugin.file, reason=reason)
    wrong = _unfit(kinds[0])
    return Broken(file=plugin.file, reason=wrong) if wrong else kinds[0]


def _classes(plugin: Plugin) -> list[type[Pruner]]:
    """Return the methods that an imported plug-in defines itself."""
    prefix = plugin.module.split(".")
    kinds = (item for item in vars(sys.modules[plugin.module]).values() if inspect.isclass(item))
    return [kind for kind in kinds if issubclass(kind, Pruner) and kind.__module__.split(".")[: len(prefix)] == prefix]


def _unfit(kind: type[Pruner]) -> str:
    """Return the fault of a method's class; "" if it has none."""
    name, contract = kind.__name__, Criterion if issubclass(kind, Criterion) else Pruner
    if missing := [each for each in ("granularity", "source") if not hasattr(kind, each)]:
        return f"{name} lacks {' and '.join(missing)}"
    if kind.granularity not in get_args(Granularity):
        return f"{name}.granularity is {kind.granularity!r}; choose from: {', '.join(get_args(Granularity))}"
    if "__dataclass_params__" not in vars(kind):
        return f"{name} needs @dataclass(frozen=True, kw_only=True) above it"
    fields = [field.name for field in dataclasses.fields(kind)]
    if unknown := [each for each in kind.search if each not in fields]:
        return f"{name}.search names {unknown[0]!r}, which is no setting; it has: {', '.join(fields) or 'none'}"
    hook = "score" if contract is Criterion else "planner"
    if getattr(kind, hook) is getattr(contract, hook) and kind.planner is contract.planner:
        return f"{name} does not define {hook}"
    for hook in ("learner", "planner", "reconstruct", "score"):
        if hasattr(contract, hook):
            expected, actual = (list(inspect.signature(getattr(each, hook)).parameters) for each in (contract, kind))
            if expected != actual:
                return f"{name}.{hook} takes ({', '.join(actual)}); the contract requires ({', '.join(expected)})"
    return ""


def get(name: str) -> type[Pruner]:
    """Return the method's class.

    Raises ValueError with the valid names, or with the reason why its file cannot be used.
    """
    if not isinstance(name, str):
        raise ValueError(
            f"a method is given by its name, got {name!r}; put a class of your own in a file FOLDER/NAME.py, and give "
            "--plugins FOLDER"
        )
    kind = pick_plugin("method", name, discover())
    if isinstance(kind, Broken):
        raise ValueError(f"method {name} cannot be used: {kind.file}: {kind.reason}")
    return kind


def rivals(**attributes: object) -> tuple[str, ...]:
    """Return the usable methods in `baselines/` whose class attributes have these values, by name.

    The default values are those of `is_rival`.
    """
    kinds = {name: kind for name, kind in discover().items() if name not in HOMES and not isinstance(kind, Broken)}
    return tuple(name for name, kind in kinds.items() if is_rival(kind, **attributes))


def is_rival(kind: type[Pruner], **attributes: object) -> bool:
    """Return True if the method's class attributes have these values.

    By default False for methods written from an abstract, followers of other runs and the dense control.
    """
    attributes = {"evidence": "paper", "needs_reference": False, "removes": True, **attributes}
    return all(getattr(kind, name) == value for name, value in attributes.items())


@dataclass(frozen=True, kw_only=True)
class Note:
    """Source and deviations of a method, which stand under each table that names the method.

    signed    words with which the method's authors would sign the implementation
    evidence  as `Pruner.evidence`
    """

    method: str
    source: str
    deviations: str
    signed: str
    evidence: str = "paper"


def notes(names: Iterable[str]) -> list[Note]:
    """Return the notes of usable methods, in the given order, each once."""
    kinds = {name: discover().get(name) for name in dict.fromkeys(names)}
    return [
        Note(
            method=name,
            source=kind.source,
            deviations=_deviations(kind),
            signed=_signed(kind),
            evidence=kind.evidence,
        )
        for name, kind in kinds.items()
        if kind is not None and not isinstance(kind, Broken)
    ]


def _signed(kind: type[Pruner]) -> str:
    """Return the condition under which the method's authors would sign it."""
    if kind.control or kind.evidence == "latency":
        return "control, without authors"
    if kind.evidence == "abstract":
        return "no: written from the abstract alone"
    words = [kind.deviations, kind.shared_deviations if issubclass(kind, Criterion) else ""]
    return (
        "; ".join(f"with these words: {text}" if not place else text for place, text in enumerate(filter(None, words)))
        or "yes"
    )


def shared_deviations(names: Iterable[str]) -> str:
    """Return the deviations that all criteria share; "" if none of these methods is one."""
    kinds = [discover().get(name) for name in names]
    criteria = any(isinstance(kind, type) and issubclass(kind, Criterion) for kind in kinds)
    return Criterion.shared_deviations if criteria else ""


def step_cost(settings: Mapping[str, Any]) -> float:
    """Return the plain steps of a learning step, from a row's settings.

    Raises ValueError if the method is unknown or cannot be used.
    """
    values = dict(settings)
    name = values.pop("method")
    formerly = {
        kind.formerly: new for new, kind in discover().items() if not isinstance(kind, Broken) and kind.formerly
    }
    kind = get(formerly.get(name, name))
    fields = {field.name for field in dataclasses.fields(kind)}
    kept = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key in fields}
    return kind(**{**kind.implied, **kept}).step_cost


def main() -> int:
    """List the methods, or describe one; exit status 1: broken file, 2: unknown name."""
    parser = argparse.ArgumentParser(
        prog=cli.program("suite.methods"),
        description="List the pruning methods: granularity, training needed, paper, deviations. "
        "`pruning-suite new method NAME --plugins DIR` writes the file of a new one.",
    )
    cli.add_plugins_option(parser)
    parser.add_argument("method", nargs="?", help="describe this one: its settings, what tuning tries, its recipes")
    parser.add_argument(
        "--signed", action="store_true", help="list the words with which its authors would sign each method"
    )
    arguments = parser.parse_args()
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    if arguments.method is not None:
        try:
            _describe(arguments.method, console)
        except ValueError as error:
            sys.stderr.write(f"suite.methods: {error}\n")
            return 2
        return 0
    if arguments.signed:
        signed = Table(Column("method", no_wrap=True), "authors would sign", show_lines=True)
        for note in notes(discover()):
            signed.add_row(note.method, escape(note.signed))
        console.print(signed)
        return 0
    table = Table(Column("method", no_wrap=True), "granularity", "training", "paper", "deviations", show_lines=True)
    usable, broken = [], []
    for name, method in discover().items():
        if isinstance(method, Broken):
            broken.append(method)
        else:
            usable.append(name)
            table.add_row(
                name, method.granularity, _training(method), escape(method.source), escape(_deviations(method))
            )
    console.print(table)
    console.print(f"every criterion: {escape(Criterion.shared_deviations)}", highlight=False)
    console.print(f"{len(usable)} methods; `python -m suite.methods NAME` describes one", highlight=False)
    for item in broken:
        console.print(f"[red]not usable:[/] {item.file}: {escape(item.reason)}", highlight=False)
    return 1 if broken else 0


def _training(method: type[Pruner]) -> str:
    """Return the training that a method needs before it can plan."""
    start = "from scratch, " if method.start == "init" else ""
    if method.needs_reference:
        return start + "another run"
    if not method.learns:
        return "none"
    return start + ("for each budget" if method.needs_budget else "once for all budgets")


def _deviations(method: type[Pruner]) -> str:
    abstract = "known from the paper's abstract alone; " if method.evidence == "abstract" else ""
    return abstract + (method.deviations or "none")


def _describe(name: str, console: Console) -> None:
    """Print all that is on record of a method."""
    method = get(name)
    table = Table(show_header=False, box=None)
    settings = [f"{field.name} = {field.default!r}" for field in dataclasses.fields(method)]
    about = {
        "method": name,
        "": inspect.cleandoc(method.__doc__ or ""),
        "granularity": method.granularity,
        "training": _training(method),
        "paper": method.source,
        "deviations": _deviations(method),
        "settings": "\n".join(settings) or "none",
        "tuning tries": "\n".join(f"{field}: {', '.join(map(str, values))}" for field, values in method.search.items()),
        "recipes": "\n".join(f"{'/'.join(where)}: {_recipe(recipe)}" for where, recipe in method.all_recipes().items()),
    }
    for heading, text in about.items():
        if text:
            table.add_row(heading, escape(text))
    console.print(table)


def _recipe(recipe: Recipe | OptOut) -> str:
    if isinstance(recipe, OptOut):
        return f"does not run: {recipe.reason}"
    return f"{', '.join(f'{name}={value}' for name, value in recipe.settings.items())} ({recipe.source})"


if __name__ == "__main__":
    raise SystemExit(main())
