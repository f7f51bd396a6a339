"""Run one stage and write its output, or the reason of its failure."""

from __future__ import annotations

from suite.run.context import Context
from suite.run.execute import Outcome, execute, fail
from suite.run.folder import failed_need, failure, forget, forget_failures, given_up, is_done, repair

__all__ = [
    "Context",
    "Outcome",
    "execute",
    "fail",
    "failed_need",
    "failure",
    "forget",
    "forget_failures",
    "given_up",
    "is_done",
    "repair",
]
