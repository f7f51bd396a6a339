"""Parts that all methods share, and pruning from Python: `prune`, `load`, `compare`, `count`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from suite.api import Report, Result, compare, count, load, prune

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else ONNX Runtime collects data, and warns where it cannot

__all__ = ["Report", "Result", "compare", "count", "load", "prune"]


def __getattr__(name: str) -> Any:
    """Import the functions at first use, so that `import suite` stays light."""
    if name in __all__:
        from suite import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
