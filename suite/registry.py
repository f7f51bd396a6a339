"""Registries: entries collected from the modules of a package."""

from __future__ import annotations

import difflib
import functools
import importlib
import logging
import pkgutil
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)


def collect(package: str, attribute: str) -> dict[str, Any]:
    """Return the entries of dict `attribute` in all public modules of `package`.

    A module that cannot be imported is left out and named in the log. Raises ValueError if two modules define one name.
    """
    return {name: entry for name, (_, entry) in _entries(package, attribute).items()}


def module_of(package: str, attribute: str, name: str) -> str:
    """Return the module that defines the entry `name`; "" if none does."""
    return _entries(package, attribute).get(name, ("", None))[0]


@functools.cache
def _entries(package: str, attribute: str) -> dict[str, tuple[str, Any]]:
    """Return name -> module and entry."""
    result: dict[str, tuple[str, Any]] = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = f"{package}.{info.name}"
        if not info.name.startswith("_"):
            try:
                entries = getattr(importlib.import_module(module), attribute, {})
            except Exception as error:  # one broken file must not disable all other files
                log.warning("%s cannot be used: %s: %s", module, type(error).__name__, error)
                continue
            if clash := result.keys() & entries.keys():
                raise ValueError(f"{module} defines {sorted(clash)}, which another file defines already")
            result |= {name: (module, entry) for name, entry in entries.items()}
    return dict(sorted(result.items()))


def pick(noun: str, name: str, choices: Mapping[str, T]) -> T:
    """Return `choices[name]`. Raises ValueError listing the valid names."""
    if name in choices:
        return choices[name]
    close = difflib.get_close_matches(name, choices, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise ValueError(f"unknown {noun} {name!r}{hint}; choose from: {', '.join(choices)}")
