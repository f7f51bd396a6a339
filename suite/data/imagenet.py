"""ImageNet and twenty classes of Tiny-ImageNet, from `FOLDER/NAME/train|val/CLASS/*`."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from suite.data.base import Dataset, Part, Size

if TYPE_CHECKING:
    from suite.data._files import Listing
    from suite.data._imagefolder import ImageFolder


log = logging.getLogger(__name__)

CLASSES = 1000
IDS_SHA256 = "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15"
"""Sha256 of ILSVRC2012's sorted WordNet ids, one per line. Their order is that of public weights' logits.

`ls imagenet/train | sha256sum` prints it for a complete folder. `sha256sum` prints it for the lists of two packages: timm's
`data/_info/imagenet_synsets.txt` and TensorFlow Datasets' `datasets/imagenet2012/labels.txt`.
"""
IDS_SUM = 3_481_996_750
"""Sum of the numbers of the ids. It gives the name of a single id that is missing or too many."""
IMAGES: dict[Part, int] = {"train": 1_281_167, "test": 50_000}
PER_CLASS: dict[Part, tuple[int, int]] = {"train": (732, 1300), "test": (50, 50)}
"""Smallest and largest number of images of a class."""


SAMPLE = 8
"""Files of each part that are decoded when the data set is opened."""


def _open(folder: Path, *, name: str, size_px: int, resize_px: int, how_to_get: str) -> ImageFolder:
    from suite.data._imagefolder import image_folder  # torchvision takes 90 MB, which other data sets need not pay

    return image_folder(folder, name=name, size_px=size_px, resize_px=resize_px, how_to_get=how_to_get)


def imagenet(folder: Path) -> Dataset:
    """Return ILSVRC2012 at 224 pixels; for evaluation the shorter side is resized to 256.

    Warns if images are missing, and if files of a sample cannot be read.
    Raises ValueError if the classes are not the official ones.
    """
    dataset = _open(
        folder,
        name="imagenet",
        size_px=224,
        resize_px=256,
        how_to_get="fetch ILSVRC2012 from https://image-net.org and sort it into train/CLASS and val/CLASS",
    )
    for line in (*check(dataset.parts), *check_sample(dataset.parts)):
        log.warning("%s", line)
    return dataset


def check(parts: Mapping[Part, Listing]) -> list[str]:
    """Return a line for each part whose number of images is not the official one.

    Raises ValueError if the classes are not the official ones.
    """
    names = parts["train"].classes
    if difference := class_difference(names):
        raise ValueError(
            f"{parts['train'].root} has {len(names)} classes, which are not the {CLASSES} of ImageNet: {difference}; public "
            "weights need exactly these: complete the folders, or give a subset another name in suite/data"
        )
    lines = []
    for part, listing in parts.items():
        count_C = np.bincount(listing.labels_N, minlength=CLASSES)
        low, high = PER_CLASS[part]
        odd = [names[label] for label in np.flatnonzero((count_C < low) | (count_C > high))]
        if len(listing.labels_N) != IMAGES[part] or odd:
            example = f"; {odd[0]} and {len(odd) - 1} more classes have not {low} to {high} each" if odd else ""
            lines.append(f"{listing.root} has {len(listing.labels_N)} images, not {IMAGES[part]}{example}")
    return lines


def class_difference(names: Sequence[str]) -> str:
    """Return the difference of class names from ILSVRC2012's; "" if there is none."""
    ids = {name for name in names if re.fullmatch(r"n\d{8}", name)}
    foreign = [name for name in names if name not in ids]
    missing = CLASSES - len(ids)
    single = f"n{abs(IDS_SUM - sum(int(name[1:]) for name in ids)):08d}"
    lines = []
    if foreign:
        rest = f" and {len(foreign) - 1} more are no WordNet ids" if foreign[1:] else " is no WordNet id"
        lines.append(foreign[0] + rest)
    if _sha256(ids ^ {single}) == IDS_SHA256:
        lines.append(f"{single} is {'missing' if missing > 0 else 'no class of ImageNet'}")
    elif missing:
        lines.append(f"{abs(missing)} WordNet ids are {'missing' if missing > 0 else 'too many'}")
    elif _sha256(ids) != IDS_SHA256:
        lines.append("some of the WordNet ids are not among ImageNet's")
    return " and ".join(lines)


def _sha256(names: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{name}\n" for name in sorted(names)).encode()).hexdigest()


def check_sample(parts: Mapping[Part, Listing]) -> list[str]:
    """Return a line for each part with undecodable files in an even sample."""
    from suite.data._files import DECODERS, UnreadableImage, decoder

    decode, lines = DECODERS[decoder()], []
    for part, listing in parts.items():
        sample = np.linspace(0, len(listing.labels_N) - 1, SAMPLE).astype(int).tolist()
        unreadable = []
        for index in sample:
            try:
                listing.decode(index, decode)
            except UnreadableImage as error:
                unreadable.append(str(error))
        if unreadable:
            lines.append(
                f"{listing.root}: {len(unreadable)} of a sample of {len(sample)} {part} images cannot be read, "
                f"first: {unreadable[0]}"
            )
    return lines


SIZES = {
    "imagenet": partial(Size, classes=CLASSES, input_shape=(3, 224, 224), train=IMAGES["train"], path="imagenet/train"),
    "tinyimagenet20": partial(Size, classes=20, input_shape=(3, 64, 64), train=10_000, path="tinyimagenet20/train"),
}
DATASETS = {
    "imagenet": imagenet,
    "tinyimagenet20": partial(
        _open,
        name="tinyimagenet20",
        size_px=64,
        resize_px=64,
        how_to_get="take any 20 classes of Tiny-ImageNet, sorted into train/CLASS and val/CLASS",
    ),
}
