"""Planning time of DSP on ImageNet networks, beside the released procedure's passes.

    python tests/benchmarks/planning.py

The suite's planning has energies, thresholds and all halvings of the bisection, each with exact propagation of dead channels and
a count of MACs; tracing the network is a line of its own. The released procedure finds dead filters by 125 training-mode
forward and backward passes for each of 11 bisection steps. A few of those passes are timed, with two images a batch, and
multiplied: a lower bound of the procedure's time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from dsp import DSP
from suite.contract import Budget, Task
from suite.graph import Graph
from suite.models import build
from suite.select import meet

PASSES = 11 * 125
"""Forward and backward passes of the released procedure."""
SHAPE = (3, 224, 224)


def seconds(work: Callable[[], object], rounds: int) -> list[float]:
    """Return the seconds of each round."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times


def one_pass(model: nn.Module) -> None:
    """Run one of the released procedure's passes."""
    model.train()
    loss = nn.functional.cross_entropy(model(torch.randn(2, *SHAPE)), torch.zeros(2, dtype=torch.long))
    loss.backward()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Time DSP's planning of a ResNet-50 to a budget.")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--budget", type=float, default=0.7, help="share of MACs to remove (default 0.7)")
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = build(options.model, 1000)
    method = DSP(groups=options.groups)
    tracing = seconds(lambda: Graph(model, SHAPE), options.rounds)
    graph = Graph(model, SHAPE)
    task = Task(train_epoch=lambda epoch: iter(()), samples=lambda n: (torch.zeros(0), torch.zeros(0)), seed=0)
    state = method.learner(model, graph, task).state_dict()
    for logits in state["logits"].values():
        logits.normal_()
    budget = Budget(share=options.budget)
    cuts = []
    planning = seconds(
        lambda: cuts.append(meet(method.planner(model, graph, state, task), graph, budget).cut), options.rounds
    )
    passes = [PASSES * s for s in seconds(lambda: one_pass(model), options.rounds)]
    table = Table(
        "what",
        "median s",
        "least - most s",
        title=f"{options.model} at {SHAPE[1]}x{SHAPE[2]}, G = {options.groups}, to {cuts[0]:.2%} of its MACs, "
        f"{options.rounds} rounds, {torch.get_num_threads()} threads, torch {torch.__version__}",
    )
    for name, times in (
        ("tracing the network, once", tracing),
        ("planning to the budget", planning),
        (f"{PASSES} passes (extrapolated)", passes),
    ):
        table.add_row(name, f"{statistics.median(times):.3f}", f"{min(times):.3f} - {max(times):.3f}")
    console = Console(width=110)
    console.print(table)
    console.print(f"passes / planning: {statistics.median(passes) / statistics.median(planning):.0f} x")


if __name__ == "__main__":
    main()
