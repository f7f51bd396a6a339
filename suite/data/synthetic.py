"""Random images of the shapes of ImageNet and CIFAR-10, for measurements of time.

Pixels and labels are seeded random numbers, so every accuracy on them is chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from suite.data.base import Dataset
from suite.data.resident import Arrays, Resident

MEAN, STD = 0.5, 0.2887
"""Of uniform random pixels."""


def _random(
    folder: Path, *, name: str, classes: int, size_px: int, images: Mapping[str, int], crop_padding: int
) -> Dataset:
    """Return the random images; `folder` is not read."""
    draw = torch.Generator().manual_seed(0)
    pixels = {
        part: torch.randint(256, (count, 3, size_px, size_px), generator=draw, dtype=torch.uint8)
        for part, count in images.items()
    }
    labels = {part: torch.randint(classes, (count,), generator=draw) for part, count in images.items()}
    arrays = Arrays(
        train_images_NCHW=pixels["train"],
        train_labels_N=labels["train"],
        test_images_NCHW=pixels["test"],
        test_labels_N=labels["test"],
    )
    return Resident(
        name=name,
        classes=classes,
        mean=(MEAN,) * 3,
        std=(STD,) * 3,
        arrays=arrays,
        crop_padding=crop_padding,
        flip=crop_padding > 0,
    )


DATASETS = {
    "synthetic_imagenet": partial(
        _random,
        name="synthetic_imagenet",
        classes=1000,
        size_px=224,
        images={"train": 32, "test": 16},
        crop_padding=0,
    ),
    "synthetic_cifar10": partial(
        _random,
        name="synthetic_cifar10",
        classes=10,
        size_px=32,
        images={"train": 50_000, "test": 500},
        crop_padding=4,
    ),
}
