"""Images per second of one worker: the suite's decoders beside torchvision's ImageFolder in a DataLoader.

    python -m tests.benchmarks.readers FOLDER --rounds 5 --repeat 4

FOLDER has JPEG files of any layout; they become one class of a training set. Every contender delivers random resized crops of 224
pixels, flipped and normalised, as float32 batches of 32, from a DataLoader with `--workers` workers (0: this process). Contenders
alternate in a rotating order. The table has images per second by the clock, and per second of CPU time of this process and its
ended workers, which other load disturbs less. The ratio to ImageFolder + DataLoader is the median over rounds, of CPU time.
Pixels of the decoders are compared first.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder as TorchvisionFolder
from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToTensor

from suite.data._files import DECODERS, decoder
from suite.data._imagefolder import MEAN, STD, image_folder

BATCH = 32
RIVAL = "ImageFolder + DataLoader"


def linked(source: Path, root: Path, repeat: int) -> Path:
    """Return a folder of two parts with `repeat` links to each JPEG file of `source`."""
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg"))
    for part in ("train", "val"):
        (root / "set" / part / "a").mkdir(parents=True)
        for index, path in enumerate(files * (repeat if part == "train" else 1)):
            (root / "set" / part / "a" / f"{index:06}.jpeg").symlink_to(path.absolute())
    return root


def cpu_s() -> float:
    """Return the CPU seconds of this process and of its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def timed(batches: Iterable[Any]) -> tuple[float, float]:
    """Return images per second by the clock, and per second of CPU time."""
    began, cpu = time.perf_counter(), cpu_s()
    count = sum(len(labels) for _, labels in batches)
    return count / (time.perf_counter() - began), count / (cpu_s() - cpu)


def contenders(root: Path, workers: int) -> dict[str, Callable[[int], Iterable[Any]]]:
    """Return name -> batches of an epoch."""
    ours = image_folder(root, name="set", size_px=224, resize_px=256)
    loader = ours.train("all", batch=BATCH, seed=0, device="cpu")
    transform = Compose([RandomResizedCrop(224), RandomHorizontalFlip(), ToTensor(), Normalize(MEAN, STD)])
    plain = TorchvisionFolder(str(root / "set" / "train"), transform)

    def by(name: str) -> Callable[[int], Iterable[Any]]:
        def epoch(number: int) -> Iterable[Any]:
            os.environ["SUITE_DECODER"] = name
            return loader.epoch(number)

        return epoch

    def rival(number: int) -> Iterable[Any]:
        return DataLoader(plain, batch_size=BATCH, shuffle=True, num_workers=workers, drop_last=True)

    return {**{f"suite, {name}": by(name) for name in usable()}, RIVAL: rival}


@functools.cache
def usable() -> list[str]:
    """Return the decoders that work here."""
    names = []
    for name in DECODERS:
        os.environ["SUITE_DECODER"] = name
        try:
            names.append(decoder())
        except ValueError as error:
            Console(soft_wrap=True).print(str(error))
    return names


def largest_difference(root: Path) -> int:
    """Return the largest difference of a pixel between the decoders."""
    paths = sorted((root / "set" / "val").rglob("*.jpeg"))
    images = [
        [torch.frombuffer(bytearray(DECODERS[name](path).tobytes()), dtype=torch.uint8) for name in usable()]
        for path in paths
    ]
    return max(int((one.int() - decoded[0].int()).abs().max()) for decoded in images for one in decoded)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with JPEG files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=4, help="reads of each file in an epoch")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["SUITE_WORKERS"] = str(options.workers)
    console = Console(soft_wrap=True)
    with tempfile.TemporaryDirectory() as scratch:
        root = linked(options.folder, Path(scratch), options.repeat)
        console.print(f"largest difference of a pixel between decoders: {largest_difference(root)} of 255")
        epochs = contenders(root, options.workers)
        names = list(epochs)
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for number in range(options.rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                rates[name].append(timed(epochs[name](number)))
    table = Table(
        "reader",
        "images/s",
        "images per CPU second",
        "lowest - highest",
        f"x {RIVAL}",
        title=f"{options.workers} worker(s)",
    )
    for name, pairs in rates.items():
        clock, cpu = ([pair[i] for pair in pairs] for i in (0, 1))
        table.add_row(
            *(
                name,
                f"{statistics.median(clock):.0f}",
                f"{statistics.median(cpu):.0f}",
                f"{min(cpu):.0f} - {max(cpu):.0f}",
            ),
            f"{statistics.median(own / rival for own, (_, rival) in zip(cpu, rates[RIVAL], strict=True)):.2f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
