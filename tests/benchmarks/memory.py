"""Peak memory and time of packed executions; `python -m tests.benchmarks.memory`.

A gathered input is divided into parts of a batch, and the size of a part is varied. Prints the peak as a share of the dense
network's, and CPU milliseconds with one thread, for random plans of two filter groups.
"""

from __future__ import annotations

import argparse
import sys

import torch

from baselines.random_groups import random_groups_planner
from suite import models
from suite import pack as packing
from suite.graph import Graph
from suite.measure.memory import peak_bytes
from suite.measure.protocol import set_up_torch
from suite.pack import operations
from suite.plan import Budget, PruningPlan
from suite.select import meet
from suite.timing import Run, cpu_seconds, least_ms

PARTS = (2**16, 2**18, 2**40)
"""Elements that a gathered input may have; the last one is the whole batch."""


def main() -> int:
    """Print a line for each execution and part; return 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    if options.batch < 1:
        parser.error(f"--batch {options.batch}: it takes 1 or more")
    set_up_torch(1)
    shape = (3, 224, 224) if options.model in ("resnet18", "resnet50") else (3, 32, 32)
    try:
        model = models.build(options.model, 10).eval()
    except ValueError as error:
        parser.error(str(error))
    graph, images = Graph(model, shape), torch.randn(options.batch, *shape)
    plan = meet(random_groups_planner(graph, 2, 0), graph, Budget(share=0.64)).plan
    whole = packing.pack(model, graph, PruningPlan({}))
    dense = peak_bytes(packing.tuned(whole, images, execution="whole", layout="channels_last")[0], images)
    packed, runs, shares = packing.pack(model, graph, plan), dict[str, Run](), dict[str, float]()
    for execution in ("whole", "union", "groups", "padded"):
        network, _ = packing.tuned(packed, images, execution=execution, layout="channels_last")
        for part in PARTS:

            def run(network: torch.nn.Module = network, part: int = part) -> object:
                operations.PIECE = part
                return network(images)

            name = f"{execution}, parts of {part} elements"
            operations.PIECE = part
            runs[name], shares[name] = run, peak_bytes(network, images) / dense
    for name, ms in least_ms(runs, "cpu", seconds=20, counts=range(3, 9), clock=cpu_seconds).items():
        sys.stdout.write(
            f"{options.model} batch {options.batch}, {name}: peak {shares[name]:.2f} of dense, {ms:.0f} ms\n"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
