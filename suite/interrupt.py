"""Quiet end of a command that is interrupted during its imports.

Imported before all that takes long.
"""

from __future__ import annotations

import multiprocessing
import os
import signal

INTERRUPTED = 130


def _end(signum: int, frame: object) -> None:
    os._exit(INTERRUPTED)


def restore() -> None:
    """Let an interrupt raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if multiprocessing.parent_process() is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
