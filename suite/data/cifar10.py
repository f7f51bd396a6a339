"""`cifar10`, from `cifar10.npz` in the data folder.

The file has the arrays `train_images` uint8 [50000, 32, 32, 3], `train_labels` int64 [50000], `test_images` and
`test_labels`, in the order of the official batches; other arrays are ignored. Where it is missing, `fetch` converts
torchvision's official download to it, or what is left of an earlier one in the folder.
"""

from __future__ import annotations

import logging
import socket
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from suite.data.base import Dataset, Size
from suite.data.resident import Arrays, Resident
from suite.files import replacing

log = logging.getLogger(__name__)

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CLASSES = 10
CONNECT_TIMEOUT_S = 30


def cifar10(folder: Path) -> Dataset:
    """CIFAR-10 with 4 pixels of crop padding and flips.

    Raises ValueError when the file is missing or unreadable.
    """
    path = folder / "cifar10.npz"
    if not path.exists():
        raise ValueError(
            f"CIFAR-10 is not at {path}; `python -m suite.prefetch --grid NAME` fetches it where there is a network, or name "
            "another folder with --data or SUITE_DATA"
        )
    return Resident(name="cifar10", classes=CLASSES, mean=MEAN, std=STD, arrays=read_npz(path))


def read_npz(path: Path) -> Arrays:
    """Return the arrays of a `cifar10.npz`.

    Raises ValueError, in one line, if their shapes, types or labels are wrong.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no regular file; put cifar10.npz there")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("train_images", "train_labels", "test_images", "test_labels")}
        for part in ("train", "test"):
            _check(arrays[f"{part}_images"], arrays[f"{part}_labels"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not a whole cifar10.npz ({reason}); delete it to have it made again") from None
    return Arrays.of_nhwc(**{key: np.ascontiguousarray(array) for key, array in arrays.items()})


def _check(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or len(images) == 0:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}, not uint8 [N, 32, 32, 3]")
    if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}, not int64 [{len(images)}]")
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise ValueError(f"labels lie in {labels.min()}..{labels.max()}, not in 0..{CLASSES - 1}")


def fetch(folder: Path) -> None:
    """Make `cifar10.npz` from torchvision's official download, if it is missing.

    Of several processes, one downloads.
    Raises ValueError when that fails.
    """
    path = folder / "cifar10.npz"
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".cifar10.lock"):
            if not path.exists():
                log.warning("%s is missing; downloading CIFAR-10 (170 MB) to make it", path)
                write_npz(path, _official(path.parent))
    except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"CIFAR-10 is not at {path}, and downloading it failed ({reason}); put cifar10.npz or the official "
            "cifar-10-python.tar.gz into that folder, or name another folder with --data or SUITE_DATA"
        ) from None


def _official(folder: Path) -> dict[str, NDArray[np.generic]]:
    """Return the official images, downloaded if torchvision's files are not in `folder`."""
    from torchvision.datasets import CIFAR10  # takes a second to import

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_TIMEOUT_S)  # without one, a host that is cut off waits for minutes
    try:
        parts = {"train": CIFAR10(folder, train=True, download=True), "test": CIFAR10(folder, train=False)}
    finally:
        socket.setdefaulttimeout(before)
    arrays: dict[str, NDArray[np.generic]] = {}
    for part, official in parts.items():
        arrays[f"{part}_images"] = np.asarray(official.data, np.uint8)
        arrays[f"{part}_labels"] = np.asarray(official.targets, np.int64)
    return arrays


def write_npz(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Write the arrays so that `path` is either whole or not there."""
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # the stubs take a name for `allow_pickle`


SIZES = {"cifar10": partial(Size, classes=CLASSES, input_shape=(3, 32, 32), train=50_000, path="cifar10.npz")}
DATASETS = {"cifar10": cifar10}
FETCHERS = {"cifar10": fetch}
