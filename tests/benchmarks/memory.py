"""Peak memory and time of packed executions; `python -m tests.benchmarks.memory`.

Gathered and sliced channels are read in parts of a batch, whose size follows from `memory` of `suite.pack.tuned`. Prints the
peak as a share of the dense network's, and CPU milliseconds with one thread, for random plans.
"""

from __future__ import annotations

import argparse
import functools
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

PIECES: dict[str, int] = dict(operations.PIECES) | {"whole batch": 2**40}
"""Elements of a part, by `memory`; the last one divides nothing."""


def main() -> int:
    """Print a line for each execution and part; return 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--groups", type=int, default=2)
    options = parser.parse_args()
    if min(options.batch, options.groups) < 1:
        parser.error("--batch and --groups take 1 or more")
    set_up_torch(1)
    shape = (3, 224, 224) if options.model in ("resnet18", "resnet50") else (3, 32, 32)
    try:
        model = models.build(options.model, 10).eval()
    except ValueError as error:
        parser.error(str(error))
    graph, images = Graph(model, shape), torch.randn(options.batch, *shape)
    plan = meet(random_groups_planner(graph, options.groups, 0), graph, Budget(share=0.64)).plan
    whole = packing.pack(model, graph, PruningPlan({}))
    dense = peak_bytes(packing.tuned(whole, images, execution="whole", layout="channels_last")[0], images)
    packed, runs, shares = packing.pack(model, graph, plan), dict[str, Run](), dict[str, float]()
    for execution in ("whole", "union", "groups", "padded"):
        for memory, piece in PIECES.items():
            operations.PIECES["any"] = piece  # type: ignore[index]
            network, _ = packing.tuned(packed, images, execution=execution, layout="channels_last")
            name = f"{execution}, memory {memory}"
            runs[name], shares[name] = functools.partial(network, images), peak_bytes(network, images) / dense
    for name, ms in least_ms(runs, "cpu", seconds=20, counts=range(3, 9), clock=cpu_seconds).items():
        sys.stdout.write(
            f"{options.model} G={options.groups} batch {options.batch}, {name}: peak {shares[name]:.2f} of dense, {ms:.0f} ms\n"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
