"""`synthetic_imagenet`: random images of ImageNet's shape, for latency where the real images are missing.

Pixels and labels are seeded random numbers, so every accuracy on them is chance: 0.1 % of 1,000 classes.
"""

from __future__ import annotations

from pathlib import Path

import torch

from suite.data.base import Dataset
from suite.data.resident import Arrays, Resident

CLASSES, SIZE_PX = 1000, 224
IMAGES = {"train": 32, "test": 16}
MEAN, STD = 0.5, 0.2887
"""Of uniform random pixels."""


def synthetic_imagenet(folder: Path) -> Dataset:
    """Return the random images; `folder` is not read."""
    draw = torch.Generator().manual_seed(0)
    images = {
        part: torch.randint(256, (count, 3, SIZE_PX, SIZE_PX), generator=draw, dtype=torch.uint8)
        for part, count in IMAGES.items()
    }
    labels = {part: torch.randint(CLASSES, (count,), generator=draw) for part, count in IMAGES.items()}
    arrays = Arrays(
        train_images_NCHW=images["train"],
        train_labels_N=labels["train"],
        test_images_NCHW=images["test"],
        test_labels_N=labels["test"],
    )
    return Resident(
        name="synthetic_imagenet",
        classes=CLASSES,
        mean=(MEAN,) * 3,
        std=(STD,) * 3,
        arrays=arrays,
        crop_padding=0,
        flip=False,
    )


DATASETS = {"synthetic_imagenet": synthetic_imagenet}
