"""Everything that needs a GPU, in pieces of a few minutes that can be done one call after another (25 minutes in all).

    python -m suite.measure.gpu                        # does what is missing, starts nothing after 6 minutes; call it again
    python -m suite.measure.gpu --device cpu --smoke   # the same on small networks, without a GPU
    python -m suite.measure.gpu --show                 # the table of what was done, on any machine

Each piece leaves a JSON file in RESULTS/gpu, named by its device, which decides what is done; staircases go to
RESULTS/staircase. Plans are random, with the shape of DSP's (each group keeps its own share of the channels) or of channel
pruning: latency does not depend on the weights. Every row says so.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from suite import cli, models, records
from suite import pack as packing
from suite.contract import Budget, PruningPlan
from suite.files import write_json
from suite.graph import Graph
from suite.measure import beside, processes, staircase
from suite.run import timed_stage
from suite.select import channel_planner, filter_planner, meet
from suite.stages import Timing

_HEADLINE = 2
"""Cases that are also tried under torch.compile."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, a random plan and how it is timed. `groups` 1 prunes whole filters, the residual stream included."""

    model: str
    size: int
    classes: int
    groups: int
    cut: float
    timing: Timing

    @property
    def name(self) -> str:
        """Of the piece and its file."""
        kind = f"g{self.groups}" if self.groups > 1 else "channels"
        timing = self.timing
        return f"{self.model}_{kind}_{self.cut:.0%}_batch{timing.batch}_{timing.precision}_{timing.layout}".replace(
            "%", "pct"
        )


def cases(device: Literal["cpu", "cuda"], smoke: bool) -> list[Case]:
    """The headline cases first. Batch 128 is the one that saturates the GPU with images of 224x224."""
    if smoke:
        timing = Timing(device=device, batch=2, protocol="quick")
        return [Case(model="resnet8", size=32, classes=10, groups=g, cut=0.5, timing=timing) for g in (2, 1)]
    fast = [Timing(device=device, batch=batch, precision="fp16", layout="channels_last") for batch in (128, 32, 1)]
    exact = [Timing(device=device, batch=128)]
    shapes = [("resnet50", 2, 0.7), ("resnet50", 1, 0.7), ("resnet18", 2, 0.6)]
    return [
        Case(model=model, size=224, classes=1000, groups=groups, cut=cut, timing=timing)
        for timing in (*fast, *exact)
        for model, groups, cut in shapes
    ]


def random_plan(graph: Graph, groups: int, budget: Budget, seed: int = 0) -> PruningPlan:
    """A plan that meets the budget, at random."""
    draw = torch.Generator().manual_seed(seed)
    if groups == 1:
        scores = {name: torch.rand(conv.filters, generator=draw) for name, conv in graph.convs.items()}
        return meet(filter_planner(graph, scores, ranking="layer"), graph, budget).plan
    pruned = {name: conv for name, conv in graph.convs.items() if conv.prunable}
    order = {
        n: torch.stack([torch.randperm(c.channels, generator=draw) for _ in range(groups)]) for n, c in pruned.items()
    }
    member = {n: torch.randperm(c.filters, generator=draw) % groups for n, c in pruned.items()}
    return meet(channel_planner(order, member), graph, budget).plan


def _saved(case: Case, folder: Path) -> tuple[Graph, PruningPlan, Path, Path]:
    """The dense and the packed network of a case, as files."""
    torch.manual_seed(0)
    model, shape = models.build(case.model, case.classes).eval(), (3, case.size, case.size)
    graph = Graph(model, shape)
    plan = random_plan(graph, case.groups, Budget(share=case.cut))
    dense, packed = folder / "dense", folder / "packed"
    for path, what in ((dense, PruningPlan({})), (packed, plan)):
        about: dict[str, Any] = {"model": case.model, "classes": case.classes, "input_shape": shape, "about": {}}
        packing.save(packing.pack(model, graph, what), path, **about)
    return graph, plan, dense, packed


def _about(case: Case, graph: Graph, plan: PruningPlan) -> dict[str, Any]:
    return {
        "case": case.name,
        "plan": f"random, {case.groups} groups, seed 0; weights as initialised",
        "theoretical_x": graph.dense_macs.total / graph.macs(plan).total,
        **{name: getattr(case.timing, name) for name in ("batch", "precision", "layout", "protocol")},
        "provenance": records.provenance(case.timing.device),
    }


def time_case(case: Case) -> dict[str, Any]:
    """The latency columns of a case, eager and as a graph, by the protocol of its timing; every layer's times."""
    with tempfile.TemporaryDirectory() as scratch:
        graph, plan, dense, packed = _saved(case, Path(scratch))
        job = timed_stage.Job(dense=dense, packed=packed, timing=case.timing, threads=torch.get_num_threads())
        columns, choices = timed_stage.measured_columns(job, graph)
    return {**_about(case, graph, plan), **columns, "layer_ms": [choice.layer_ms for choice in choices]}


def compile_case(case: Case) -> dict[str, Any]:
    """Both networks by torch.compile too, in graphs and in one process: the fastest of each stand beside each other."""
    with tempfile.TemporaryDirectory() as scratch:
        graph, plan, dense, packed = _saved(case, Path(scratch))
        shape = (graph.input_shape[0], graph.input_shape[1], graph.input_shape[2])
        job = beside.Job(
            network=str(packed),
            dense=str(dense),
            classes=case.classes,
            shape=shape,
            timing=case.timing,
            threads=torch.get_num_threads(),
            also=(beside.COMPILED,),
        )
        measured = beside.measure(job)
    columns = processes.columns([measured.found], case.timing.device)
    about = {"leg": "graph", "protocol": "full, in one process"}
    return {**_about(case, graph, plan), **columns, **measured.about_dense(), **about}


def climb(kernel: int, device: str, smoke: bool, results: Path) -> dict[str, Any]:
    """A staircase in every precision."""
    sizes = (
        {"filters": 8, "channels": 8, "size": 8, "batch": 2, "step": 2}
        if smoke
        else {"filters": 256, "channels": 256, "size": 14, "batch": 128, "step": 2}
    )
    options = [f"--{name}={value}" for name, value in {**sizes, "kernel": kernel}.items()]
    if staircase.main([*options, f"--device={device}", f"--results={results}"]):
        raise ValueError(f"the staircase of a {kernel}x{kernel} convolution failed")
    return {"kernel": kernel, "arguments": options, "provenance": records.provenance(device)}


def pieces_of(device: Literal["cpu", "cuda"], smoke: bool, results: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """By name, what matters most first."""
    first, others = cases(device, smoke)[:_HEADLINE], cases(device, smoke)[_HEADLINE:]
    pieces = {case.name: functools.partial(time_case, case) for case in first}
    pieces |= {
        f"staircase_{kernel}x{kernel}": functools.partial(climb, kernel, device, smoke, results) for kernel in (1, 3)
    }
    if device == "cuda":
        pieces |= {f"{case.name}_compiled": functools.partial(compile_case, case) for case in first}
    return pieces | {case.name: functools.partial(time_case, case) for case in others}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m suite.measure.gpu", description=__doc__)
    result.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    result.add_argument("--smoke", action="store_true", help="small networks and the quick protocol, in RESULTS/smoke")
    result.add_argument(
        "--minutes", type=float, default=6, metavar="M", help="start no piece after M minutes (default: 6)"
    )
    result.add_argument("--show", action="store_true", help="measure nothing: print what RESULTS/gpu has")
    result.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    return result


def main() -> int:
    """Exit status: 0 all is done, 1 a piece failed and the others are done, 2 bad arguments, 75 call it again."""
    arguments = parser().parse_args()
    cli.configure_logging()
    console, ends = Console(width=None if sys.stdout.isatty() else 150), time.monotonic() + 60 * arguments.minutes
    results = cli.results_of(arguments)
    if arguments.show:
        return _show(results, console)
    try:
        device = cli.device_of(arguments.device)
        assert device in ("cpu", "cuda")
        if device == "cpu" and not arguments.smoke:
            raise ValueError("--device cpu is for trying the script: it takes hours with networks of this size")
    except ValueError as error:
        sys.stderr.write(f"suite.measure.gpu: {error}, or try --device cpu --smoke\n")
        return 2
    pieces = pieces_of("cuda" if device == "cuda" else "cpu", arguments.smoke, results)
    paths = {name: results / "gpu" / f"{device}_{name}.json" for name in pieces}
    for name, piece in pieces.items():
        if paths[name].is_file():
            continue
        if time.monotonic() > ends:
            console.print(f"stopped before {name}; call the same command again")
            return 75
        try:
            write_json(paths[name], piece())
        except Exception as error:  # of many kinds: ours, CUDA's, a compiler's
            sys.stderr.write(f"suite.measure.gpu: {name} failed: {type(error).__name__}: {error}\n")
            continue
        console.print(f"done {name}", highlight=False)
    done = [path for path in paths.values() if path.is_file()]
    _print(done, console)
    return int(len(done) < len(paths))


def _show(results: Path, console: Console) -> int:
    paths = sorted((results / "gpu").glob("*.json"))
    if not paths:
        sys.stderr.write(
            f"suite.measure.gpu: {results / 'gpu'} has no measurement yet; leave out --show where a GPU is\n"
        )
        return 2
    _print(paths, console)
    return 0


def _print(paths: list[Path], console: Console) -> None:
    rows = [row for row in (json.loads(path.read_text()) for path in paths) if "verdict" in row]
    for table in (_speedups(rows), _executions(rows), _layers(rows)):
        if table.row_count:
            console.print(table)


def _new_table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for name in headings:
        table.add_column(name, no_wrap=name in ("case", "speed-up"))
    return table


def _speedups(rows: list[dict[str, Any]]) -> Table:
    headings = ("case", "leg", "dense ms", "packed ms", "speed-up", "theoretical", "realised", "verdict", "commit")
    table = _new_table("Random plans of DSP-like shape, beside the fastest dense network", *headings)
    for row in rows:
        trusted = row["verdict"] != "not trusted"
        gain = f"{row['speedup_x']:.2f} [{row['speedup_low_x']:.2f}, {row['speedup_high_x']:.2f}]" if trusted else ""
        realised = f"{row['speedup_x'] / row['theoretical_x']:.2f}" if trusted else ""
        times = (f"{row[name]:.3f}" for name in ("dense_ms", "packed_ms"))
        about = row["verdict"], row["provenance"]["commit"][:7]
        table.add_row(row["case"], row["leg"], *times, gain, f"{row['theoretical_x']:.2f}", realised, *about)
    return table


def _executions(rows: list[dict[str, Any]]) -> Table:
    """Of those that were also compiled."""
    rows = [row for row in rows if "dense_executions_ms" in row]
    names = sorted({name for row in rows for name in (*row["dense_executions_ms"], *row["executions_ms"])})
    table = _new_table("Whole networks as graphs, ms", "case", "network", *names)
    for row in rows:
        for network, column in (("dense", "dense_executions_ms"), ("packed", "executions_ms")):
            cells = (f"{row[column][name]:.3f}" if name in row[column] else "" for name in names)
            table.add_row(row["case"], network, *cells)
    return table


def _layers(rows: list[dict[str, Any]]) -> Table:
    """Sums over the layers that had a choice of both, each by the fastest execution of its kind."""
    headings = ("case", "network", "layers", "cuDNN", "Triton", "Triton chosen")
    table = _new_table("Layers with a choice, ms in all", *headings)
    for row in rows:
        for network, layers in zip(("dense", "packed"), row.get("layer_ms", ()), strict=False):
            both = [
                tuple(
                    min((ms for name, ms in one.items() if name.startswith("triton") == triton), default=float("inf"))
                    for triton in (False, True)
                )
                for one in layers.values()
            ]
            both = [pair for pair in both if float("inf") not in pair]
            if both:
                cudnn, triton = zip(*both, strict=True)
                executions = row["layers"][network]["executions"]
                chosen = sum(count for name, count in executions.items() if name.startswith("triton"))
                sums = (f"{sum(kind):.3f}" for kind in (cudnn, triton))
                table.add_row(row["case"], network, str(len(both)), *sums, str(chosen))
    return table


if __name__ == "__main__":
    raise SystemExit(main())
