"""Small image files, and equality of batches, for tests of data sets."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from suite.contract import Batch

CPU = torch.device("cpu")


def same(left: list[Batch], right: list[Batch]) -> bool:
    """Are they bit for bit the same batches?"""
    pairs = itertools.zip_longest(left, right)
    return all(a and b and torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


def write_images(root: Path, counts: dict[str, int], suffix: str = ".png") -> None:
    """`root`/CLASS/N.png of random smooth images of several sizes and colour modes."""
    random = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            small = Image.fromarray(random.integers(256, size=(5, 5, 3), dtype=np.uint8))
            image = small.resize((40 + 3 * i, 50 + i), Image.Resampling.BICUBIC)
            image.convert("L" if i == 1 else "RGB").save(root / name / f"{i}{suffix}")
