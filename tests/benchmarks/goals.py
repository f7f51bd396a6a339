"""Goals of packed networks on a CPU; `python -m tests.benchmarks.goals [--only resnet50]`.

Each line is a ratio of CPU times in one process with one thread. Three runs alternate in all orders: numerator, denominator and
numerator again, the null test. A network runs in its fastest execution: plain torch, tuned, and, if installed, ONNX Runtime and
OpenVINO; with `--compile` also torch.compile. The two lines about ONNX Runtime compare two runtimes of one network.

Plans are random, of the shape of DSP's (`baselines/random_groups.py`) or of whole filters. Latency does not depend on the
weights, which are random too. "met" and "missed" need an interval apart from the goal.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from baselines.random_groups import random_groups_planner
from suite import models
from suite.graph import Graph
from suite.measure import Timing, claim, executions, networks
from suite.measure.bounds import layer_bounds, measured_peak, total_ms
from suite.measure.latency import ORDERS, median_interval
from suite.measure.protocol import set_up_torch
from suite.pack import pack, save
from suite.plan import Budget, PruningPlan
from suite.records.origin import device_name
from suite.select import filter_planner, meet
from suite.timing import Run, cpu_seconds, least_ms, rounds


@dataclass(frozen=True)
class Side:
    """A network of a ratio.

    removed  share of the MACs; 0 is the dense network
    groups   filter groups of a layer; 1 removes whole filters, residual stream included
    runtime  execution to use; "" is the fastest
    """

    removed: float = 0.0
    groups: int = 1
    runtime: str = ""

    @property
    def name(self) -> str:
        """Words for the table."""
        kind = f"G={self.groups} -{self.removed:.0%}" if self.groups > 1 else f"filters -{self.removed:.0%}"
        return f"{kind if self.removed else 'dense'} {self.runtime}".strip()


@dataclass(frozen=True)
class Goal:
    """Least ratio of the time of `above` to the time of `below`."""

    model: str
    batch: int
    above: Side
    below: Side
    at_least: float

    @property
    def name(self) -> str:
        """Name in the table, and for `--only`."""
        return f"{self.model} batch {self.batch}: {self.above.name} / {self.below.name}"


def _beside_onnx(removed: float) -> tuple[Side, Side]:
    return Side(removed, runtime=executions.ONNX), Side(removed, runtime=executions.TUNED)


GOALS = (
    Goal("resnet50", 1, *_beside_onnx(0.0), 0.95),
    Goal("resnet50", 1, *_beside_onnx(0.7), 0.95),
    Goal("resnet50", 1, Side(), Side(0.7, 2), 1.7),
    Goal("resnet50", 1, Side(0.7), Side(0.7, 2), 0.85),
    Goal("resnet18", 8, Side(), Side(0.6, 2), 1.6),
    Goal("resnet18", 1, Side(), Side(0.6, 2), 1.0),
    Goal("resnet56", 128, Side(), Side(0.64, 2), 1.4),
    Goal("resnet56", 128, Side(), Side(0.64, 4), 1.2),
    Goal("resnet56", 1, Side(), Side(0.64, 2), 1.0),
    Goal("resnet56", 1, Side(), Side(0.64, 4), 1.0),
)


def measure(goal: Goal, batch: int, options: argparse.Namespace, scratch: Path) -> list[str]:
    """Return one line of the table."""
    pixels, classes = (32, 10) if goal.model == "resnet56" else (224, 1000)
    torch.manual_seed(0)
    model = models.build(goal.model, classes).eval()
    graph = Graph(model, (3, pixels, pixels))
    timing = Timing(batch=batch, layout="channels_last")
    images = executions.random_images(timing, (3, pixels, pixels))
    plans, runs = [], list[Mapping[str, Run]]()
    draw = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(conv.filters, generator=draw) for name, conv in graph.convs.items()}
    filters = filter_planner(graph, scores, ranking="layer")
    for number, side in enumerate((goal.above, goal.below)):
        planner = random_groups_planner(graph, side.groups, 0) if side.groups > 1 else filters
        plans.append(meet(planner, graph, Budget(share=side.removed)).plan if side.removed else PruningPlan({}))
        path, packed = scratch / str(number), pack(model, graph, plans[-1])
        save(packed, path, model=goal.model, classes=classes, input_shape=graph.input_shape, about={})
        also, only = options.also, [side.runtime] * bool(side.runtime)
        network = networks.load(str(path))
        runs.append(executions.executions(network, images, timing, also=also, only=only, strict=False).runs)
    chosen = [_fastest(candidates) for candidates in runs]
    above, below = (candidates[name] for candidates, name in zip(runs, chosen, strict=True))
    interleaved = rounds({"above": above, "below": below, "null": above}, "cpu", permute=True, clock=cpu_seconds)
    blocks = list(itertools.islice(interleaved, options.blocks))
    ms = {name: np.array([1e3 * block[name] for block in blocks]) for name in blocks[0]}
    ratio, null = median_interval(ms["above"] / ms["below"]), median_interval(ms["above"] / ms["null"])
    peak = measured_peak("cpu", images.dtype, 1)
    bounds = [total_ms(layer_bounds(graph, plan, peak, batch=batch, dtype=images.dtype)) for plan in plans]
    macs = [graph.macs(plan).total for plan in plans]
    return [
        goal.name,
        str(batch),
        *(f"{np.median(ms[name]):.1f} {run}" for name, run in zip(("above", "below"), chosen, strict=True)),
        f"{macs[0] / macs[1]:.2f}",
        f"{bounds[0] / bounds[1]:.2f}",
        _interval(ratio),
        _interval(null),
        claim.verdict(ratio, null),
        f"{goal.at_least} {_state(goal.at_least, ratio)}" if batch == goal.batch else "",
    ]


def _fastest(candidates: Mapping[str, Run]) -> str:
    """Return the execution of the least CPU time."""
    if len(candidates) == 1:
        return next(iter(candidates))
    ms = least_ms(candidates, "cpu", seconds=2, counts=range(3, 30), clock=cpu_seconds)
    return min(ms, key=ms.__getitem__)


def _interval(values: claim.Interval) -> str:
    return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]"


def _state(at_least: float, ratio: claim.Interval) -> str:
    return "met" if ratio[1] >= at_least else "missed" if ratio[2] < at_least else "open"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Time packed networks beside the goals of the project, in CPU time.")
    parser.add_argument(
        "--only", default="", help="lines whose name contains this, as 'resnet50' or 'batch 1: dense / G=2'"
    )
    parser.add_argument("--batch", type=int, help="this batch size; default: that of the goal")
    parser.add_argument("--blocks", type=int, default=5 * ORDERS, help="timed blocks of a line (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="try torch.compile, too")
    options = parser.parse_args()
    goals = [goal for goal in GOALS if options.only in goal.name]
    if not goals:
        parser.error(f"--only {options.only!r} is in none of: {', '.join(goal.name for goal in GOALS)}")
    if options.blocks < ORDERS or (options.batch is not None and options.batch < 1):
        parser.error(f"--blocks takes {ORDERS} or more, and --batch 1 or more")
    set_up_torch(1)
    torch.set_flush_denormal(True)
    also, missing = executions.reference(Timing(protocol="full"))
    options.also = [name for name in also if options.compile or name != executions.COMPILED]
    console = Console(width=200)
    table = Table(
        *("network, above / below", "batch", "above ms", "below ms", "MACs x", "bound x", "ratio [95 %]", "null test"),
        *("verdict", "goal"),
        title=f"CPU time, fp32, one thread, {device_name('cpu')}, torch {torch.__version__}, {datetime.date.today()}",
        caption="; ".join(f"{name}: {reason}" for name, reason in missing.items()),
    )
    for goal in goals:
        with tempfile.TemporaryDirectory() as scratch:
            line = measure(goal, options.batch or goal.batch, options, Path(scratch))
        console.print(" | ".join(line), markup=False, soft_wrap=True)
        table.add_row(*(cell.replace("[", r"\[") for cell in line))
    console.print(table)


if __name__ == "__main__":
    main()
