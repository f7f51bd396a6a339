"""What does rounding widths up to a multiple cost in MACs, and what does it save in time?

    python -m tests.benchmarks.rounding [--model resnet50] [--cut 0.7] [--batch 8] [--groups 1 2]

One random plan per number of filter groups (1: whole filters, residual stream included), selected to the same budget with
`Budget(round_to=M)` for several M; each packed network, tuned for this machine, is timed in alternating blocks beside the one
that is not rounded. Latency does not depend on the weights, which are random too.
"""

from __future__ import annotations

import argparse
import functools

import torch
from rich.console import Console
from rich.table import Table

from suite import models
from suite.contract import Budget, PruningPlan
from suite.graph import Graph
from suite.measure import latency
from suite.measure.gpu import random_plan
from suite.pack import pack, tuned

MULTIPLES = (1, 8, 16, 32)
IMAGENET = ("resnet18", "resnet34", "resnet50", "vgg16_bn")
"""Of 224x224 pixels, 1,000 classes; the others are CIFAR's."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Time packed networks whose widths are rounded up to multiples.")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--cut", type=float, default=0.7, help="share of MACs to remove (default: 0.7)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    try:
        Console(width=120).print(measured(options))
    except ValueError as error:
        parser.error(str(error))


def measured(options: argparse.Namespace) -> Table:
    """Each rounded network beside the one that is not rounded. Raises ValueError for a model or a cut that is not there."""
    if options.batch < 1 or min(options.groups) < 1:
        raise ValueError("--batch and --groups take 1 or more")
    pixels, classes = (224, 1000) if options.model in IMAGENET else (32, 10)
    torch.manual_seed(0)
    model = models.build(options.model, classes).eval()
    graph = Graph(model, (3, pixels, pixels))
    images = torch.randn(options.batch, *graph.input_shape)
    plan = latency.Protocol(warmup_s=0.2, seconds=10, min_blocks=18, precision=None)
    table = Table(
        *("groups", "rounded to", "MACs removed", "MACs x", "ms", "time x [95 %]", "null test"),
        title=f"{options.model}, {options.cut:.0%} to be removed, batch {options.batch}, {torch.get_num_threads()} threads",
    )

    def run_of(found: PruningPlan) -> latency.Run:
        return functools.partial(tuned(pack(model, graph, found), images)[0], images)

    with torch.inference_mode():
        for groups in options.groups:
            plans = {m: random_plan(graph, groups, Budget(share=options.cut, round_to=m)) for m in MULTIPLES}
            plain = run_of(plans[1])
            for multiple, found in plans.items():
                result = latency.compare(plain, run_of(found), "cpu", plan)
                ratio, low, high = (1 / x for x in (result.ratio[0], result.ratio[2], result.ratio[1]))
                macs_x = graph.macs(found).total / graph.macs(plans[1]).total
                cells = f"{graph.cut(found):.2%}", f"{macs_x:.3f}", f"{result.packed_ms.mean():.1f}"
                null = f"{result.null[0]:.3f}" if result.passed else "failed"
                table.add_row(str(groups), str(multiple), *cells, rf"{ratio:.3f} \[{low:.3f}, {high:.3f}]", null)
    return table


if __name__ == "__main__":
    main()
