"""What a fine-tuning step costs: masked dense network, packed by groups, packed over the union of kept channels.

    python tests/benchmarks/finetune.py --models resnet20 --groups 1 2 4

All three compute the same step. They alternate in one process; the table has medians and ratios to the masked step. The
result is the reason why packed networks train over the union of kept channels.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

from baselines.random_groups import random_groups_planner
from suite import models
from suite.contract import PruningPlan
from suite.graph import Graph
from suite.pack import masks, pack, per_group


def steps(model: nn.Module, graph: Graph, plan: PruningPlan, batch: int, device: str) -> dict[str, object]:
    """A function for one training step of each kind."""
    images = torch.randn(batch, *graph.input_shape, device=device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    union = pack(model, graph, plan)
    grouped = per_group(union, fold=False).requires_grad_(True).train()
    mask = list(masks(union, model).values())

    def step(network: nn.Module, masked: bool) -> None:
        optimizer = optimizers[id(network)]
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        if masked:
            with torch.no_grad():
                for parameter, kept in zip(network.parameters(), mask, strict=True):
                    parameter.mul_(kept)

    networks = (model, grouped, union)
    optimizers = {id(n): torch.optim.SGD(n.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-3) for n in networks}
    return {
        "masked": lambda: step(model, True),
        "groups": lambda: step(grouped, False),
        "union": lambda: step(union, False),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56", "vgg16"])
    parser.add_argument("--groups", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--share", type=float, default=0.4, help="kept channels of a group")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = Table("model", "groups", "MACs cut", "masked ms", "groups / masked", "union / masked")
    for name in arguments.models:
        model = models.build(name, 10).to(arguments.device).train()
        graph = Graph(model, (3, 32, 32))
        for groups in arguments.groups:
            plan = random_groups_planner(graph, groups, seed=0)(1 - arguments.share)
            runs = steps(model, graph, plan, arguments.batch, arguments.device)
            times: dict[str, list[float]] = {kind: [] for kind in runs}
            for _ in range(arguments.steps):
                for kind, run in runs.items():
                    began = time.perf_counter()
                    run()  # type: ignore[operator]
                    if arguments.device == "cuda":
                        torch.cuda.synchronize()
                    times[kind].append(time.perf_counter() - began)
            median = {kind: float(np.median(values[2:])) for kind, values in times.items()}
            ratios = [f"{median[kind] / median['masked']:.2f}" for kind in ("groups", "union")]
            table.add_row(name, str(groups), f"{graph.cut(plan):.1%}", f"{1e3 * median['masked']:.0f}", *ratios)
    Console().print(table)


if __name__ == "__main__":
    main()
