"""Images per second of the suite's CIFAR-10 training batches beside those of a torch DataLoader.

    python benchmarks/loader.py [--data DIR] [--device cuda] [--rounds 7] [--threads 1]

Both deliver random crops (4 pixels of padding), flips and normalised float32 batches of 128 on the device. The rivals
are DataLoaders with 0 and with 2 workers, each with torchvision's transforms of version 1 (on PIL images) and of
version 2 (on tensors); ours is compared with the fastest of them. All run in one process, one after another in every
round. A rival's clock starts at its third batch, so that starting its workers does not count; ours runs over the whole
epoch, drawing its random numbers included. This process has one thread unless `--threads` gives it more: then the
figures hold on a busy machine too, where the many short parallel regions of ours would wait for descheduled threads,
and only the rivals' workers use a further core. Images are those of CIFAR-10 where `--data` has it, else random ones.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from suite import data
from suite.contract import Batch
from suite.data.cifar10 import MEAN, STD, read_npz
from suite.data.resident import Arrays, Resident

BATCH = 128
RIVAL_STEPS, WARM_UP_STEPS = 80, 3

V1 = torchvision.transforms.Compose(
    [
        torchvision.transforms.ToPILImage(),
        torchvision.transforms.RandomCrop(32, padding=4),
        torchvision.transforms.RandomHorizontalFlip(),
        torchvision.transforms.ToTensor(),
        torchvision.transforms.Normalize(MEAN, STD),
    ]
)
V2 = v2.Compose(
    [
        v2.RandomCrop(32, padding=4),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ]
)


class OneByOne(torch.utils.data.Dataset):
    """Image by image, as torchvision's CIFAR10 gives them."""

    def __init__(self, images: Any, labels: list[int], transform: Callable[[Any], torch.Tensor]) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def load_arrays(folder: Path | None) -> tuple[Arrays, str]:
    """CIFAR-10's arrays, or random ones of its shape, and which of them."""
    path = data.data_folder(folder) / "cifar10.npz"
    if path.exists():
        return read_npz(path), "CIFAR-10"
    random = np.random.default_rng(0)
    images = random.integers(256, size=(50_000, 32, 32, 3), dtype=np.uint8)
    labels = random.integers(10, size=50_000)
    return Arrays.of_nhwc(images, labels, images[:100], labels[:100]), "random pixels"


def images_per_s(batches: Iterator[Batch], device: torch.device, *, warm_up: int = 0) -> float:
    """Return batches per second after the first `warm_up`."""
    for _ in itertools.islice(batches, warm_up):
        pass
    synchronize(device)
    count, start = 0, time.perf_counter()
    for images, labels in batches:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        count += len(labels)
    synchronize(device)
    return count / (time.perf_counter() - start)


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(arrays: Arrays, device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Contender -> images/s in each round; the first is ours."""
    ours = Resident(name="cifar10", classes=10, mean=MEAN, std=STD, arrays=arrays).train(
        "all", batch=BATCH, seed=0, device=device
    )
    images_NCHW, labels = arrays.train_images_NCHW, arrays.train_labels_N.tolist()
    images_NHWC = images_NCHW.permute(0, 2, 3, 1).contiguous().numpy()
    sets = {"v1": OneByOne(images_NHWC, labels, V1), "v2": OneByOne(images_NCHW, labels, V2)}
    rivals = {
        f"DataLoader, {workers} workers, transforms {version}": DataLoader(
            sets[version],
            batch_size=BATCH,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            pin_memory=device.type == "cuda",
        )
        for workers, version in itertools.product((0, 2), sets)
    }
    images_per_s(ours.epoch(0), device)  # warm up; the images move to the device
    rates: dict[str, list[float]] = {name: [] for name in ("ours", *rivals)}
    for epoch in range(1, rounds + 1):
        rates["ours"].append(images_per_s(ours.epoch(epoch), device))
        for name, rival in rivals.items():
            batches = itertools.islice(rival, RIVAL_STEPS)
            rates[name].append(images_per_s(batches, device, warm_up=WARM_UP_STEPS))
    return rates


def main() -> None:
    """Print the table and the ratio."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with cifar10.npz (default: SUITE_DATA)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of this process, ours and the rivals' alike")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    arrays, which = load_arrays(args.data)
    rates = measure(arrays, args.device, args.rounds)
    best = max(list(rates)[1:], key=lambda name: statistics.median(rates[name]))
    ratios = [ours / rival for ours, rival in zip(rates["ours"], rates[best], strict=True)]
    device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else platform.machine()

    title = f"{which}, batch {BATCH}, {args.device} ({device}), {args.threads} thread(s), {args.rounds} rounds"
    title += f", torch {torch.__version__}, torchvision {torchvision.__version__}"
    table = Table("loader", "images/s, median", "lowest", "highest", title=title)
    for name, values in rates.items():
        label = f"{name} (fastest rival)" if name == best else name
        table.add_row(label, *(f"{value:,.0f}" for value in (statistics.median(values), min(values), max(values))))
    console = Console(width=140)
    console.print(table)
    console.print(
        f"ours / fastest rival: {statistics.median(ratios):.1f}x (median of the rounds' ratios; "
        f"lowest {min(ratios):.1f}x, highest {max(ratios):.1f}x)"
    )


if __name__ == "__main__":
    main()
