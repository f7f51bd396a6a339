"""Error of predicted latency over plans; `python -m tests.benchmarks.prediction [--methods]`.

A table of layer times is measured once. Other random plans, and with --methods plans of methods on the public ResNet-20, are
then packed and timed beside the dense network, in CPU time with one thread. Prints the error of the predicted share of the
dense time that is left, in percent of it and in points; writes the numbers and a figure into RESULTS/prediction.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import torch
from torch import nn

from baselines.random_groups import random_groups_planner
from suite import models
from suite.files import write_text
from suite.graph import Graph
from suite.grids import latency_budget_short
from suite.measure import Timing, layer_times
from suite.measure.executions import random_images
from suite.measure.layer_times import LayerTable
from suite.measure.protocol import set_up_torch
from suite.plan import Budget, PruningPlan, Runtime
from suite.records.origin import device_name
from suite.report.figures import style
from suite.run import Context, execute
from suite.run.pruned_stage import _start
from suite.run.workspace import Workspace
from suite.select import filter_planner, meet
from suite.stages import Stage
from suite.timing import cpu_seconds, least_ms

KINDS = ("filters by layer", "filters over all layers", "two groups", "untied filters")
METHODS_MODEL, SHARES = "resnet20_a", (0.2, 0.3, 0.4, 0.5)
"""Network of the grid whose methods are timed, and shares of the predicted time that they remove."""
Case = tuple[str, nn.Module, Graph, PruningPlan]
"""Kind, network before pruning, its graph, plan."""


def main() -> int:
    """Print and write the errors; return 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=METHODS_MODEL)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--plans", type=int, default=200, help="held-out random plans")
    parser.add_argument("--methods", action="store_true", help=f"plans of methods, too (--model {METHODS_MODEL})")
    parser.add_argument("--train", type=int, default=layer_times.PLANS, help="plans of the table")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no plan after so many seconds")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--layout", choices=("contiguous", "channels_last"), default="contiguous")
    parser.add_argument("--runtime", choices=get_args(Runtime), default="torch")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    options = parser.parse_args()
    if min(options.batch, options.plans, options.train) < 1:
        parser.error("--batch, --plans and --train take 1 or more")
    if options.methods and options.model != METHODS_MODEL:
        parser.error(f"--methods: the methods' base network is a {METHODS_MODEL}, and --model is {options.model}")
    set_up_torch(1)
    layer_times.PLANS = options.train
    shape = (3, 224, 224) if options.model in ("resnet18", "resnet50") else (3, 32, 32)
    conditions = {name: getattr(options, name) for name in ("batch", "precision", "layout", "runtime")}
    timing = Timing(**conditions, protocol="quick", threads=1)
    try:
        model = models.build(options.model, 10).eval()
        lines = measure(model, Graph(model, shape), timing, options)
    except ValueError as error:
        parser.error(str(error))
    if lines.empty:
        parser.error(f"--seconds {options.seconds:g}: the table alone took longer, and no plan was timed; give more")
    about = f"{options.model} in {options.runtime} {options.precision} {options.layout} batch {options.batch}"
    for kind in ("all random", *lines["kind"].unique()):
        own = lines[lines["kind"].isin(KINDS) if kind == "all random" else lines["kind"] == kind]
        if len(own):
            sys.stdout.write(f"{about}, {kind}: {summary(own)}\n")
    path = options.results / "prediction" / "_".join(about.replace(" in ", " ").split())
    write_text(path.with_suffix(".csv"), lines.to_csv(index=False, float_format="%.4g"))
    sys.stdout.writelines(f"{file}\n" for file in draw(lines, f"{about}, {device_name('cpu')}", path))
    return 0


def summary(lines: pd.DataFrame) -> str:
    """Return number of plans and errors of the time left as text."""
    texts = []
    for unit, error in (
        ("%", 100 * (lines["predicted"] / lines["measured"] - 1)),
        ("points", 100 * (lines["predicted"] - lines["measured"])),
    ):
        median, p95 = np.quantile(error.abs(), (0.5, 0.95))
        texts.append(f"{unit} median {median:.1f}, 95th percentile {p95:.1f}, bias {error.mean():+.1f}")
    return f"{len(lines)} plans, error of time left: {'; '.join(texts)}"


def measure(model: nn.Module, graph: Graph, timing: Timing, options: argparse.Namespace) -> pd.DataFrame:
    """Return kind, predicted and measured share of the dense time of each plan."""
    started, images = time.monotonic(), random_images(timing, graph.input_shape)
    table = layer_times.measure_table(model, graph, timing)
    sys.stdout.write(f"table of {layer_times.PLANS} plans in {time.monotonic() - started:.0f} s\n")
    dense = layer_times.prepared(model, graph, PruningPlan({}), images, timing, "groups").run
    lines = []
    for kind, own, own_graph, plan in cases(model, graph, table, options):
        if time.monotonic() - started > options.seconds:
            break
        live, runs = own_graph.live(plan), {"dense": dense}
        has_groups = any(len(layer.groups) > 1 for layer in live.layers.values())
        for name in layer_times.EXECUTIONS[: 2 if has_groups else 1]:
            runs[name] = layer_times.prepared(own, own_graph, plan, images, timing, name).run
        times = least_ms(runs, "cpu", 1, seconds=0.3, counts=range(5, 30), clock=cpu_seconds)
        left = min(ms for name, ms in times.items() if name != "dense") / times["dense"]
        lines.append({"kind": kind, "predicted": 1 - table.cut(own_graph, plan), "measured": left})
    return pd.DataFrame(lines, columns=["kind", "predicted", "measured"])


def cases(model: nn.Module, graph: Graph, table: LayerTable, options: argparse.Namespace) -> Iterator[Case]:
    """Return the plans of methods, if asked for, and the held-out random ones."""
    if options.methods:
        yield from method_cases(table, options.results)
    draw = random.Random(0)
    for number in range(options.plans):
        yield KINDS[number % len(KINDS)], model, graph, random_plan(graph, draw, number)


def random_plan(graph: Graph, draw: random.Random, number: int) -> PruningPlan:
    """Return a random plan of one of `KINDS`, by turns."""
    share, kind = draw.uniform(0.1, 0.8), KINDS[number % len(KINDS)]
    if kind == "two groups":
        return meet(random_groups_planner(graph, 2, number), graph, Budget(share=share * 0.9)).plan
    generator = torch.Generator().manual_seed(number)
    scores = {name: torch.rand(conv.filters, generator=generator) for name, conv in graph.convs.items()}
    planner = filter_planner(
        graph,
        scores,
        ranking="global" if kind == "filters over all layers" else "layer",
        scope="untied" if kind == "untied filters" else "coupled",
    )
    return meet(planner, graph, Budget(share=share)).plan


def method_cases(table: LayerTable, results: Path) -> Iterator[Case]:
    """Return plans of methods at `SHARES` of the predicted time.

    Runs are those of the grid `latency_budget_short`, one seed. A method has no plan at a share that it cannot remove. Learning
    stages run first if RESULTS/work has none. Raises ValueError if a stage fails.
    """
    context = Context(results=results, threads=1)
    for run in latency_budget_short.runs():
        if run.seed or run.budget.scope != "latency":
            continue
        stages: list[Stage] = [run.base, *([run.learned] if run.learned else [])]
        for stage in stages:
            if (outcome := execute(stage, context)) != "done":
                raise ValueError(f"--methods: {stage.label} ended as {outcome}; {context.folder(stage)} has its log")
        work = Workspace(run, context)
        model, state = _start(work)
        graph = Graph(model, work.dataset.input_shape)
        graph.times = table
        planner = run.settings.planner(model, graph, state, work.task())
        most = graph.cut(planner(1.0), "latency")
        for share in (share for share in SHARES if share <= most):
            plan = meet(planner, graph, Budget(share=share, scope="latency", timing=table.timing)).plan
            yield run.described, model, graph, plan


def draw(lines: pd.DataFrame, about: str, path: Path) -> list[Path]:
    """Draw predicted over measured time left, a mark for each kind; return the files."""
    with style.new_figure(entries=lines["kind"].nunique()) as figure:
        axes = figure.subplots()
        ends = [0, 1.05 * float(lines[["predicted", "measured"]].max().max())]
        axes.plot(ends, ends, color=style.REFERENCE, linewidth=0.8, label="equal")
        for number, (kind, own) in enumerate(lines.groupby("kind", sort=False)):
            look = {**style.of_series(number), "linestyle": "none", "markersize": 3.5 if kind in KINDS else 6}
            axes.plot(own["measured"], own["predicted"], **look, label=kind)
        axes.set(xlabel="measured share of the dense time", ylabel="predicted share", xlim=ends, ylim=ends)
        style.legend(figure)
        own = lines[lines["kind"].isin(KINDS)]
        text = (
            f"Time of packed networks, predicted and measured. {about}. Random plans: {summary(own)}."
            if len(own)
            else about
        )
        return list(style.finish(figure, path, text))


if __name__ == "__main__":
    raise SystemExit(main())
