"""Things that are found by name because their file is there."""

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


@functools.cache
def collect(package: str, attribute: str) -> dict[str, Any]:
    """All entries of the dict `attribute` of every module in `package` whose name has no leading underscore.

    A module that cannot be imported is left out and named in the log.
    """
    found: dict[str, Any] = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if not info.name.startswith("_"):
            try:
                entries = getattr(importlib.import_module(f"{package}.{info.name}"), attribute, {})
            except Exception as error:  # one broken file must not take the others along
                log.warning("%s.%s cannot be used: %s: %s", package, info.name, type(error).__name__, error)
                continue
            if clash := found.keys() & entries.keys():
                raise ValueError(f"{package}.{info.name} defines {sorted(clash)}, which another file defines already")
            found |= entries
    return dict(sorted(found.items()))


def pick(noun: str, name: str, choices: Mapping[str, T]) -> T:
    """`choices[name]`, or a ValueError that lists what there is."""
    if name in choices:
        return choices[name]
    close = difflib.get_close_matches(name, choices, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise ValueError(f"unknown {noun} {name!r}{hint}; choose from: {', '.join(choices)}")
