"""Seconds of training steps in alternating blocks: one run alone, several together.

Runs together are branches of one CUDA graph or turns in this process (`together`), or processes of their own (`Crew`).
"""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.connection
import multiprocessing.synchronize
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch

from suite.contract import Batch
from suite.cudagraph import EAGER_STEPS, CapturedSteps
from suite.progress import end_with_parent
from suite.timing import rounds
from suite.trainer import CapturedTrainer, Trainer

Advance = Callable[[int], object]
"""Take this many steps of each run, and wait for the device."""
Run = tuple[Trainer, Iterator[Batch]]
"""A trainer, and its batches without end."""

SECONDS = {"quick": 1.5, "full": 4.0}
"""Duration of the blocks, by protocol."""
BLOCKS = {"quick": 6, "full": 12}
"""Blocks of each run, by protocol: every order of three runs equally often."""
CREW_TIMEOUT_S = 180.0
"""Time limit of one block of a crew, its start included: importing torch and capturing the steps."""


class Together:
    """Captured trainers of independent runs whose steps are one CUDA graph.

    Measured only: the launcher gives each stage a process.
    Each run takes the steps that it takes alone. Batches of a run have one size; runs may differ in shape.
    """

    def __init__(self, trainers: Sequence[CapturedTrainer]) -> None:
        self.trainers = tuple(trainers)
        generators = [generator for trainer in self.trainers for generator in trainer.learner.generators]
        self.captured = CapturedSteps([trainer.take for trainer in self.trainers], generators)

    def advance(self, batches: Sequence[Batch]) -> None:
        """Take one step of each run, on one batch of each."""
        for trainer in self.trainers:
            trainer.set_rate()
        self.captured(*batches)
        for trainer in self.trainers:
            trainer.step += 1


def together(runs: Sequence[Run], device: str) -> Advance:
    """Return the steps of these runs in this process.

    They are one CUDA graph if all runs are captured, else turns.
    """
    trainers, batches = [trainer for trainer, _ in runs], [own for _, own in runs]
    captured = [trainer for trainer in trainers if isinstance(trainer, CapturedTrainer)]
    joint = Together(captured) if len(runs) > 1 and len(captured) == len(runs) else None

    def advance(steps: int) -> None:
        for _ in range(steps):
            if joint:
                joint.advance([next(own) for own in batches])
            else:
                for trainer, own in zip(trainers, batches, strict=True):
                    trainer.advance(*next(own))
        if device == "cuda":
            torch.cuda.synchronize()

    return advance


class Crew:
    """Processes that take their steps at the same time; an `Advance`.

    make         index of a process -> its `Advance`; called in the process, so it has to be picklable
    environment  variables of the processes, set before `make` is called
    Raises ValueError from a call if a process has ended.
    """

    def __init__(
        self, make: Callable[[int], Advance], count: int, threads: int, environment: Mapping[str, str]
    ) -> None:
        context = multiprocessing.get_context("forkserver")  # torch is imported once; the server has not used CUDA
        context.set_forkserver_preload(["suite.run"])
        self.begin, self.end = (context.Barrier(count + 1) for _ in range(2))
        self.steps = context.Value("q", 0)
        shared = (threads, environment, self.begin, self.end, self.steps)
        self.processes = [
            context.Process(target=_member, args=(make, index, *shared), daemon=True) for index in range(count)
        ]
        for process in self.processes:
            process.start()
        threading.Thread(target=self._abort_at_an_end, daemon=True).start()

    def __call__(self, steps: int) -> None:
        """Take this many steps in each process, and wait for all."""
        self.steps.value = steps
        try:
            self.begin.wait(CREW_TIMEOUT_S)
            self.end.wait(CREW_TIMEOUT_S)
        except threading.BrokenBarrierError:
            codes = [process.exitcode for process in self.processes]
            raise ValueError(
                f"one of {len(codes)} training processes ended or hung (exit statuses {codes}); take fewer together"
            ) from None

    def _abort_at_an_end(self) -> None:
        """Wait until a process has ended, and wake all that wait for it."""
        multiprocessing.connection.wait([process.sentinel for process in self.processes])
        self.begin.abort()
        self.end.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()


def _member(
    make: Callable[[int], Advance],
    index: int,
    threads: int,
    environment: Mapping[str, str],
    begin: multiprocessing.synchronize.Barrier,
    end: multiprocessing.synchronize.Barrier,
    steps: Any,
) -> None:
    """Take steps in a process of a crew whenever all others do."""
    os.environ.update(environment)
    end_with_parent()
    torch.set_num_threads(threads)
    advance = make(index)
    while True:
        begin.wait()
        advance(steps.value)
        end.wait()


def alternate(
    advances: Mapping[str, Advance], device: str, protocol: str, report: Callable[[float], object] = lambda share: None
) -> dict[str, np.ndarray]:
    """Return the seconds of a step in each block.

    report   is called with the share that is done, 0 to 1, after every block
    """
    block_s = SECONDS[protocol] / BLOCKS[protocol] / len(advances)
    runs, counts = {}, {}
    for name, advance in advances.items():
        advance(EAGER_STEPS + 2 if device == "cuda" else 1)
        began = time.perf_counter()
        advance(2)
        counts[name] = max(1, round(2 * block_s / (time.perf_counter() - began)))
        runs[name] = _block(advance, counts[name])
    blocks = []
    for block in itertools.islice(rounds(runs, device, permute=True, clock=_wall), BLOCKS[protocol]):
        blocks.append(block)
        report(len(blocks) / BLOCKS[protocol])
    return {name: np.array([block[name] for block in blocks]) / counts[name] for name in advances}


def _block(advance: Advance, steps: int) -> Callable[[], object]:
    return lambda: advance(steps)


def _wall(run: Callable[[], object], device: str | torch.device, repeats: int) -> float:
    """Return the seconds of a run that waits for the device itself, with gradients."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
