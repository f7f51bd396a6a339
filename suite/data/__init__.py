"""Data sets by name. A file in this folder with `DATASETS` (name -> builder) adds its own; nothing else is edited.

A builder takes the data folder and returns a `Dataset`. CIFAR-size images are a `resident.Resident`, folders of image
files a `_imagefolder.ImageFolder`; both say in their first lines what they need.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from suite.data.base import Dataset, Loader, Split
from suite.registry import collect, pick

__all__ = ["Builder", "Dataset", "Loader", "Split", "available", "data_folder", "load"]

Builder = Callable[[Path], Dataset]


def available() -> dict[str, Builder]:
    """Name -> builder of every data set."""
    return collect(__name__, "DATASETS")


def load(name: str, folder: Path | None = None) -> Dataset:
    """The data set `name` from `folder`, or from the folder that `data_folder` finds.

    Raises ValueError: an unknown name, with the valid ones; missing or unreadable data, with the path and the remedy.
    """
    return pick("data set", name, available())(data_folder(folder))


def data_folder(folder: Path | None = None) -> Path:
    """`folder` if given, else the environment variable SUITE_DATA, else `pruning-suite` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(folder or os.environ.get("SUITE_DATA") or Path(cache) / "pruning-suite").expanduser()
