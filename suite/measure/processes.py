"""One measurement in several processes: a fresh one each, and the columns that they give together."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

from suite.measure import latency, machine

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one process found: `execution` is the fastest of `executions_ms`, or was chosen by an earlier process."""

    comparison: latency.Comparison
    execution: str
    executions_ms: Mapping[str, float]
    conditions: Mapping[str, Any]


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


def choose_and_compare(
    dense: latency.Run, runs: Mapping[str, latency.Run], device: str, plan: latency.Protocol
) -> Found:
    """The fastest of `runs`, when there are several, beside the dense network."""
    chosen, milliseconds = (next(iter(runs)), {}) if len(runs) == 1 else latency.fastest(runs, device)
    with machine.watched(device) as conditions:
        comparison = latency.compare(dense, runs[chosen], device, plan)
    return Found(comparison=comparison, execution=chosen, executions_ms=milliseconds, conditions=conditions)


def columns(found: Sequence[Found], device: str) -> dict[str, Any]:
    """The columns of a `TimedRow`, from one measurement in each of several processes."""
    best = latency.combined([one.comparison for one in found])
    execution = found[0].execution
    return {
        **best.columns(),
        "execution": execution,
        "executions_ms": dict(found[0].executions_ms),
        "deployed": execution if best.verdict in ("faster", "no difference") else "dense",
        "processes": tuple(
            {"process": number, **one.comparison.ratios(), **one.conditions} for number, one in enumerate(found)
        ),
        "flags": machine.flags([one.conditions for one in found], device),
    }
