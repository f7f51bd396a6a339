"""Registry of plug-ins: modules that define a method, models, data sets or a grid.

A plug-in is a file of the suite, a file in a folder of SUITE_PLUGINS (`--plugins DIR`), or an entry point of an installed
package. All three are found by the same rule, and a file that cannot be used stops only itself.

    MODELS, DATASETS, FETCHERS   name -> builder
    GRID                         a grid, named by the file
    a subclass of Pruner         a method, named by the file
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.util
import logging
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Kind = Literal["methods", "models", "data", "grids"]
log = logging.getLogger(__name__)

VARIABLE = "SUITE_PLUGINS"
OUTSIDE = "suite.plugins"
"""Package whose modules are the files in the folders of SUITE_PLUGINS."""
HOMES: dict[Kind, str] = {
    "methods": "baselines",
    "models": "suite.models",
    "data": "suite.data",
    "grids": "suite.grids",
}
"""Kind -> package with the suite's own plug-ins."""
MARKS = {"MODELS": "models", "DATASETS": "data", "FETCHERS": "data", "GRID": "grids"}
"""Name assigned at the top level of a file -> kind of plug-in."""
METHOD_IMPORTS = ("suite.contract", "baselines")
"""Imports that mark the file of a method."""

_caches: list[Callable[[], None]] = []


def cached(function: Callable[..., T]) -> Any:
    """Cache like functools.cache, until a folder is added."""
    wrapped = functools.cache(function)
    _caches.append(wrapped.cache_clear)
    return wrapped


@dataclass(frozen=True)
class Plugin:
    """A module that may define plug-ins; `file` is its path as messages print it."""

    name: str
    module: str
    file: str


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A plug-in that cannot be used, with the reason."""

    file: str
    reason: str


def folders() -> list[Path]:
    """Return the folders of SUITE_PLUGINS, absolute."""
    return [Path(name).expanduser().absolute() for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]


def add_folder(folder: Path) -> None:
    """Add a folder of plug-ins, for this process and those that it starts.

    Raises ValueError if the folder does not exist.
    """
    if not folder.is_dir():
        raise ValueError(f"--plugins {folder}: there is no such folder; give the folder that holds your files")
    present = folders()
    set_folders(present if folder.absolute() in present else [*present, folder.absolute()])


def set_folders(paths: Iterable[Path]) -> None:
    """Replace the folders of plug-ins."""
    os.environ[VARIABLE] = os.pathsep.join(map(str, paths))
    if (package := sys.modules.get(OUTSIDE)) is not None:
        package.__path__ = [str(folder) for folder in folders()]
    importlib.invalidate_caches()
    for clear in _caches:
        clear()


def own(kind: Kind) -> list[Plugin]:
    """Return the suite's own plug-ins of a kind, by name."""
    package = importlib.import_module(HOMES[kind])
    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_"))
    return [Plugin(name, f"{HOMES[kind]}.{name}", f"{HOMES[kind].replace('.', '/')}/{name}.py") for name in names]


def added(kind: Kind) -> list[Plugin]:
    """Return the plug-ins of a kind in folders, then those of installed packages."""
    result = [Plugin(name, f"{OUTSIDE}.{name}", str(path)) for name, path, kinds in _files() if kind in kinds]
    for entry in entry_points(group=f"pruning_suite.{kind}"):
        result.append(Plugin(entry.name, entry.module, f"entry point {entry.name} = {entry.value}"))
    return result


@cached
def _files() -> list[tuple[str, Path, frozenset[str]]]:
    """Return name, path and kinds of each plug-in file in the folders."""
    result: dict[str, tuple[str, Path, frozenset[str]]] = {}
    for folder in folders():
        if not folder.is_dir():
            log.warning("%s names %s, which does not exist", VARIABLE, folder)
        for info in pkgutil.iter_modules([str(folder)]):
            path = folder / info.name if info.ispkg else folder / f"{info.name}.py"
            kinds = frozenset() if info.name.startswith("_") else _kinds(path)
            if kinds and info.name in result:
                log.warning("%s is not used: %s has the same name", path, result[info.name][1])
            elif kinds:
                result[info.name] = info.name, path, kinds
    return list(result.values())


def _kinds(path: Path) -> frozenset[str]:
    """Return the kinds of plug-in that a file may define, without running it."""
    kinds: set[str] = set()
    for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
        try:
            content = file.read_bytes()
        except OSError as error:
            log.warning("%s is not used: %s", file, error.strerror)
            continue
        try:
            body = ast.parse(content).body
        except (ValueError, SyntaxError):  # if it is a plug-in, the import gives the reason
            kinds |= {kind for kind in HOMES if b"suite" in content}
            continue
        for node in body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            kinds |= {MARKS[each.id] for each in targets if isinstance(each, ast.Name) and each.id in MARKS}
            if any(name == mark or name.startswith(f"{mark}.") for name in imports(node) for mark in METHOD_IMPORTS):
                kinds.add("methods")
    return frozenset(kinds)


def imports(node: ast.AST, package: str = "") -> Iterator[str]:
    """Yield the modules that an import statement may load; `from a import b` gives two."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and (package or not node.level):
        name = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
        yield from (name, *(f"{name}.{alias.name}" for alias in node.names))


def load(plugin: Plugin) -> ModuleType | Broken:
    """Import a plug-in; a file that fails in any way is Broken."""
    try:
        return importlib.import_module(plugin.module)
    except (Exception, SystemExit) as error:
        return Broken(file=plugin.file, reason=reason(error, plugin.file))


def reason(error: BaseException, file: str) -> str:
    """Return class and message of an error, and the line of `file`, if any."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename.endswith(file)]
    return f"{type(error).__name__}: {' '.join(str(error).split())}" + (f" (line {lines[-1]})" if lines else "")


def collect(kind: Kind, attribute: str) -> dict[str, Any]:
    """Return all entries of the dict `attribute` in the plug-ins of a kind.

    Plug-ins that cannot be used are left out; the log names them.
    """
    return {name: entry for name, (_, entry) in _entries(kind, attribute)[0].items()}


def module_of(kind: Kind, attribute: str, name: str) -> str:
    """Return the module that defines the entry `name`; "" if none does."""
    return _entries(kind, attribute)[0].get(name, ("", None))[0]


def broken(kind: Kind, attribute: str) -> list[Broken]:
    """Return the plug-ins of a kind that cannot be used."""
    return _entries(kind, attribute)[1]


@cached
def _entries(kind: Kind, attribute: str) -> tuple[dict[str, tuple[str, Any]], list[Broken]]:
    """Return name -> module and entry, and the plug-ins that cannot be used."""
    result: dict[str, tuple[str, Any]] = {}
    unusable: list[Broken] = []
    for plugin in [*own(kind), *added(kind)]:
        module = load(plugin)
        entries = {} if isinstance(module, Broken) else getattr(module, attribute, {})
        if isinstance(module, Broken):
            unusable.append(module)
        elif not isinstance(entries, Mapping) or not all(
            isinstance(k, str) and callable(v) for k, v in entries.items()
        ):
            unusable.append(Broken(file=plugin.file, reason=f"{attribute} must be a dict: name -> function"))
        elif clash := result.keys() & entries.keys():
            reason = f"another file defines {', '.join(sorted(clash))} already"
            unusable.append(Broken(file=plugin.file, reason=reason))
        else:
            result |= {name: (plugin.module, entry) for name, entry in entries.items()}
    for item in unusable:
        _log_broken(item)
    return dict(sorted(result.items())), unusable


@cached
def _log_broken(item: Broken) -> None:
    """Log a file that cannot be used, once for all kinds."""
    log.warning("%s cannot be used: %s", item.file, item.reason)


@cached
def name_of(module: str) -> str:
    """Return the name of a module's plug-in: of its file, package or entry point."""
    parts = module.split(".")
    if parts[0] == HOMES["methods"]:
        return parts[-1]
    if module.startswith(f"{OUTSIDE}."):
        return parts[2]
    for entry in entry_points(group="pruning_suite.methods"):
        if f"{module}.".startswith(f"{entry.module}."):
            return entry.name
    return parts[0]


def pick(noun: str, name: str, choices: Mapping[str, T]) -> T:
    """Return `choices[name]`. Raises ValueError with the valid names."""
    if name in choices:
        return choices[name]
    raise ValueError(_unknown(noun, name, choices))


def pick_plugin(noun: str, name: str, choices: Mapping[str, T], unusable: Iterable[Broken] = ()) -> T:
    """Return `choices[name]`, where a plug-in may define further choices.

    Raises ValueError with the valid names, and with the files that cannot be used.
    """
    if name in choices:
        return choices[name]
    files = "".join(f"; {item.file} cannot be used: {item.reason}" for item in unusable)
    raise ValueError(f"{_unknown(noun, name, choices)}; files of your own are found by --plugins FOLDER{files}")


def _unknown(noun: str, name: str, choices: Iterable[str]) -> str:
    return f"unknown {noun} {name!r}{closest(name, choices)}; choose from: {', '.join(choices)}"


def closest(name: str, choices: Iterable[str]) -> str:
    """Return a hint at the valid name closest to `name`; "" if none is close."""
    close = difflib.get_close_matches(name, choices, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
