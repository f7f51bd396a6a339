"""Execution of stages on this machine, in worker processes.

A worker that dies (out of memory, kill) fails its own stage only. Latency is measured when nothing else runs.
"""

from __future__ import annotations

import ctypes
import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from types import FrameType

from suite.launch.display import Display
from suite.measure import mps
from suite.progress import Watch, end_with_parent
from suite.run import Context, Outcome, execute, fail
from suite.stages import Stage, Timed

REFRESH_S = 0.25
STOPPING = (signal.SIGINT, signal.SIGTERM)
BLOCKED = {*STOPPING, signal.SIGUSR2}
"""Signals that SLURM or a terminal sends to all processes of a job, and that only the launcher handles."""


class _Worker:
    """Process that executes one stage at a time.

    Signals are blocked until it can handle them.

    environment   variables of the process
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        context = multiprocessing.get_context("forkserver")  # torch is imported once, and its memory shared
        context.set_forkserver_preload(["suite.run"])
        self.pool = ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=_begin, initargs=(environment,))
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)  # a new process inherits this
        self.pid = self.pool.submit(os.getpid)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def stop(self, number: signal.Signals) -> None:
        """Send the signal; no-op while the process is starting."""
        if self.pid.done() and self.pid.exception() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid.result(), number)


class _Workers:
    """Worker processes, each on its own: a dead worker is replaced and ends no other.

    stop_by      the signal that stops a stage at a checkpoint
    environment  variables of processes that run side by side; a timed stage, which is alone, gets none of them
    """

    def __init__(self, count: int, stop_by: signal.Signals, environment: Mapping[str, str]) -> None:
        self.stop_by = stop_by
        self.environment = environment
        self.free = [_Worker(environment) for _ in range(count)]
        self.busy: dict[Future[Outcome], _Worker] = {}

    def submit(self, stage: Stage, context: Context) -> Future[Outcome]:
        """Give the stage to a free worker."""
        worker = self.free.pop()
        environment = {} if isinstance(stage, Timed) else self.environment
        if worker.environment != environment:
            worker.pool.shutdown(wait=False)
            worker = _Worker(environment)
        try:
            future = worker.pool.submit(_work, stage, context, self.stop_by)
        except BrokenProcessPool:  # it died while idle
            worker = _Worker(environment)
            future = worker.pool.submit(_work, stage, context, self.stop_by)
        self.busy[future] = worker
        return future

    def outcome(self, future: Future[Outcome], stage: Stage, context: Context) -> Outcome:
        """Return the outcome of a finished future, and free its worker."""
        worker = self.busy.pop(future)
        try:
            outcome = future.result()
        except BrokenProcessPool:
            worker = _Worker(worker.environment)
            reason = "its process was killed; out of memory is the usual reason: try --jobs 1"
            outcome = fail(stage, context, "failed", reason)
        except Exception as error:  # an error that the worker did not turn into a status
            outcome = fail(stage, context, "failed", f"{type(error).__name__}: {error}")
        self.free.append(worker)
        return outcome

    def close(self) -> None:
        """End the free workers."""
        for worker in self.free:
            worker.pool.shutdown(wait=False, cancel_futures=True)


def _begin(environment: Mapping[str, str]) -> None:
    """Set the variables of this worker, and kill the worker when the launcher has ended.

    Finished stages are not lost.
    """
    os.environ.update(environment)
    end_with_parent()


def run(
    stages: Sequence[Stage],
    context: Context,
    display: Display | None = None,
    *,
    jobs: int,
    signals: Sequence[signal.Signals] = STOPPING,
    stopped: list[int] | None = None,
) -> dict[str, Outcome]:
    """Do the stages, `jobs` at a time, and return their outcomes.

    After one of the signals or `context.max_minutes`, stages that have not begun have no outcome; `stopped` has the number of
    the signal. A stage with a failed need is tried, too: it fails at once, with the reason in its row.
    Stages side by side on a GPU are clients of NVIDIA's Multi-Process Service if the machine has it.
    """
    # Idle threads would spin, which costs several times the work itself on a shared machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    waiting = list(stages)
    running: dict[Future[Outcome], Stage] = {}
    outcomes: dict[str, Outcome] = {}
    keys = {stage.key for stage in stages}
    deadline = float("inf") if context.max_minutes is None else time.monotonic() + 60 * context.max_minutes
    stop = False
    side_by_side = min(jobs, sum(not isinstance(stage, Timed) for stage in stages)) > 1
    with (
        _stopping(signals, [] if stopped is None else stopped) as stopped,
        mps.served(context.device if side_by_side else "cpu") as environment,
    ):
        if signals is not STOPPING:  # blocked until now; one that came during the imports is delivered here
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        jobs = min(jobs, len(stages))
        workers = _Workers(jobs, signal.SIGTERM if signals is STOPPING else signals[0], environment)
        while running or (waiting and not stop):
            stop = bool(stopped) or time.monotonic() >= deadline
            for stage in [s for s in waiting if any(outcomes.get(n.key) == "interrupted" for n in s.needs)]:
                waiting.remove(stage)
                outcomes[stage.key] = "interrupted"
            if not stop:
                for stage in _ready(waiting, list(running.values()), outcomes, keys, jobs):
                    waiting.remove(stage)
                    running[workers.submit(stage, _context_of(stage, context))] = stage
            finished, _ = wait(running, timeout=REFRESH_S, return_when=FIRST_COMPLETED)
            for future in finished:
                stage = running.pop(future)
                outcomes[stage.key] = workers.outcome(future, stage, context)
                if display:
                    display.ended(stage, outcomes[stage.key])
            if display:
                display.refresh()
            for worker in workers.busy.values() if stop else ():
                worker.stop(workers.stop_by)
        workers.close()
    return outcomes


def _context_of(stage: Stage, context: Context) -> Context:
    """Return the worker's context: all cores for a timed stage, no time limit."""
    return dataclasses.replace(context, max_minutes=None, threads=0 if isinstance(stage, Timed) else context.threads)


def _ready(
    waiting: Sequence[Stage], running: Sequence[Stage], outcomes: Mapping[str, Outcome], keys: set[str], jobs: int
) -> list[Stage]:
    """Return the stages to start now; timed stages come last and alone."""
    settled = [s for s in waiting if all(n.key in outcomes or n.key not in keys for n in s.needs)]
    training: list[Stage] = [stage for stage in settled if not isinstance(stage, Timed)]
    if any(not isinstance(stage, Timed) for stage in (*waiting, *running)):
        return training[: jobs - len(running)]
    return settled[: 1 if not running else 0]


def _work(stage: Stage, context: Context, stop_by: signal.Signals) -> Outcome:
    """Do the stage in this worker; the signal stops it at a checkpoint."""
    context.folder(stage).mkdir(parents=True, exist_ok=True)
    watch = Watch(context.progress(stage))
    watch.listen(stop_by)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {stop_by})
    outcome = execute(stage, context, watch)
    _return_memory()
    return outcome


def _return_memory() -> None:
    """Return freed memory to the system; glibc keeps 300 MB after twenty stages."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextmanager
def _stopping(signals: Sequence[signal.Signals], came: list[int]) -> Iterator[list[int]]:
    """Yield a list of the signals received; a second signal from a person raises KeyboardInterrupt."""

    def handler(number: int, frame: FrameType | None) -> None:
        if came and signals is STOPPING:
            raise KeyboardInterrupt
        came.append(number)

    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield came
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def run_here(stages: Sequence[Stage], context: Context, display: Display) -> dict[str, Outcome]:
    """Execute the stages in this process, for a debugger.

    A signal stops at a checkpoint.
    """
    watch = Watch(max_minutes=context.max_minutes)
    watch.listen(*STOPPING)
    outcomes: dict[str, Outcome] = {}
    for stage in stages:
        if watch.must_stop:
            break
        watch.begin(context.progress(stage))
        outcomes[stage.key] = execute(stage, context, watch)
        display.ended(stage, outcomes[stage.key])
    return outcomes
