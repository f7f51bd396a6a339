"""Error of predicted latency over random plans; `python -m tests.benchmarks.prediction`.

A table of layer times is measured once. Every plan is then packed, tuned in one way for all layers, and timed beside the dense
network, in CPU time with one thread. Prints the error of the predicted time, and of the predicted share of the dense time that
the plan removes.
"""

from __future__ import annotations

import argparse
import functools
import random
import sys

import numpy as np
import torch

from baselines.random_groups import random_groups_planner
from suite import models
from suite import pack as packing
from suite.graph import Graph
from suite.measure import Timing, layer_times
from suite.measure.executions import random_images
from suite.measure.protocol import set_up_torch
from suite.plan import Budget, PruningPlan
from suite.select import filter_planner, meet
from suite.timing import cpu_seconds, least_ms


def main() -> int:
    """Print median and 95th percentile of the errors; return 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--plans", type=int, default=200)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    set_up_torch(1)
    shape = (3, 32, 32) if not options.model.startswith("resnet50") else (3, 224, 224)
    model = models.build(options.model, 10).eval()
    graph, timing = Graph(model, shape), Timing(batch=options.batch, precision=options.precision, protocol="quick")
    images = random_images(timing, shape)
    dense = packing.tuned(
        packing.pack(model, graph, PruningPlan({})), images, execution="groups", layout=timing.layout
    )[0]
    dense_run = functools.partial(dense, images)
    with torch.inference_mode():
        table = layer_times.measure_table(graph, timing, dense_run)
    draw, errors_pct, errors_pp = random.Random(0), [], []
    for number in range(options.plans):
        plan = random_plan(graph, draw, number)
        runs = {"dense": dense_run}
        for name in ("groups", "union"):
            packed = packing.pack(model, graph, plan)
            runs[name] = functools.partial(
                packing.tuned(packed, images, execution=name, layout=timing.layout)[0], images
            )
        times = least_ms(runs, "cpu", 1, seconds=0.4, counts=range(5, 30), clock=cpu_seconds)
        measured = min(times["groups"], times["union"]) / times["dense"]
        predicted = table.predict_ms(graph, plan) / table.dense_ms
        errors_pct.append(100 * (predicted / measured - 1))
        errors_pp.append(100 * (predicted - measured))
    for title, errors in (("time, %", errors_pct), ("share of dense time, points", errors_pp)):
        median, p95 = np.quantile(np.abs(errors), (0.5, 0.95))
        sys.stdout.write(
            f"{options.model} {options.precision} batch {options.batch}, {options.plans} plans, error of {title}: "
            f"median {median:.1f}, 95th percentile {p95:.1f}, bias {np.mean(errors):+.1f}\n"
        )
    return 0


def random_plan(graph: Graph, draw: random.Random, number: int) -> PruningPlan:
    """Return a plan of random filters; every third has random channels in two groups."""
    share = draw.uniform(0.1, 0.8)
    if number % 3 == 2:
        return meet(random_groups_planner(graph, 2, number), graph, Budget(share=share * 0.9)).plan
    generator = torch.Generator().manual_seed(number)
    scores = {name: torch.rand(conv.filters, generator=generator) for name, conv in graph.convs.items()}
    return meet(
        filter_planner(graph, scores, ranking="global" if number % 3 else "layer"), graph, Budget(share=share)
    ).plan


if __name__ == "__main__":
    raise SystemExit(main())
