"""Schema versions of rows, and the migration from each to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SCHEMA = 2
"""Schema version of written rows. Rows of earlier versions are read by way of `MIGRATIONS`."""


def _from_1(fields: dict[str, Any]) -> dict[str, Any]:
    """Move version 1's fairness verdict into the provenance.

    Fairness is a property of a comparison, not of a single run. The verdict is kept as it was written.
    """
    fairness = {"fairness_said": fields["fairness"]} if fields.get("fairness") else {}
    rest = {name: value for name, value in fields.items() if name != "fairness"}
    return {**rest, "provenance": {**fields.get("provenance", {}), **fairness}}


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
"""Schema version -> function from a row's fields to those of the next version. Row files stay unchanged."""
