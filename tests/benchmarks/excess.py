"""Excess of cuts over the budgets of `cifar10_fair`, in points of MACs.

    python tests/benchmarks/excess.py --model resnet20

Criteria rank random scores with their own scope and ranking; DSP has random groups; other methods that need no training plan on
initial weights. The last line is the largest excess of criteria, which the suite holds at 0.05 points.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import torch
from rich.console import Console
from rich.table import Table

from dsp import DSP
from dsp.layers import prunable_convs
from suite import methods
from suite.contract import Budget, Criterion, Planner, Task
from suite.graph import Graph
from suite.grids.cifar10_fair import BUDGETS, MODELS
from suite.models import build
from suite.select import filter_planner, meet

INITIAL = ("equal_gkp", "random_groups", "one_by_n")
"""Methods beside criteria and DSP that plan without images."""


def planners(model: str, graph: Graph, seed: int) -> Iterator[tuple[str, Planner]]:
    """Yield each method's name and a planner of random scores, or of initial weights."""
    network = build(model, 10).eval()
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(conv.filters, generator=generator) for name, conv in graph.convs.items()}
    task = Task(train_epoch=lambda epoch: iter(()), samples=lambda n: (torch.zeros(0), torch.zeros(0)), seed=seed)
    for name in methods.rivals():
        settings = methods.get(name).for_task("cifar10", model)
        if isinstance(settings, Criterion):
            yield name, filter_planner(graph, scores, ranking=settings.ranking, scope=settings.scope)
        elif name in INITIAL:
            yield name, settings.planner(network, graph, {}, task)
    logits = {c.name: torch.rand(2, c.filters, generator=generator) for c in prunable_convs(graph, 2)}
    yield "dsp", DSP(groups=2).planner(network, graph, {"logits": logits}, task)


def main() -> None:
    """Print the table and the largest excess."""
    parser = argparse.ArgumentParser(description="Print the excess of cuts over budgets, in points.")
    parser.add_argument("--model", action="append", choices=MODELS, help="default: all networks of cifar10_fair")
    parser.add_argument("--only", default="", help="methods whose name contains this")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    largest, console = 0.0, Console()
    for model in options.model or MODELS:
        graph = Graph(build(model, 10), (3, 32, 32))
        table = Table("method", *(f"{budget:.0%}" for budget in BUDGETS), "seconds a plan", title=model)
        for name, rows in _excesses(model, graph, options.only, options.seeds).items():
            worst = [max(row[0][place] for row in rows) for place in range(len(BUDGETS))]
            table.add_row(name, *(f"{each:.3f}" for each in worst), f"{statistics.mean(row[1] for row in rows):.2f}")
            if issubclass(methods.get(name), Criterion):
                largest = max(largest, *worst)
        console.print(table)
    console.print(f"largest excess of a criterion: {largest:.3f} points")


def _excesses(model: str, graph: Graph, only: str, seeds: int) -> dict[str, list[tuple[list[float], float]]]:
    """Return method -> (excess at each budget in points, seconds a plan) of each seed."""
    rows: dict[str, list[tuple[list[float], float]]] = {}
    for seed in range(seeds):
        for name, planner in planners(model, graph, seed):
            if only in name:
                began = time.perf_counter()
                cuts = [meet(planner, graph, Budget(share=budget, refill=True)).cut for budget in BUDGETS]
                excess = [100 * (cut - budget) for cut, budget in zip(cuts, BUDGETS, strict=True)]
                rows.setdefault(name, []).append((excess, (time.perf_counter() - began) / len(BUDGETS)))
    return rows


if __name__ == "__main__":
    main()
