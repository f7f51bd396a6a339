"""Speed-up of packed networks beside the fastest dense execution.

    python -m tests.benchmarks.packed [--quick] [--only resnet50] [--batch 8] [--layers] [--profile]

Plans are random, with the shape of DSP's (`baselines/random_groups.py`). Latency does not depend on the weights, which are
random too.

The dense network gets all that the packed one gets (`suite.pack.tuned`: both layouts, batch norm folded, bias, sum and ReLU in
the convolution, weights laid out ahead), and is also timed as plain torch in channels_last, with `--compile` under
torch.compile; the fastest of these is "dense". Both are timed in alternating blocks of one process. Where packed is slower, the
row reads "dense": that is the network to deploy. Realised share = measured speed-up / theoretical one.

On a machine that others use as well, one thread (`--threads 1`) disturbs the ratio least: two wait for each other after every
layer, and the packed network has as many layers as the dense one, only shorter ones.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from baselines.random_groups import random_groups_planner
from suite import models
from suite.contract import Budget, PruningPlan
from suite.graph import Graph
from suite.measure import Timing, compare
from suite.measure.__main__ import print_losses
from suite.measure.executions import COMPILED, PLAIN
from suite.measure.protocol import Protocol
from suite.pack import Choice, pack, save
from suite.pack.executions import EXECUTIONS
from suite.select import meet


@dataclass(frozen=True)
class Target:
    """Row of the table: a network, its plan, the aim at one batch size."""

    model: str
    groups: int
    removed: float
    pixels: int
    batch: int
    at_least: float
    aim: float

    @property
    def name(self) -> str:
        """Name in the table, and for `--only`."""
        return f"{self.model} G={self.groups} -{self.removed:.0%}"


TARGETS = (
    Target("resnet50", 2, 0.70, 224, 8, 2.0, 2.6),
    Target("resnet18", 2, 0.60, 224, 8, 1.6, 2.0),
    Target("resnet56", 2, 0.64, 32, 128, 1.2, 1.6),
    Target("resnet56", 4, 0.64, 32, 128, 1.2, 1.6),
)
BATCHES = (1, 8, 32, 128)
QUICK = Protocol(warmup_s=0.2, seconds=5, min_blocks=18, precision=None)
DURATION = Protocol(warmup_s=0.5, seconds=40, min_blocks=30, precision=0.03)


def layer_table(choice: Choice) -> Table:
    """Return a table of each layer's executions and their milliseconds."""
    names = [name for name in EXECUTIONS if any(name in milliseconds for milliseconds in choice.layer_ms.values())]
    table = Table("layer", *names, "chosen", title=f"milliseconds of each layer, batch {choice.batch}, {choice.layout}")
    for layer, milliseconds in choice.layer_ms.items():
        table.add_row(
            layer,
            *(f"{milliseconds[name]:.2f}" if name in milliseconds else "" for name in names),
            choice.layers[layer],
        )
    return table


def measure(target: Target, batch: int, options: argparse.Namespace, console: Console, scratch: Path) -> list[str]:
    """Return one line of the table."""
    torch.manual_seed(0)
    classes = 1000 if target.pixels > 32 else 10
    model = models.build(target.model, classes).eval()
    graph = Graph(model, (3, target.pixels, target.pixels))
    plan = meet(random_groups_planner(graph, target.groups, seed=0), graph, Budget(share=target.removed)).plan
    theoretical = graph.dense_macs.total / graph.macs(plan).total
    paths = scratch / "dense", scratch / "packed"
    for path, kept in zip(paths, (PruningPlan({}), plan), strict=True):
        packed = pack(model, graph, kept)
        save(packed, path, model=target.model, classes=classes, input_shape=graph.input_shape, about={})
    also = (PLAIN, COMPILED) if options.compile else (PLAIN,)
    timing = Timing(batch=batch, layout="channels_last")
    duration = QUICK if options.quick else DURATION
    comparison = compare(*paths, timing, also=also, duration=duration, layers=options.profile)
    result, choices = comparison.measurement(), comparison.choices
    if options.profile:
        print_losses(console, comparison.losses)
    if options.layers and choices[1].layer_ms:
        console.print(layer_table(choices[1]))
    ratio, low, high = result.ratio
    trusted = result.verdict != "not trusted"
    return [
        target.name,
        str(batch),
        f"{theoretical:.2f}",
        f"{np.median(result.dense_ms):.1f} {comparison.first.chosen[0]}",
        f"{np.median(result.packed_ms):.1f} {comparison.first.chosen[1]}",
        f"{ratio:.2f} [{low:.2f}, {high:.2f}]" if trusted else "-",
        f"{target.at_least} ({target.aim})" if batch == target.batch else "",
        f"{ratio / theoretical:.0%}" if trusted else "-",
        f"{result.null[0]:.3f} [{result.null[1]:.3f}, {result.null[2]:.3f}] x{result.attempts}",
        f"{result.verdict}; {comparison.deployed}",
        " ".join(f"{name} {count}" for name, count in Counter(choices[1].layers.values()).most_common()),
        " / ".join(f"{comparison.limits[name] / 2**20:.0f}" for name in ("packed_peak_bytes", "dense_peak_bytes")),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Time packed networks beside the fastest dense execution.")
    parser.add_argument("--quick", action="store_true", help="5 s a row instead of up to 40")
    parser.add_argument("--only", default="", help="rows whose name contains this, as 'resnet56 G=4'")
    parser.add_argument("--batch", type=int, help="this batch size; default: that of the target and 1, 8, 32, 128")
    parser.add_argument("--targets", action="store_true", help="only the batch size of the target")
    parser.add_argument("--layers", action="store_true", help="print the milliseconds of each layer's executions")
    parser.add_argument("--profile", action="store_true", help="print the milliseconds of each node in both networks")
    parser.add_argument("--compile", action="store_true", help="time torch.compile as one more dense execution")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    targets = [target for target in TARGETS if options.only in target.name]
    if not targets:
        parser.error(f"--only {options.only!r} is in none of: {', '.join(target.name for target in TARGETS)}")
    if options.threads < 1 or (options.batch is not None and options.batch < 1):
        parser.error("--threads and --batch take 1 or more")
    torch.set_num_threads(options.threads)
    console = Console(width=220)
    table = Table(
        *("network", "batch", "theor. x", "dense ms", "packed ms", "speed-up x [95 %]", "at least (aim)", "realised"),
        *("null test x measurements", "verdict; deployed", "executions", "peak MiB packed / dense"),
        title=f"packed beside the fastest dense network, fp32, {options.threads} threads, {platform.machine()}, torch "
        f"{torch.__version__}, {datetime.date.today()}",
    )
    for target in targets:
        batches = (options.batch,) if options.batch else (target.batch,) if options.targets else BATCHES
        for batch in batches:
            with tempfile.TemporaryDirectory() as scratch:
                line = measure(target, batch, options, console, Path(scratch))
            console.print(" | ".join(line), markup=False)
            table.add_row(*(cell.replace("[", r"\[") for cell in line))
    console.print(table)


if __name__ == "__main__":
    main()
