"""Measure training steps on a GPU: one run alone, several in one CUDA graph.

    python tests/benchmarks/gpu_training.py --rows gpu_training.jsonl --minutes 9

Each row of the file has the steps per second of all runs together, for one network, kind of stage and number of runs. Rows are
written as they are measured, most important first; cases that the minutes do not reach are named at the end. bf16, channels_last,
random images in the device's memory: loading is not measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from training import build

from suite import records
from suite.cudagraph import EAGER_STEPS
from suite.schedule import Compute
from suite.trainer import CapturedTrainer, Together

BF16 = Compute(precision="bf16", layout="channels_last")
NETWORKS = {"resnet20": (32, 10, 128), "resnet56": (32, 10, 128), "vgg16": (32, 10, 128), "resnet50": (224, 1000, 128)}
"""Pixels a side, classes and batch of each network."""
STAGES = ("base", "learning", "packed 4")
RUNS = {"resnet50": (1,)}
BLOCKS = 5


def cases() -> list[tuple[str, str, int]]:
    """Return network, stage and number of runs of each case, most important first."""
    return [
        (network, stage, runs)
        for runs in (1, 8, 4, 2)
        for network in NETWORKS
        for stage in STAGES
        if runs in RUNS.get(network, (1, 2, 4, 8))
    ]


def advancing(network: str, stage: str, runs: int, device: str, batch: int) -> Callable[[], None]:
    """Return a function that takes one step of each run."""
    size_px, classes, _ = NETWORKS[network]
    options = argparse.Namespace(model=network, batch=batch, share=0.4)
    built = [build(stage, BF16, options, device, size_px, classes) for _ in range(runs)]
    batches = [images_and_labels for _, images_and_labels, _ in built]
    captured = [trainer for trainer, _, _ in built if isinstance(trainer, CapturedTrainer)]
    if runs > 1 and len(captured) == runs:
        together = Together(captured)
        return lambda: together.advance(batches)
    trainers = [trainer for trainer, _, _ in built]

    def one_after_the_other() -> None:
        for trainer, images_and_labels in zip(trainers, batches, strict=True):
            trainer.advance(*images_and_labels)

    return one_after_the_other


def steps_per_s(step: Callable[[], None], device: str, seconds: float) -> float:
    """Return steps per second, the median of blocks that take about `seconds` together."""

    def timed(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / steps

    timed(EAGER_STEPS + 1 if device == "cuda" else 1)
    steps = max(1, int(seconds / BLOCKS / timed(3)))
    return 1 / statistics.median(timed(steps) for _ in range(BLOCKS))


def measure(case: tuple[str, str, int], options: argparse.Namespace) -> dict[str, Any]:
    """Return the row of one case."""
    network, stage, runs = case
    batch = options.batch or NETWORKS[network][2]
    row: dict[str, Any] = {"model": network, "stage": stage, "runs": runs, "batch": batch, "precision": "bf16"}
    try:
        rate = steps_per_s(advancing(network, stage, runs, options.device, batch), options.device, options.seconds)
        row |= {"steps_per_s": runs * rate, "images_per_s": runs * rate * batch}
    except torch.OutOfMemoryError as error:
        row |= {"reason": str(error).splitlines()[0]}
    if options.device == "cuda":
        row |= {"peak_mib": torch.cuda.max_memory_allocated() / 2**20}
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.empty_cache()
    return {**row, "provenance": records.provenance(options.device)}


def main() -> None:
    """Measure until the minutes are over, and print what each case gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--seconds", type=float, default=1.5, help="of measurement for each case")
    parser.add_argument("--batch", type=int, help="instead of the network's own")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu measures a processor instead")
    deadline, console = time.monotonic() + 60 * options.minutes - 20, Console()
    todo = [case for case in cases() if case[0] in options.models]
    while todo and time.monotonic() < deadline:
        row = measure(todo.pop(0), options)
        with options.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        rate = f"{row['steps_per_s']:8.1f} steps/s" if "steps_per_s" in row else row["reason"]
        console.print(f"{row['model']:9} {row['stage']:9} {row['runs']} runs  {rate}")
    if todo:
        console.print(f"not measured in {options.minutes:g} minutes: {', '.join(map(str, todo))}")


if __name__ == "__main__":
    main()
