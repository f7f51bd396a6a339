"""NVIDIA's Multi-Process Service (MPS) for several processes on one GPU.

Kernels of its clients run at the same time. Without MPS a GPU gives its processes time slices in turn, so that small kernels
of several runs never overlap.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping

log = logging.getLogger(__name__)

CONTROL = "nvidia-cuda-mps-control"
PIPE, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
TIMEOUT_S = 30.0


@contextlib.contextmanager
def served(device: str) -> Iterator[Mapping[str, str]]:
    """Start a daemon of MPS for the block; yield the environment variables of its clients.

    A process is a client if it has these variables before it first uses CUDA. The mapping is empty on a CPU, without
    `nvidia-cuda-mps-control`, and if the daemon does not start, with the reason in the log. If the user has set
    CUDA_MPS_PIPE_DIRECTORY, no daemon is started.
    """
    if device != "cuda":
        yield {}
        return
    if PIPE in os.environ:
        yield {PIPE: os.environ[PIPE]}
        return
    if shutil.which(CONTROL) is None:
        log.warning("%s is not here: processes on one GPU take turns", CONTROL)
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="mps-", ignore_cleanup_errors=True) as folder:
        variables = {PIPE: folder, LOGS: folder}
        if not _control(["-d"], "", variables):
            yield {}
            return
        try:
            yield variables
        finally:
            _control([], "quit\n", variables)


def _control(arguments: list[str], command: str, variables: Mapping[str, str]) -> bool:
    """Call the control program; return True if it succeeds."""
    try:
        subprocess.run(
            [CONTROL, *arguments],
            input=command,
            env={**os.environ, **variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        reason = " ".join(str(getattr(error, "stderr", "") or error).split())
        log.warning("%s %s failed (%s): processes on one GPU take turns", CONTROL, " ".join(arguments), reason)
        return False
    return True
