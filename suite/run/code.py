"""Fingerprints of the code that a stage depends on: results of edited code are stale.

A fingerprint has the digest of each file of the stage's model, data set and method (`own`), and of each plug-in file that
these import (`imported`). Digests are of the syntax tree without docstrings: comments and formatting do not count.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from suite import models, registry
from suite.records.origin import content, plugin_files
from suite.stages import Base, Pruned, Stage, Timed

Fingerprint = dict[str, dict[str, str]]
ABOUT = ("source", "deviations", "recipes", "search", "expected_failures")
"""Attributes of a method that change no run: settings are in a run's identity."""
ROOMS = ("baselines", "suite/models", "suite/data", "plugins")
"""Folders of plug-ins that are single files, so that the other files there are not of the same plug-in."""


def modules(stage: Stage) -> tuple[str, ...]:
    """Return the modules of the stage's model, data set and methods."""
    if isinstance(stage, Timed):
        return modules(stage.pruned)
    if isinstance(stage, Base):
        return (models.module(stage.model), registry.module_of("data", "DATASETS", stage.data))
    reference = stage.reference if isinstance(stage, Pruned) else None
    return (*modules(stage.base), type(stage.settings).__module__, *(modules(reference) if reference else ()))


def fingerprint(stage: Stage) -> Fingerprint:
    """Return label -> digest of the stage's own files, and of those that they import."""
    return _fingerprint(modules(stage))


@registry.cached
def _fingerprint(names: tuple[str, ...]) -> Fingerprint:
    result: Fingerprint = {"own": {}, "imported": {}}
    stems = [name.replace(registry.OUTSIDE, "plugins").replace(".", "/") for name in names]
    for label, path in plugin_files(names).items():
        kind = "own" if any(_is_file_of(label, stem) for stem in stems) else "imported"
        result[kind][label] = _digest(path)
    return result


def _is_file_of(label: str, stem: str) -> bool:
    """Return True if the file belongs to the module, or to its package."""
    package = stem.rpartition("/")[0]
    inside = bool(package) and package not in ROOMS and label.startswith(f"{package}/")
    return inside or label in (f"{stem}.py", f"{stem}/__init__.py")


def short(stage: Stage) -> str:
    """Return the first digits of the digest of the stage's fingerprint."""
    return hashlib.sha256(json.dumps(fingerprint(stage), sort_keys=True).encode()).hexdigest()[:12]


def changes(stage: Stage, stored: Any) -> tuple[list[str], list[str]]:
    """Return the own files, and the imported files, that differ from a stored fingerprint.

    An output without a fingerprint, of an earlier version of the suite, counts as equal.
    """
    if not isinstance(stored, Mapping) or not all(isinstance(stored.get(part), dict) for part in ("own", "imported")):
        return [], []
    now = fingerprint(stage)
    own, imported = (sorted(_differing(now[part], stored[part])) for part in ("own", "imported"))
    return own, imported


def _differing(now: Mapping[str, str], before: Mapping[str, str]) -> Iterable[str]:
    return {label for label in {*now, *before} if now.get(label) != before.get(label)}


def _digest(path: Path) -> str:
    """Return the digest of a file's syntax tree; equal in all versions of Python."""
    return _source_digest(content(path))


@functools.lru_cache(maxsize=1000)
def _source_digest(source: bytes) -> str:
    digest = hashlib.sha256()
    for word in _words(ast.parse(source)):  # bytes, because the file may name an encoding of its own
        digest.update(f"{word}\n".encode())
    return digest.hexdigest()[:16]


def _words(node: ast.AST) -> Iterator[str]:
    """Yield types and values of a syntax tree without docstrings, positions and empty fields."""
    yield type(node).__name__
    for name, value in ast.iter_fields(node):
        for item in value if isinstance(value, list) else [value]:
            if (
                isinstance(item, ast.Expr)
                and isinstance(item.value, ast.Constant)
                and isinstance(item.value.value, str)
            ):
                continue
            attribute = isinstance(node, ast.ClassDef) and isinstance(item, ast.Assign)
            if attribute and ast.unparse(item.targets[0]) in ABOUT:
                continue
            if isinstance(item, ast.AST):
                yield name
                yield from _words(item)
            elif item is not None:
                yield f"{name}={item!r}"
    yield "end"
