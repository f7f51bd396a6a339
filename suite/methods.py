"""The methods that are there: `python -m suite.methods` lists them.

A file in `baselines/` is a method, named by the file; so is the package `dsp`. Nothing else registers one. A file that
cannot be imported stops only itself: it is listed with its reason, and whoever asks for it gets the reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import inspect
import pkgutil
from dataclasses import dataclass

from rich.console import Console
from rich.table import Column, Table

import baselines
from suite.contract import Criterion, Pruner
from suite.registry import pick

HOMES = ("dsp",)
"""Packages that are one method each."""


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A method that cannot be used, and why."""

    file: str
    reason: str


@functools.cache
def discover() -> dict[str, type[Pruner] | Broken]:
    """Method name -> its class, or why it is not to be had."""
    names = [info.name for info in pkgutil.iter_modules(baselines.__path__) if not info.name.startswith("_")]
    modules = {**{home: home for home in HOMES}, **{name: f"baselines.{name}" for name in sorted(names)}}
    return {name: _load(module) for name, module in modules.items()}


def _load(module_name: str) -> type[Pruner] | Broken:
    file = module_name.replace(".", "/") + ("" if module_name in HOMES else ".py")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a method's file may fail in any way; it must not take the others along
        return Broken(file=file, reason=f"{type(error).__name__}: {error}")
    found = [
        item
        for item in vars(module).values()
        if inspect.isclass(item)
        and issubclass(item, Pruner)
        and item.__module__.split(".")[: module_name.count(".") + 1] == module_name.split(".")
    ]
    if len(found) != 1:
        return Broken(
            file=file, reason=f"it must define exactly one subclass of Pruner or Criterion, found {len(found)}"
        )
    wrong = _unfit(found[0])
    return Broken(file=file, reason=wrong) if wrong else found[0]


def _unfit(kind: type[Pruner]) -> str:
    """What is wrong with the class of a method; "" if nothing."""
    if missing := [name for name in ("granularity", "source") if not hasattr(kind, name)]:
        return f"{kind.__name__} lacks {' and '.join(missing)}"
    contract = Criterion if issubclass(kind, Criterion) else Pruner
    for name in ("learner", "planner", "reconstruct", "score"):
        if hasattr(contract, name):
            asked, given = (list(inspect.signature(getattr(each, name)).parameters) for each in (contract, kind))
            if asked != given:
                return f"{kind.__name__}.{name} takes ({', '.join(given)}); the contract asks for ({', '.join(asked)})"
    return ""


def get(name: str) -> type[Pruner]:
    """The method's class. Raises ValueError with the valid names, or with what is wrong with its file."""
    found = pick("method", name, discover())
    if isinstance(found, Broken):
        raise ValueError(f"method {name} cannot be used: {found.file}: {found.reason}")
    return found


def name_of(settings: Pruner) -> str:
    """The method's name: that of its file, or of its package."""
    parts = type(settings).__module__.split(".")
    return parts[0] if parts[0] in HOMES else parts[-1]


def main() -> int:
    """List the methods; the exit status is 1 when a file is broken."""
    argparse.ArgumentParser(
        prog="python -m suite.methods",
        description="List the pruning methods: granularity, whether they train, paper, deviations. Copy "
        "baselines/_template.py to baselines/NAME.py to add one; its presence registers it.",
    ).parse_args()
    columns = ("granularity", "learns", "settings", "source", "deviations")
    table = Table(Column("method", no_wrap=True), *columns, title="Pruning methods")
    broken = []
    for name, method in discover().items():
        if isinstance(method, Broken):
            broken.append(method)
            continue
        learns = "per budget" if method.learns and method.needs_budget else "once" if method.learns else "no"
        fields = "\n".join(f"{field.name}={field.default}" for field in dataclasses.fields(method))
        table.add_row(name, method.granularity, learns, fields, method.source, method.deviations or "none")
    console = Console()
    console.print(table)
    for item in broken:
        console.print(f"[red]not usable:[/] {item.file}: {item.reason}", highlight=False)
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
