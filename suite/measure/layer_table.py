"""`python -m suite.measure.layer_table`: measure the layer times of a network, once per device and timing.

Budgets of time read the file, and measure it themselves if it is missing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from suite import cli, data, models
from suite.graph import Graph
from suite.measure import latency_budget, layer_times
from suite.measure.protocol import DTYPES
from suite.pack.choice import Layout
from suite.plan import Runtime, Timing

CONDITIONS = ("device", "batch", "precision", "layout", "runtime", "protocol")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m suite.measure.layer_table",
        description="Measure the layer times of a network into RESULTS/layer_times, where budgets of time read them. A table "
        "that is there is not measured again.",
    )
    cli.add_plugins_option(result)
    cli.add_data_option(result)
    add, default = result.add_argument, Timing()
    add("--model", required=True, metavar="NAME", help=f"one of {', '.join(models.available())}")
    add(
        "--dataset",
        required=True,
        metavar="NAME",
        help="its images have the network's input shape: cifar10, imagenet, ...",
    )
    add("--device", choices=("cpu", "cuda"), default=default.device)
    add("--batch", type=int, default=default.batch, metavar="N", help="default: %(default)s")
    add("--precision", choices=tuple(DTYPES), default=default.precision)
    add("--layout", choices=get_args(Layout), default=default.layout)
    add("--runtime", choices=get_args(Runtime), default=default.runtime)
    add("--protocol", choices=("quick", "full"), default=default.protocol, help="of the budget (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    add("--results", type=Path, default=Path("results"), metavar="DIR")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 measured or there already, 2 bad arguments."""
    arguments = parser().parse_args(argv)
    cli.configure_logging()
    try:
        sys.stdout.write(_measure(arguments))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"suite.measure.layer_table: {error}\n")
        return 2
    return 0


def _measure(arguments: argparse.Namespace) -> str:
    """Measure the table unless it is there; return its path, contents and cost as text."""
    default = cli.cores() if arguments.device == "cpu" else 0  # a timing on a GPU has none
    threads = cli.threads_of(arguments.threads) or default
    timing = Timing(**{name: getattr(arguments, name) for name in CONDITIONS}, threads=threads)
    size = data.size(arguments.dataset, arguments.data)
    model = models.build(arguments.model, size.classes).eval()
    graph, folder = Graph(model, size.input_shape), arguments.results / latency_budget.FOLDER
    path = latency_budget.table_path(graph, timing, folder)
    is_measured, started = path.exists(), time.monotonic()
    table = latency_budget.table_for(model, graph, timing, folder)
    cost = "there already" if is_measured else f"{layer_times.PLANS} plans in {time.monotonic() - started:.0f} s"
    layers = f"{len(table.layers)} layers of {len(table.costs)} geometries"
    return f"{path}\n{layers}, dense network {table.dense_ms:.3g} ms: {cost}\n"


if __name__ == "__main__":
    raise SystemExit(main())
