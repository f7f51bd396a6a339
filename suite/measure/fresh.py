"""A function's result from a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_fresh_process(function: Callable[[Job], Result], job: Job) -> Result:
    """`function(job)`, computed by a new Python; the function lies in a module, and whatever it raises is raised here.

    Raises ValueError when the process is lost.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, job).result()
        except BrokenProcessPool:
            raise ValueError(
                "a measuring process was killed; out of memory is the usual reason: try a smaller batch"
            ) from None
