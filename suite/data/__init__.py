"""Data sets by name.

A file in this folder with `DATASETS` (name -> builder) adds its own; nothing else is edited.

A builder takes the data folder and returns a `Dataset`; it never downloads. If the files can be downloaded, `FETCHERS` (name ->
function of the data folder) gets those that are missing. CIFAR-size images are a `resident.Resident`, folders of image
files an `image_folder`. `SIZES` (name -> function that returns a `Size`) gives the size of data that may be missing.
"""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from torch import Tensor

from suite.data.base import Dataset, Loader, Part, Size, Split
from suite.data.resident import Resident
from suite.registry import broken, collect, pick_plugin

__all__ = [
    "Builder",
    "Dataset",
    "Loader",
    "Size",
    "Split",
    "available",
    "check_labels",
    "class_names",
    "data_folder",
    "fetch",
    "fetching",
    "image_folder",
    "load",
    "present",
    "size",
]

Builder = Callable[[Path], Dataset]


def available() -> dict[str, Builder]:
    """Name -> builder of every data set."""
    return collect("data", "DATASETS")


def load(name: str, folder: Path | None = None) -> Dataset:
    """Return the data set `name` from `folder`, or from that of `data_folder`.

    Raises ValueError: an unknown name, with the valid ones; missing or unreadable data, with the path and the remedy; a label
    that is no class.
    """
    build = pick_plugin("data set", name, available(), broken("data", "DATASETS"))
    sizes: dict[str, Callable[[], Size]] = collect("data", "SIZES")
    if name in collect("data", "FETCHERS") and name in sizes and not present(name, folder):
        raise ValueError(
            f"{name} is not at {data_folder(folder) / sizes[name]().path}; {fetching(name, folder)} where there is a network, "
            "or name another folder with --data or SUITE_DATA"
        )
    dataset = build(data_folder(folder))
    if isinstance(dataset, Resident):  # the labels of image files are the numbers of their folders
        parts: tuple[Part, ...] = get_args(Part)
        for part in parts:
            check_labels(dataset.arrays.part(part)[1], dataset.classes, f"the {part} images of {name}")
    return dataset


def check_labels(labels: Tensor, classes: int, source: str) -> None:
    """Raise ValueError if a label is neither a class nor -100.

    torch's cross-entropy leaves out labels of -100.

    source  of the labels, for the message
    """
    wrong = labels[((labels < 0) & (labels != -100)) | (labels >= classes)]
    if len(wrong):
        raise ValueError(
            f"a label of {source} is {wrong[0]}, but there are {classes} classes, 0 to {classes - 1}: number the labels from 0, "
            "or raise the number of classes"
        )


def size(name: str, folder: Path | None = None) -> Size:
    """Return the size of a data set, which is loaded without an entry in `SIZES`.

    Raises ValueError as `load` does.
    """
    sizes: dict[str, Callable[[], Size]] = collect("data", "SIZES")
    return sizes[name]() if name in sizes else _loaded_size(name, folder)


@functools.lru_cache(maxsize=4)
def _loaded_size(name: str, folder: Path | None) -> Size:
    dataset = load(name, folder)
    return Size(classes=dataset.classes, input_shape=dataset.input_shape, train=dataset.size("train"), path="")


def present(name: str, folder: Path | None = None) -> bool:
    """Return True if the files of a data set in `SIZES` exist, without reading them."""
    sizes: dict[str, Callable[[], Size]] = collect("data", "SIZES")
    return name in sizes and (data_folder(folder) / sizes[name]().path).exists()


def fetching(name: str, folder: Path | None) -> str:
    """Return the clause of a message that names the command to fetch something."""
    option = f" --data {shlex.quote(str(folder))}" if folder else ""
    return f"`python -m suite.prefetch {name}{option}` fetches it"


def fetch(name: str, folder: Path | None = None) -> None:
    """Download the data set `name` into its folder, if it is missing.

    A no-op for a data set without a fetcher.

    Raises ValueError: an unknown name, with the valid ones; a download that failed, with the reason and the remedy.
    """
    pick_plugin("data set", name, available())
    fetchers: dict[str, Callable[[Path], None]] = collect("data", "FETCHERS")
    if name in fetchers:
        fetchers[name](data_folder(folder))


def image_folder(
    folder: Path,
    name: str,
    *,
    size_px: int = 224,
    resize_px: int = 256,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Dataset:
    """Return the images in `folder`/`name`/train/CLASS and `folder`/`name`/val/CLASS.

    size_px    side of a network's input
    resize_px  shorter side before the central crop of evaluation
    mean, std  of a channel of pixels in [0, 1]; None takes ImageNet's
    Raises ValueError if the folders are missing or have different classes.
    """
    from suite.data import _imagefolder  # torchvision takes 90 MB, which other data sets need not pay

    dataset = _imagefolder.image_folder(folder, name=name, size_px=size_px, resize_px=resize_px)
    return dataset.with_normalization(mean or dataset.mean, std or dataset.std)


def class_names(dataset: Dataset) -> list[str]:
    """Return the name of each class; its number if the data set has no names."""
    return list(getattr(dataset, "labels", ()) or NAMES.get(dataset.name) or map(str, range(dataset.classes)))


NAMES = {"cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")}


def data_folder(folder: Path | None = None) -> Path:
    """`folder` if given, else the environment variable SUITE_DATA, else `pruning-suite` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(folder or os.environ.get("SUITE_DATA") or Path(cache) / "pruning-suite").expanduser()
