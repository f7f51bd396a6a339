"""Timing of callables on a device, the one loop of all measurements.

CUDA events time a GPU, the wall clock times a CPU. CPU time of the process is a second clock.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, overload

import numpy as np
import torch

Run = Callable[[], object]
Name = TypeVar("Name", bound=str)
Times = TypeVar("Times")
CAP_S = 10.0
"""Time at which a warm-up ends in any case."""


@torch.inference_mode()
def seconds_per_run(run: Run, device: str | torch.device, repeats: int = 1) -> float:
    """Return the mean seconds of one run over `repeats` consecutive ones."""
    if torch.device(device).type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        for _ in range(repeats):
            run()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - started) / repeats


def both_clocks(run: Run, device: str | torch.device, repeats: int = 1) -> tuple[float, float]:
    """Return the mean wall-clock and CPU seconds of one run, over all threads."""
    started = time.process_time()
    seconds = seconds_per_run(run, device, repeats)
    return seconds, (time.process_time() - started) / repeats


def cpu_seconds(run: Run, device: str | torch.device, repeats: int = 1) -> float:
    """Return the CPU seconds of one run, which other processes barely change."""
    return both_clocks(run, device, repeats)[1]


def steady_clock(device: str | torch.device) -> Mapping[str, Any]:
    """Return the `clock` of `rounds` and `least_ms` for choices.

    It is CPU time with one CPU thread; elsewhere there is no keyword.
    """
    one_thread = torch.device(device).type == "cpu" and torch.get_num_threads() == 1
    return {"clock": cpu_seconds} if one_thread else {}


def _wall(run: Run, device: str | torch.device, repeats: int) -> float:
    return seconds_per_run(run, device, repeats)


def warm_up(run: Run, device: str | torch.device, seconds: float) -> float:
    """Run until the time of a run is stable; return that time in seconds.

    Stable: `seconds` have passed and the median of the last ten runs differs by less than 1 % from that of the ten before.
    The loop ends after 5 x `seconds`, or after `CAP_S`.
    """
    times: list[float] = []
    previous = float("inf")
    started = time.perf_counter()
    while True:
        times.append(seconds_per_run(run, device))
        spent = time.perf_counter() - started
        if len(times) % 10 == 0 or spent > CAP_S:
            median = float(np.median(times[-10:]))
            if spent > CAP_S or (spent >= seconds and abs(median - previous) < 0.01 * median) or spent > 5 * seconds:
                return median
            previous = median


@overload
def rounds(
    runs: Mapping[Name, Run], device: str | torch.device, repeats: int = 1, *, permute: bool = False
) -> Iterator[dict[Name, float]]: ...


@overload
def rounds(
    runs: Mapping[Name, Run],
    device: str | torch.device,
    repeats: int = 1,
    *,
    permute: bool = False,
    clock: Callable[[Run, str | torch.device, int], Times],
) -> Iterator[dict[Name, Times]]: ...


def rounds(
    runs: Mapping[Name, Run],
    device: str | torch.device,
    repeats: int = 1,
    *,
    permute: bool = False,
    clock: Callable[[Run, str | torch.device, int], Any] = _wall,
) -> Iterator[dict[Name, Any]]:
    """Yield the seconds of one run of each, round after round without end.

    permute   every round takes the next permutation of the runs, so that position effects cancel in ratios; False keeps
              the order of `runs`
    clock     (run, device, repeats) -> the yielded value
    """
    orders = list(itertools.permutations(runs)) if permute else [tuple(runs)]
    for order in itertools.cycle(orders):
        yield {name: clock(runs[name], device, repeats) for name in order}


def fastest(runs: Mapping[Name, Run], device: str | torch.device, count: int = 5) -> tuple[Name, dict[Name, float]]:
    """Return the fastest run's name and the median milliseconds of each over `count` rounds."""
    for run in runs.values():
        warm_up(run, device, 0.02)
    times = list(itertools.islice(rounds(runs, device, 3), count))
    medians = {name: 1e3 * float(np.median([round_s[name] for round_s in times])) for name in runs}
    return min(medians, key=medians.__getitem__), medians


@torch.inference_mode()
def least_ms(
    runs: Mapping[Name, Run],
    device: str | torch.device,
    repeats: int = 1,
    *,
    seconds: float,
    counts: range,
    clock: Callable[[Run, str | torch.device, int], float] = _wall,
) -> dict[Name, float]:
    """Return the least milliseconds of each run over alternating rounds.

    For quick choices: disturbances only add time, so that the least of few rounds orders runs better than their median.

    seconds   the loop ends after the first round that ends later, within the limits of `counts`
    clock     (run, device, repeats) -> seconds of one run
    """
    for run in runs.values():
        run()
    least = dict.fromkeys(runs, float("inf"))
    started = time.perf_counter()
    for done, times in enumerate(rounds(runs, device, repeats, clock=clock), 1):
        least = {name: min(ms, 1e3 * times[name]) for name, ms in least.items()}
        if done >= counts.stop - 1 or (done >= counts.start and time.perf_counter() - started > seconds):
            return least
    raise AssertionError("rounds() does not end")
