"""Compare the accuracy of short trainings in fp32 and in bf16, seed by seed.

    python -m tests.benchmarks.precision --results precision --jobs 2

Trains base networks on CIFAR-10 (SUITE_DATA): ResNet-20, 3 epochs, 3 seeds, each in fp32 and in bf16 with channels_last. A pair
has equal initial weights and equal batches. The differences of the test accuracies have a paired t interval; its verdict is
"equivalent" if all of the interval lies within the margin, and "open" if the seeds are too few to decide. Finished trainings are
kept in the results folder, so more `--seeds` add to the earlier ones. About 20 CPU minutes with AMX.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from suite.launch import local
from suite.report.statistics.inference import equivalence, t_interval
from suite.run import Context
from suite.run.folder import base_result, result_of
from suite.schedule import Compute, Schedule
from suite.stages import Base

KINDS = {"fp32": Compute(), "bf16": Compute(precision="bf16", layout="channels_last")}


def bases(options: argparse.Namespace) -> dict[str, list[Base]]:
    """Return the trainings of each kind, by seed."""
    schedule = Schedule(epochs=options.epochs, lr=0.1, weight_decay=5e-4, epoch_images=options.images)
    return {
        kind: [
            Base(
                data=options.data_set,
                model=options.model,
                schedule=dataclasses.replace(schedule, compute=compute),
                seed=seed,
            )
            for seed in range(options.seeds)
        ]
        for kind, compute in KINDS.items()
    }


def compared(accuracies: dict[str, list[float]], margin_pp: float) -> str:
    """Return the difference bf16 - fp32, its paired 95 % interval and the verdict."""
    differences = [low - full for full, low in zip(accuracies["fp32"], accuracies["bf16"], strict=True)]
    low, high = t_interval(differences)
    mean = sum(differences) / len(differences)
    verdict = equivalence((low, high), margin_pp)
    contains = "contains 0" if low <= 0 <= high else "leaves out 0"
    return (
        f"bf16 - fp32: {mean:+.2f} points [{low:+.2f}, {high:+.2f}] (paired t, n = {len(differences)}); the interval "
        f"{contains}; within {margin_pp:g} points: {verdict}"
    )


def main() -> None:
    """Train what is missing, and print accuracies and their difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder of the trainings")
    parser.add_argument("--data-set", default="cifar10")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, help="of an epoch; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--margin", type=float, default=1.0, help="of equivalence, in points")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, of one thread each")
    options = parser.parse_args()
    console, began = Console(soft_wrap=True), time.monotonic()
    context = Context(results=options.results, threads=1)
    planned = bases(options)
    outcomes = local.run(
        [base for group in zip(*planned.values(), strict=True) for base in group], context, jobs=options.jobs
    )
    if failed := [key for key, outcome in outcomes.items() if outcome != "done"]:
        raise SystemExit(f"not done: {', '.join(failed)}; see failed.json in {options.results}/work/KEY, and run again")
    results = {kind: [base_result(base, context) for base in group] for kind, group in planned.items()}
    table = Table("precision", *(f"seed {seed}: top-1 %" for seed in range(options.seeds)), "seconds a training")
    for kind, group in results.items():
        seconds = sum(result_of(base, context)["seconds"] for base in planned[kind]) / len(group)
        table.add_row(kind, *(f"{result['top1_pct']:.2f}" for result in group), f"{seconds:.0f}")
    console.print(
        f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores, {time.strftime('%F')}"
    )
    console.print(table)
    accuracies = {kind: [result["top1_pct"] for result in group] for kind, group in results.items()}
    console.print(compared(accuracies, options.margin))
    console.print(f"{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
