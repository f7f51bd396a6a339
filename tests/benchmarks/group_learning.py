"""Time and peak memory of group learning beside plain training.

    python tests/benchmarks/group_learning.py

In one process, plain SGD steps alternate with group-learning steps in the three second-order modes, each on its own copy
of the network, all on the same random batch. A ratio is that of two steps of the same round; the table has the medians
and quartiles over the rounds. On CUDA every step is one captured graph.

Peak memory is measured without graphs, in one fresh process per mode. On a CPU it is the growth of the peak resident size
since before the network was built, on CUDA the peak of the allocator.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, get_args

import psutil
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from dsp import DSP
from dsp.groups import SecondOrder
from dsp.learner import GroupLearner
from suite.contract import Batch, Step, Task
from suite.graph import Graph
from suite.models import build

Mode = Literal["plain", "none", "exact", "released"]
MODES: tuple[Mode, ...] = ("plain", *get_args(SecondOrder)[::-1])
WARM_UP = 3
MEMORY_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the measurement."""

    steps: int
    groups: int
    batch: int
    threads: int
    device: str


def stepper(model_name: str, mode: Mode, options: Options) -> tuple[Callable[[], None], GroupLearner | None]:
    """Return a function for one training step of the mode, and its learner."""
    torch.manual_seed(0)
    device = torch.device(options.device)
    model = build(model_name, 10).to(device).train()
    images = torch.randn(options.batch, 3, 32, 32, device=device)
    labels = torch.randint(10, (options.batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    learner = None
    if mode != "plain":
        method = DSP(groups=options.groups, lam=1e-3, second_order=mode)
        task = Task(train_epoch=_no_batches, samples=_no_samples, seed=0)
        learner = method.learner(model, Graph(model, (3, 32, 32)), task)
    index = 0

    def step() -> None:
        nonlocal index
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if learner is not None:
            learner.after_step(Step(model, optimizer, images, labels, 0.05, index, 1000))
        index += 1

    return step, learner


def captured(step: Callable[[], None], learner: GroupLearner | None) -> Callable[[], None]:
    """Return the step as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    if learner is not None:
        graph.register_generator_state(learner.generator)
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _no_batches(epoch: int) -> Iterator[Batch]:
    return iter(())


def _no_samples(count: int) -> Batch:
    raise ValueError("the benchmark has no samples")


def timed_s(step: Callable[[], None], device: str) -> float:
    """Return the seconds of one step."""
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def times_s(model_name: str, options: Options) -> dict[Mode, list[float]]:
    """Return the seconds of each mode in each round, after a warm-up."""
    steppers = {}
    for mode in MODES:
        step, learner = stepper(model_name, mode, options)
        steppers[mode] = captured(step, learner) if options.device == "cuda" else step
    seconds_by_mode: dict[Mode, list[float]] = {mode: [] for mode in MODES}
    for round_ in range(WARM_UP + options.steps):
        for mode, step in steppers.items():
            seconds = timed_s(step, options.device)
            if round_ >= WARM_UP:
                seconds_by_mode[mode].append(seconds)
    return seconds_by_mode


def peak_bytes(model_name: str, mode: Mode, options: Options) -> int:
    """Return the peak memory of a few steps, in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_bytes, model_name, mode, options).result()


def _peak_bytes(model_name: str, mode: Mode, options: Options) -> int:
    torch.set_num_threads(options.threads)
    before = psutil.Process().memory_info().rss
    step, _ = stepper(model_name, mode, options)
    for _ in range(MEMORY_STEPS):
        step()
    if options.device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before


def table_of(model_name: str, options: Options) -> Table:
    """Return the table of medians, ratios to the plain step with quartiles, and peak memory."""
    times = times_s(model_name, options)
    memory = {mode: peak_bytes(model_name, mode, options) for mode in MODES}
    table = Table(title=f"{model_name}, G = {options.groups}, batch {options.batch}, {options.steps} rounds")
    for column in ("second order", "median ms", "x plain", "quartiles", "peak MiB", "x plain"):
        table.add_column(column, no_wrap=True)
    for mode in MODES:
        ratios = [own / plain for own, plain in zip(times[mode], times["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        table.add_row(
            mode,
            f"{1e3 * statistics.median(times[mode]):.1f}",
            f"{middle:.3f}",
            f"{low:.3f} - {high:.3f}",
            f"{memory[mode] / 2**20:.0f}",
            f"{memory[mode] / memory['plain']:.2f}",
        )
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time group-learning steps beside plain training steps.")
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--steps", type=int, default=30, help="rounds that are measured, at least 2")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments: dict[str, Any] = vars(parser.parse_args())
    models = arguments.pop("models")
    options = Options(**arguments)
    torch.set_num_threads(options.threads)
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    console = Console()
    console.print(f"torch {torch.__version__}, {device}, {options.threads} threads, {time.strftime('%Y-%m-%d')}")
    for model_name in models:
        console.print(table_of(model_name, options))


if __name__ == "__main__":
    main()
