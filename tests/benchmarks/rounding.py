"""Cost in MACs and gain in time of widths rounded up to a multiple.

    python -m tests.benchmarks.rounding [--model resnet50] [--cut 0.7] [--batch 8] [--groups 1 2]

One random plan per number of filter groups (1: whole filters, residual stream included) is selected to the same budget with
`Budget(round_to=M)` for several M. Each packed network, tuned for this machine, is timed in alternating blocks beside the one
that is not rounded. Latency does not depend on the weights, which are random too.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from baselines.random_groups import random_groups_planner
from suite import models
from suite.contract import Budget, Planner, PruningPlan
from suite.graph import Graph
from suite.measure import Timing, compare
from suite.measure.protocol import Protocol
from suite.pack import pack, save
from suite.select import filter_planner, meet

MULTIPLES = (1, 8, 16, 32)
IMAGENET = ("resnet18", "resnet34", "resnet50", "vgg16_bn")
"""Models for 224x224 pixels and 1,000 classes; all others take CIFAR's images."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Time packed networks whose widths are rounded up to multiples.")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--cut", type=float, default=0.7, help="share of MACs to remove (default: 0.7)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            Console(width=120).print(measure(options, Path(scratch)))
    except ValueError as error:
        parser.error(str(error))


def random_filter_planner(graph: Graph) -> Planner:
    """Return a planner that removes random filters, the same share of every layer."""
    draw = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(conv.filters, generator=draw) for name, conv in graph.convs.items()}
    return filter_planner(graph, scores, ranking="layer")


def measure(options: argparse.Namespace, scratch: Path) -> Table:
    """Time each rounded network beside the one that is not rounded.

    Raises ValueError if the model is unknown or the cut cannot be met.
    """
    if options.batch < 1 or min(options.groups) < 1:
        raise ValueError("--batch and --groups take 1 or more")
    pixels, classes = (224, 1000) if options.model in IMAGENET else (32, 10)
    torch.manual_seed(0)
    model = models.build(options.model, classes).eval()
    graph = Graph(model, (3, pixels, pixels))
    duration = Protocol(warmup_s=0.2, seconds=10, min_blocks=18, precision=None)
    table = Table(
        *("groups", "rounded to", "MACs removed", "MACs x", "ms", "time x [95 %]", "null test"),
        title=f"{options.model}, {options.cut:.0%} to be removed, batch {options.batch}, {torch.get_num_threads()} threads",
    )

    def save_packed(plan: PruningPlan, name: str) -> Path:
        path = scratch / name
        packed = pack(model, graph, plan)
        save(packed, path, model=options.model, classes=classes, input_shape=graph.input_shape, about={})
        return path

    for groups in options.groups:
        planner = random_groups_planner(graph, groups, seed=0) if groups > 1 else random_filter_planner(graph)
        budgets = {multiple: Budget(share=options.cut, round_to=multiple) for multiple in MULTIPLES}
        plans = {multiple: meet(planner, graph, budget).plan for multiple, budget in budgets.items()}
        plain = save_packed(plans[1], f"{groups} plain")
        for multiple, plan in plans.items():
            rounded = save_packed(plan, f"{groups} {multiple}")
            result = compare(plain, rounded, Timing(batch=options.batch), duration=duration).measurement()
            ratio, low, high = (1 / x for x in (result.ratio[0], result.ratio[2], result.ratio[1]))
            macs_x = graph.macs(plan).total / graph.macs(plans[1]).total
            cells = f"{graph.cut(plan):.2%}", f"{macs_x:.3f}", f"{result.packed_ms.mean():.1f}"
            null = f"{result.null[0]:.3f}" if result.passed else "failed"
            table.add_row(str(groups), str(multiple), *cells, rf"{ratio:.3f} \[{low:.3f}, {high:.3f}]", null)
    return table


if __name__ == "__main__":
    main()
