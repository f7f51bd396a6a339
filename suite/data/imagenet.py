"""Data sets in folders of image files, `FOLDER/NAME/train|val/CLASS/*`: ImageNet, and twenty classes of Tiny-ImageNet."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from suite.data.base import Dataset


def _open(folder: Path, *, name: str, size_px: int, resize_px: int, how_to_get: str) -> Dataset:
    from suite.data._imagefolder import image_folder  # torchvision takes 90 MB, which other data sets need not pay

    return image_folder(folder, name=name, size_px=size_px, resize_px=resize_px, how_to_get=how_to_get)


DATASETS = {
    "imagenet": partial(
        _open,
        name="imagenet",
        size_px=224,
        resize_px=256,
        how_to_get="fetch ILSVRC2012 from https://image-net.org and sort it into train/CLASS and val/CLASS",
    ),
    "tinyimagenet20": partial(
        _open,
        name="tinyimagenet20",
        size_px=64,
        resize_px=64,
        how_to_get="take any 20 classes of Tiny-ImageNet, sorted into train/CLASS and val/CLASS",
    ),
}
