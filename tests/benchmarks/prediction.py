"""Error of predicted latency over random plans; `python -m tests.benchmarks.prediction`.

A table of layer times is measured once. Other random plans are then packed and timed beside the dense network, in CPU time
with one thread. Prints the error of the predicted share of the dense time that is left, in percent of it and in points.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from typing import get_args

import numpy as np
import torch

from baselines.random_groups import random_groups_planner
from suite import models
from suite.graph import Graph
from suite.measure import Timing, layer_times
from suite.measure.executions import random_images
from suite.measure.protocol import set_up_torch
from suite.plan import Budget, PruningPlan, Runtime
from suite.select import filter_planner, meet
from suite.timing import cpu_seconds, least_ms

KINDS = ("filters by layer", "filters over all layers", "two groups")


def main() -> int:
    """Print median and 95th percentile of the errors; return 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--plans", type=int, default=200, help="held-out plans")
    parser.add_argument("--train", type=int, default=layer_times.PLANS, help="plans of the table")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many seconds")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--layout", choices=("contiguous", "channels_last"), default="contiguous")
    parser.add_argument("--runtime", choices=get_args(Runtime), default="torch")
    options = parser.parse_args()
    set_up_torch(1)
    started, layer_times.PLANS = time.monotonic(), options.train
    shape = (3, 32, 32) if not options.model.startswith("resnet50") else (3, 224, 224)
    model = models.build(options.model, 10).eval()
    graph = Graph(model, shape)
    conditions = {name: getattr(options, name) for name in ("batch", "precision", "layout", "runtime")}
    timing = Timing(**conditions, protocol="quick")
    images = random_images(timing, shape)
    table = layer_times.measure_table(model, graph, timing)
    dense = layer_times.prepared(model, graph, PruningPlan({}), images, timing, "groups").run
    sys.stdout.write(f"table of {options.train} plans in {time.monotonic() - started:.0f} s\n")
    draw, errors = random.Random(0), list[tuple[int, float, float]]()
    for number in range(options.plans):
        if time.monotonic() - started > options.seconds:
            break
        plan = random_plan(graph, draw, number)
        runs = {"dense": dense}
        for name in layer_times.EXECUTIONS[: 2 if number % 3 == 2 else 1]:
            runs[name] = layer_times.prepared(model, graph, plan, images, timing, name).run
        times = least_ms(runs, "cpu", 1, seconds=0.3, counts=range(5, 30), clock=cpu_seconds)
        left = min(ms for name, ms in times.items() if name != "dense") / times["dense"]
        predicted = 1 - table.cut(graph, plan)
        errors.append((number % 3, 100 * (predicted / left - 1), 100 * (predicted - left)))
    of_kinds = [("all", errors), *((name, [e for e in errors if e[0] == kind]) for kind, name in enumerate(KINDS))]
    for title, own in of_kinds:
        for unit, place in (("%", 1), ("points", 2)):
            values = np.array([error[place] for error in own])
            median, p95 = np.quantile(np.abs(values), (0.5, 0.95))
            sys.stdout.write(
                f"{options.model} in {options.runtime} {options.precision} batch {options.batch}, {len(own)} plans ({title}), "
                f"error of time left, {unit}: median {median:.1f}, 95th percentile {p95:.1f}, bias {values.mean():+.1f}\n"
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
