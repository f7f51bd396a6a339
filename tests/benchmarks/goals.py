"""Goals of packed networks on a CPU; `python -m tests.benchmarks.goals [--only resnet50] [--precision int8]`.

Each line is a ratio of CPU times in one process with one thread. Three runs alternate in all orders: numerator, denominator and
numerator again, the null test. A goal about pruning has a line for every runtime, with both networks in that runtime: torch,
tuned, and, if installed, ONNX Runtime and OpenVINO; with `--compile` also torch.compile. The first line has the runtime in which
the network above is fastest. If the network below is fastest in another one, an extra line "across runtimes" compares these two;
it decides no goal. The two goals about ONNX Runtime compare two runtimes of one network.

Plans are random, of the shape of DSP's (`baselines/random_groups.py`) or of whole filters, unless `--packed FILE` gives a
finished network. Latency does not depend on the weights, which are random too. "met" and "missed" are claims about ratio / goal
by the rule of `suite.measure.claim`: the interval must lie apart from that of the null test. All else is "open".
"""

from __future__ import annotations

import argparse
import dataclasses
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
from torch import Tensor

from baselines.random_groups import random_groups_planner
from suite import arithmetic, models
from suite import pack as packing
from suite.graph import Graph
from suite.measure import Timing, claim, executions, int8, networks
from suite.measure.bounds import layer_bounds, measured_peak, total_ms
from suite.measure.executions import COMPILED, ONNX, OPENVINO, TUNED
from suite.measure.latency import ORDERS, median_interval
from suite.measure.protocol import set_up_torch
from suite.pack.portable import UNIFORM
from suite.plan import Budget, Planner, PruningPlan
from suite.records.origin import device_name
from suite.select import filter_planner, meet
from suite.timing import Run, cpu_seconds, least_ms, rounds

RUNTIMES = {"fp32": (TUNED, ONNX, OPENVINO), "bf16": (OPENVINO,), "int8": (ONNX,)}
"""Precision -> runtimes in which networks are compared."""
LEAST_MS = 8
"""Least CPU milliseconds of a timed block of runs."""
Pair = tuple[str, str]
"""Runtimes of the networks above and below."""


@dataclass(frozen=True)
class Side:
    """A network of a ratio.

    removed  share of the MACs; 0 is the dense network
    groups   filter groups of a layer; 1 removes whole filters, residual stream included
    """

    removed: float = 0.0
    groups: int = 1

    @property
    def name(self) -> str:
        """Words for the table."""
        kind = f"G={self.groups} -{self.removed:.0%}" if self.groups > 1 else f"filters -{self.removed:.0%}"
        return kind if self.removed else "dense"


@dataclass(frozen=True)
class Goal:
    """Least ratio of the time of `above` to the time of `below`.

    runtimes   of a goal about two runtimes; None: about pruning, in each runtime
    packed     file of the network below; None: it has a random plan
    """

    model: str
    batch: int
    above: Side
    below: Side
    at_least: float
    runtimes: Pair | None = None
    packed: Path | None = None

    @property
    def name(self) -> str:
        """Name in the table, and for `--only`."""
        return f"{self.model} batch {self.batch}: {self.above.name} / {self.below.name}"


GOALS = (
    Goal("resnet50", 1, Side(), Side(), 0.95, (ONNX, TUNED)),
    Goal("resnet50", 1, Side(0.7), Side(0.7), 0.95, (ONNX, TUNED)),
    Goal("resnet50", 1, Side(), Side(0.7, 2), 1.7),
    Goal("resnet50", 1, Side(0.7), Side(0.7, 2), 0.85),
    Goal("resnet18", 8, Side(), Side(0.6, 2), 1.6),
    Goal("resnet18", 1, Side(), Side(0.6, 2), 1.0),
    Goal("resnet56", 128, Side(), Side(0.64, 2), 1.4),
    Goal("resnet56", 128, Side(), Side(0.64, 4), 1.2),
    Goal("resnet56", 1, Side(), Side(0.64, 2), 1.0),
    Goal("resnet56", 1, Side(), Side(0.64, 4), 1.0),
)


def of_precision(goal: Goal, precision: str) -> Goal:
    """Return the goal in a precision; in bf16 that of pruned beside dense is 1."""
    bf16 = precision == "bf16" and not goal.above.removed and goal.below.removed
    return dataclasses.replace(goal, at_least=1.0) if bf16 else goal


def of_file(path: Path) -> Goal:
    """Return the goal of a packed network: no slower than its dense one.

    Raises ValueError if the file is no packed network, or removes nothing.
    """
    network = networks.load(str(path))
    if network.header is None:
        raise ValueError(f"{path} is no packed network of this suite; suite.pack.save writes one")
    graph, plan = networks.graph_and_plan(network)
    removed = 1 - graph.macs(plan).total / graph.macs(PruningPlan({})).total
    if not removed:
        raise ValueError(f"{path} is a dense network: nothing is pruned, so there is nothing to compare")
    groups = max(len(conv.kept_GI) for conv in plan.values())
    return Goal(network.header["model"], 1, Side(), Side(removed, groups), 1.0, packed=path)


def usable(precision: str, *, compiled: bool = False) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the runtimes of a precision that run here, and a reason for each other.

    compiled   torch.compile is one of the runtimes in fp32
    """
    names = RUNTIMES[precision] + (COMPILED,) * (compiled and precision == "fp32")
    _, reasons = executions.reference(_timing(precision))
    if precision == "bf16" and not arithmetic.computes("bf16"):
        reasons[OPENVINO] = f"computes in fp32 on a CPU that has none of {', '.join(arithmetic.CPU_FLAGS['bf16'])}"
    missing = {name: reasons[name] for name in names if name in reasons}
    return tuple(name for name in names if name not in missing), missing


def pairs(goal: Goal, above_ms: Mapping[str, float], below_ms: Mapping[str, float]) -> list[Pair]:
    """Return the runtimes to compare, from the milliseconds of both networks in each.

    A goal about pruning has all runtimes that both networks have, first that in which the network above is fastest. If the
    fastest runtimes of the two differ, they are the last pair.
    """
    if goal.runtimes is not None:
        return [goal.runtimes] if goal.runtimes[0] in above_ms and goal.runtimes[1] in below_ms else []
    if not (above_ms and below_ms):
        return []
    same = [(name, name) for name in sorted(above_ms, key=above_ms.__getitem__) if name in below_ms]
    fastest = min(above_ms, key=above_ms.__getitem__), min(below_ms, key=below_ms.__getitem__)
    return same if fastest[0] == fastest[1] else [*same, fastest]


def verdict_and_state(goal: Goal, pair: Pair, ratio: claim.Interval, null: claim.Interval) -> tuple[str, str]:
    """Return the verdict of a line, and met, missed or open; "" across runtimes."""
    if pair[0] != pair[1] and pair != goal.runtimes:
        return "across runtimes", ""
    middle, low, high = (value / goal.at_least for value in ratio)
    state = {"faster": "met", "slower": "missed"}.get(claim.verdict((middle, low, high), null), "open")
    return claim.verdict(ratio, null), state


def measure(goal: Goal, options: argparse.Namespace, scratch: Path) -> tuple[list[list[str]], dict[str, str]]:
    """Return the lines of a goal, and reasons for the networks without a line."""
    batch = options.batch or goal.batch
    shape, classes = ((3, 32, 32), 10) if goal.model == "resnet56" else ((3, 224, 224), 1000)
    if goal.packed:
        header = packing.header(goal.packed)
        (c, h, w), classes = header["input_shape"], header["classes"]
        shape = c, h, w
    torch.manual_seed(0)
    model = models.build(goal.model, classes).eval()
    graph = Graph(model, shape)
    images = executions.random_images(_timing(options.precision, batch), shape)
    draw = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(conv.filters, generator=draw) for name, conv in graph.convs.items()}
    filters = filter_planner(graph, scores, ranking="layer")
    plans, runs, missing = [], list[Mapping[str, Run]](), {}
    for number, side in enumerate((goal.above, goal.below)):
        if side.removed and goal.packed:
            network = networks.load(str(goal.packed))
            plans.append(networks.graph_and_plan(network)[1])
        else:
            plans.append(_plan(graph, side, filters, options.round_to))
            path, packed = scratch / str(number), packing.pack(model, graph, plans[-1])
            packing.save(packed, path, model=goal.model, classes=classes, input_shape=graph.input_shape, about={})
            network = networks.load(str(path))
        names = options.runtimes if goal.runtimes is None else goal.runtimes[number : number + 1]
        made, reasons = _runs(network, images, options.precision, names)
        runs.append(made)
        missing.update({f"{goal.model}, {side.name}, in {name}": reason for name, reason in reasons.items()})
    macs = [graph.macs(plan).total for plan in plans]
    work = [f"{macs[0] / macs[1]:.2f}", ""]
    if options.precision != "int8":  # torch has no product in int8 that is near the peak of every CPU
        peak = measured_peak("cpu", images.dtype, 1)
        bounds = [total_ms(layer_bounds(graph, plan, peak, batch=batch, dtype=images.dtype)) for plan in plans]
        work[1] = f"{bounds[0] / bounds[1]:.2f}"
    lines = []
    least = [_least_ms(by_name) for by_name in runs]
    for pair in pairs(goal, *least):
        above, below = (by_name[name] for by_name, name in zip(runs, pair, strict=True))
        repeats = max(1, round(LEAST_MS / max(by_name[name] for by_name, name in zip(least, pair, strict=True))))
        ms = _alternate(above, below, options.blocks, repeats)
        ratio, null = median_interval(ms["above"] / ms["below"]), median_interval(ms["above"] / ms["null"])
        verdict, state = verdict_and_state(goal, pair, ratio, null)
        where = [goal.name, str(batch), " / ".join(dict.fromkeys(pair)), options.precision]
        times = [f"{np.median(ms[name]):.1f}" for name in ("above", "below")]
        aim = f"{goal.at_least} {state}" if state and batch == goal.batch else ""
        lines.append([*where, *times, *work, _interval(ratio), _interval(null), verdict, aim])
    return lines, missing


def _plan(graph: Graph, side: Side, filters: Planner, round_to: int) -> PruningPlan:
    """Return a random plan of a side; `filters` plans whole filters."""
    if not side.removed:
        return PruningPlan({})
    planner = random_groups_planner(graph, side.groups, 0) if side.groups > 1 else filters
    return meet(planner, graph, Budget(share=side.removed, round_to=round_to)).plan


def _timing(precision: str, batch: int = 1) -> Timing:
    """Return the conditions of the images: those of int8 are in fp32."""
    return Timing(
        batch=batch, protocol="full", layout="channels_last", precision="bf16" if precision == "bf16" else "fp32"
    )


def _runs(
    network: networks.Network, images: Tensor, precision: str, names: tuple[str, ...]
) -> tuple[dict[str, Run], dict[str, str]]:
    """Return the network in each of these runtimes, and a reason for each that fails."""
    if precision != "int8":
        also = [name for name in names if name != TUNED]
        timing = _timing(precision, len(images))
        made = executions.executions(network, images, timing, also=also, only=names, strict=False)
        return made.runs, made.missing
    packed = network.packed
    assert packed is not None
    has_groups = any(len(conv.weights) > 1 for conv in packed.convs())
    try:
        runs: dict[str, Run] = {"fastest in fp32": int8.prepared(packed, images)[0]}
        for name in UNIFORM if has_groups else ():
            runs[name] = int8.prepared(packed, images, execution=name)[0]
    except ValueError as error:
        return {}, {ONNX: str(error)}
    ms = _least_ms(runs)
    return {ONNX: runs[min(ms, key=ms.__getitem__)]}, {}


def _least_ms(runs: Mapping[str, Run]) -> dict[str, float]:
    """Return the least CPU milliseconds of each run."""
    return least_ms(runs, "cpu", seconds=2, counts=range(3, 30), clock=cpu_seconds) if runs else {}


def _alternate(above: Run, below: Run, blocks: int, repeats: int) -> dict[str, np.ndarray]:
    """Return the CPU milliseconds of above, below and above again in each block."""
    runs = {"above": above, "below": below, "null": above}
    times = list(itertools.islice(rounds(runs, "cpu", repeats, permute=True, clock=cpu_seconds), blocks))
    return {name: np.array([1e3 * block[name] for block in times]) for name in runs}


def _interval(values: claim.Interval) -> str:
    return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Time packed networks beside the goals of the project, in CPU time.")
    parser.add_argument(
        "--only", default="", help="lines whose name contains this, as 'resnet50' or 'batch 1: dense / G=2'"
    )
    parser.add_argument(
        "--packed",
        type=Path,
        metavar="FILE",
        help="this packed network beside its dense one, at batch 1 unless stated; the goal is 1.0",
    )
    parser.add_argument("--precision", choices=RUNTIMES, default="fp32", help="of both networks (default: %(default)s)")
    parser.add_argument("--batch", type=int, help="this batch size; default: that of the goal")
    parser.add_argument(
        "--round-to", type=int, default=1, metavar="N", help="kept channels of a group are multiples of N (default: 1)"
    )
    parser.add_argument("--blocks", type=int, default=5 * ORDERS, help="timed blocks of a line (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="try torch.compile, too")
    options = parser.parse_args()
    if options.packed and (options.only or options.round_to > 1):
        parser.error("--packed has one network and its plan: it takes neither --only nor --round-to")
    try:
        chosen = [of_file(options.packed)] if options.packed else [goal for goal in GOALS if options.only in goal.name]
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    goals = [of_precision(goal, options.precision) for goal in chosen]
    options.runtimes, missing = usable(options.precision, compiled=options.compile)
    if not options.runtimes:
        why = "; ".join(f"{name} {reason}" for name, reason in missing.items())
        parser.error(f"--precision {options.precision}: {why}. Take --precision fp32")
    if not goals:
        parser.error(f"--only {options.only!r} is in none of: {', '.join(goal.name for goal in GOALS)}")
    if options.blocks < ORDERS or options.round_to < 1 or (options.batch is not None and options.batch < 1):
        parser.error(f"--blocks takes {ORDERS} or more, --round-to and --batch 1 or more")
    set_up_torch(1)
    torch.set_flush_denormal(True)
    console = Console(width=200)
    table = Table(
        *("network, above / below", "batch", "runtime", "precision", "above ms", "below ms", "MACs x", "bound x"),
        *("ratio [95 %]", "null test", "verdict", "goal"),
        title=f"CPU time, one thread, {device_name('cpu')}, torch {torch.__version__}, {datetime.date.today()}",
    )
    for goal in goals:
        if not set(goal.runtimes or ()) <= set(options.runtimes):
            missing[f"{goal.name}, {' / '.join(goal.runtimes or ())}"] = f"not both run in {options.precision} here"
            continue
        with tempfile.TemporaryDirectory() as scratch:
            lines, reasons = measure(goal, options, Path(scratch))
        missing.update(reasons)
        for line in lines:
            console.print(" | ".join(line), markup=False, soft_wrap=True)
            table.add_row(*(cell.replace("[", r"\[") for cell in line))
    table.caption = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
    console.print(table)


if __name__ == "__main__":
    main()
