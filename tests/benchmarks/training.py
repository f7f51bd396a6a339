"""Print the time of training steps in fp32 and bf16 for each kind of stage.

    python -m tests.benchmarks.training --model resnet20 --batch 128 --rounds 6

All steps alternate in one process, in an order that rotates. `x fp32` is the median over rounds of the fp32 step's time divided
by this step's, with quartiles; `/ masked` is the time divided by that of the masked dense step in the same precision, which
packed fine-tuning replaces. "split" is packed fine-tuning with `Compute.packed` = "groups". With --compiled a further kind, bf16
through torch.compile, is added. `--processes` compares two processes of one thread with one of two threads instead. --cpu-time
counts seconds of the CPU: with one thread, other work on the machine then changes them little. suite/pack/MEASUREMENTS.md has the
times and the changes that were tried.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from dsp import DSP
from suite import models
from suite.arithmetic import emulation
from suite.contract import Batch, ConvPlan, PruningPlan, Task
from suite.graph import Graph
from suite.pack import masks, pack
from suite.schedule import Compute, Schedule
from suite.trainer import Trainer, make_trainer

KINDS = {
    "fp32": Compute(),
    "fp32 channels_last": Compute(layout="channels_last"),
    "bf16": Compute(precision="bf16", layout="channels_last"),
    "bf16 compiled": Compute(precision="bf16", layout="channels_last", compiled=True),
}
PLAIN = ("base", "learning")
FORMS = {1: ("masked", "packed"), 4: ("masked", "packed", "split")}
"""Number of groups -> masked dense steps, and packed ones: `Compute.packed` = "union", "groups"."""
Step = Callable[[], None]


class Steps:
    """A loader of so many steps an epoch, for schedules only."""

    def __len__(self) -> int:
        return 1000


def random_plan(graph: Graph, groups: int, share: float) -> PruningPlan:
    """Return a plan whose groups each keep a random share of the channels."""
    generator = torch.Generator().manual_seed(0)
    layers = {}
    for name, conv in graph.convs.items():
        if conv.prunable:
            kept_GI = torch.rand(groups, conv.channels, generator=generator) < share
            kept_GI[:, 0] = True
            layers[name] = ConvPlan(
                torch.arange(conv.filters) % groups, kept_GI, torch.ones(conv.filters, dtype=torch.bool)
            )
    return PruningPlan(layers)


def build(
    stage: str, compute: Compute, options: argparse.Namespace, device: str = "cpu", size_px: int = 32, classes: int = 10
) -> tuple[Trainer, Batch, float]:
    """Return the trainer of a stage, a random batch, and the network's cut of MACs."""
    torch.manual_seed(0)
    model: nn.Module = models.build(options.model, classes).to(device)
    graph = Graph(model, (3, size_px, size_px))
    images = torch.randn(options.batch, *graph.input_shape, device=device)
    labels = torch.randint(classes, (options.batch,), device=device)
    task = Task(train_epoch=lambda epoch: iter(()), samples=lambda n: (images, labels), seed=0)
    learner = DSP(groups=4).learner(model, graph, task) if stage == "learning" else None
    cut, after_step = 0.0, None
    if stage.startswith(("packed", "split", "masked")):
        plan = random_plan(graph, int(stage.split()[1]), options.share)
        cut, packed = graph.cut(plan), pack(model, graph, plan)
        if not stage.startswith("masked"):
            model = packed
            if stage.startswith("split"):
                packed.split()
        else:
            kept: Any = list(masks(packed, model).values())
            parameters: list[Tensor] = list(model.parameters())

            def after_step() -> None:
                with torch.no_grad():
                    torch._foreach_mul_(parameters, kept)

    schedule = Schedule(epochs=1, lr=0.01, weight_decay=5e-4, batch=options.batch, compute=compute)
    batches: Any = Steps()
    trainer = make_trainer(model.train(), batches, schedule, learner=learner, after_step=after_step)
    return trainer, (images, labels), cut


def stepper(stage: str, compute: Compute, options: argparse.Namespace) -> tuple[Step, float]:
    """Return a function for one step of a stage, and its cut of MACs."""
    trainer, batch, cut = build(stage, compute, options)
    return lambda: trainer.advance(*batch), cut


def measured(options: argparse.Namespace) -> Table:
    """Return the table of all stages and kinds."""
    kinds = [kind for kind in options.kinds if options.compiled or kind != "bf16 compiled"]
    clock = time.process_time if options.cpu_time else time.perf_counter
    stages = [*options.stages, *(f"{form} {groups}" for groups in (1, 4) for form in FORMS[groups])]
    runs = {(stage, kind): stepper(stage, KINDS[kind], options) for stage in stages for kind in kinds}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for step, _ in runs.values():
        step()
        step()
    keys = list(runs)
    for round_ in range(options.rounds):
        first = round_ * 5 % len(keys)
        for key in keys[first:] + keys[:first]:
            began = clock()
            for _ in range(options.steps):
                runs[key][0]()
            times[key].append((clock() - began) / options.steps)
    table = Table("stage", "groups", "MACs cut", "steps", "median ms", "steps/s", "x fp32", "quartiles", "/ masked")
    for (stage, kind), seconds in times.items():
        form, _, groups = stage.partition(" ")
        low, middle, high = _ratio(times[stage, "fp32"], seconds)
        masked = f"{_ratio(seconds, times[f'masked {groups}', kind])[1]:.2f}" if form in ("packed", "split") else ""
        median = statistics.median(seconds)
        table.add_row(
            *(form, groups, f"{runs[stage, kind][1]:.0%}" if groups else "", kind, f"{1e3 * median:.1f}"),
            *(f"{1 / median:.2f}", f"{middle:.2f}", f"{low:.2f} - {high:.2f}", masked),
        )
    return table


def _ratio(numerators: list[float], denominators: list[float]) -> list[float]:
    return statistics.quantiles((a / b for a, b in zip(numerators, denominators, strict=True)), n=4)


def worker(threads: int, kind: str, options: argparse.Namespace, start: Barrier, times: list[float]) -> None:
    """Append the seconds of this process's steps, begun together with the others."""
    torch.set_num_threads(threads)
    step, _ = stepper("base", KINDS[kind], options)
    step()
    for _ in range(options.rounds):
        start.wait()
        began = time.perf_counter()
        for _ in range(options.steps):
            step()
        times.append(time.perf_counter() - began)


def throughput(processes: int, threads: int, kind: str, options: argparse.Namespace) -> float:
    """Return the steps per second of all processes, by the slowest of each round."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        start = context.Barrier(processes)
        times = [manager.list() for _ in range(processes)]
        workers = [
            context.Process(target=worker, args=(threads, kind, options, start, process_times))
            for process_times in times
        ]
        for process in workers:
            process.start()
        for process in workers:
            process.join()
        slowest = [max(round_) for round_ in zip(*map(list, times), strict=True)]
    return processes * options.steps / statistics.median(slowest)


def compared(options: argparse.Namespace) -> Table:
    """Return the table of one process of two threads beside two of one."""
    table = Table("steps", "1 process, 2 threads: steps/s", "2 processes, 1 thread: steps/s", "ratio")
    for kind in ("fp32", "bf16"):
        one, two = throughput(1, 2, kind, options), throughput(2, 1, kind, options)
        table.add_row(kind, f"{one:.2f}", f"{two:.2f}", f"{two / one:.2f}")
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--share", type=float, default=0.4, help="kept channels of a group")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=1, help="of a block")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="the first is fp32")
    parser.add_argument(
        "--stages", nargs="*", choices=PLAIN, default=PLAIN, help="beside masked and packed fine-tuning"
    )
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--processes", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console()
    load = f"load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores"
    console.print(f"torch {torch.__version__}, {options.threads} threads, {load} before, {time.strftime('%Y-%m-%d')}")
    if line := emulation("bf16", torch.device("cpu")):
        console.print(line, highlight=False)
        logging.getLogger("suite.arithmetic").setLevel(logging.ERROR)  # one line is enough
    console.print(compared(options) if options.processes else measured(options))


if __name__ == "__main__":
    main()
