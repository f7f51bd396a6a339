"""Quiet end of a command that is interrupted during its imports.

Imported before all that takes long.
"""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130


def _end(signum: int, frame: object) -> None:
    os._exit(INTERRUPTED)


def restore() -> None:
    """Let an interrupt raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def install() -> None:
    """End the process at an interrupt until `restore` is called."""
    signal.signal(signal.SIGINT, _end)
