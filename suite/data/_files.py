"""Files of images: listing, decoding, and items of batches.

Shapes: N images, C channels, H rows, W columns.

SUITE_DECODER chooses the decoder: "pil" (default), or "torchcodec", which decodes JPEG files to the same bits and leaves all
other files to Pillow. Which one is faster depends on the CPU: `tests/benchmarks/readers.py` measures both. torchcodec takes over
from torchvision's decoders, which torchvision 0.29 deprecates. `pip install 'pruning-suite[jpeg]'` adds it.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from suite.data.base import Indices
from suite.files import open_regular

log = logging.getLogger(__name__)
BAD_IMAGES = ("fatal", "skip")
"""Values of SUITE_BAD_IMAGES."""


@dataclass(frozen=True, eq=False)
class Listing:
    """The image files under a folder, sorted by class and name.

    Paths are bytes, so that a million of them are one block of memory.
    """

    root: Path
    classes: tuple[str, ...]
    paths_N: NDArray[np.bytes_]
    labels_N: Indices

    @staticmethod
    def read(root: Path) -> Listing:
        """Return the listing of `root`/CLASS/FILE.

        Raises ValueError if a class has no images, or if there is no class.
        """
        entries = [entry.name for entry in os.scandir(root) if entry.is_dir()]
        classes = tuple(sorted(name for name in entries if not name.startswith(".")))
        hidden = len(entries) - len(classes)
        paths: list[bytes] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            files, left_out = _images(root, name)
            hidden += left_out
            if not files:
                raise ValueError(f"{root / name} has no image files; remove the folder or fill it")
            paths += files
            labels += [label] * len(files)
        if hidden:
            _log_hidden(root, hidden)
        if not classes:
            raise ValueError(f"{root} has no class folders; it should hold CLASS/*.JPEG")
        return Listing(root, classes, np.array(paths), np.array(labels, np.int64))

    def path(self, index: int) -> Path:
        """Return the path of an image."""
        return self.root / os.fsdecode(bytes(self.paths_N[index]))

    def name(self, index: int) -> str:
        """Return the path of an image from the data set's folder on, in UTF-8."""
        return f"{self.root.name}/{bytes(self.paths_N[index]).decode(errors='backslashreplace')}"

    def decode(self, index: int, by: Callable[[Path], Image.Image]) -> Image.Image:
        """Return an image decoded `by` a decoder.

        Raises UnreadableImage naming a file that is damaged; errors of the storage and the machine as they are.
        """
        path = self.path(index)
        try:
            return by(path)
        except (MemoryError, AttributeError):  # the machine or the decoder is the cause, not the file
            raise
        except Exception as error:  # decoders raise errors of any class on damaged files
            if isinstance(error, OSError) and error.errno is not None:  # the storage is the cause
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UnreadableImage(
                f"{path} is not a readable image ({reason}); fetch it again, or set SUITE_BAD_IMAGES=skip"
            ) from None


@functools.cache
def _log_hidden(root: Path, number: int) -> None:
    """Log the number of hidden entries, once a process."""
    log.warning("%s: %d hidden files and folders are left out", root, number)


def _images(root: Path, name: str) -> tuple[list[bytes], int]:
    """Return the paths below `root` of a class, and the number of hidden entries.

    The order is torchvision's.
    """
    images: list[bytes] = []
    hidden = 0
    for folder, folders, files in sorted(os.walk(root / name, followlinks=True)):
        below = Path(folder).relative_to(root)
        if any(part.startswith(".") for part in below.parts):
            continue
        hidden += sum(entry.startswith(".") for entry in (*folders, *files))
        shown = (file for file in sorted(files) if not file.startswith("."))
        images += [os.fsencode(f"{below}/{file}") for file in shown if file.lower().endswith(IMG_EXTENSIONS)]
    return images, hidden


class UnreadableImage(ValueError):
    """An image file that cannot be decoded."""


_PREFIX = f"{UnreadableImage.__module__}.{UnreadableImage.__qualname__}: "


def message(error: Exception) -> str:
    """Return the message of an error without the traceback of a worker."""
    return str(error).strip().splitlines()[-1].removeprefix(_PREFIX)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return the upper byte of 16-bit grey pixels; other images unchanged."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))


def _pil(path: Path) -> Image.Image:
    with open_regular(path) as content, Image.open(content) as file:
        return _eight_bits(file).convert("RGB")


def _torchcodec(path: Path) -> Image.Image:
    """Decode a JPEG file of three components by torchcodec, any other file by Pillow."""
    with open_regular(path) as content, Image.open(content) as file:  # reads the header only
        if file.format != "JPEG" or file.mode != "RGB":
            return _eight_bits(file).convert("RGB")
    decoders = importlib.import_module("torchcodec.decoders")
    try:
        return Image.fromarray(decoders.decode_jpeg(path, mode="RGB").permute(1, 2, 0).numpy())
    except RuntimeError as error:
        raise ValueError(str(error).rpartition(", ")[2]) from None  # before it, the place in torchcodec's source


DECODERS: dict[str, Callable[[Path], Image.Image]] = {"pil": _pil, "torchcodec": _torchcodec}


def decoder() -> str:
    """Return the decoder's name: SUITE_DECODER, else "pil".

    Raises ValueError if the decoder is unknown or not installed.
    """
    name = os.environ.get("SUITE_DECODER") or "pil"
    if name not in DECODERS:
        raise ValueError(f"SUITE_DECODER is {name!r}; choose from: {', '.join(DECODERS)}")
    if name != "pil":
        try:
            decoders = importlib.import_module(f"{name}.decoders")
            if not hasattr(decoders, "decode_jpeg"):
                raise ImportError(f"this version of {name} has no decode_jpeg")
        except (ImportError, OSError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"SUITE_DECODER is {name!r}, which fails here ({reason}): pip install 'pruning-suite[jpeg]', or take 'pil'"
            ) from error
    return name


@dataclass(frozen=True)
class Files(torch.utils.data.Dataset[tuple[Tensor, int, int]]):
    """Decoded and cropped images with their labels, by position in `order_N`.

    An item is (uint8 [C, H, W], label, skipped); skipped is the index of an unreadable image, or -1.

    order_N   indices of the images in the listing
    skip      read another image in place of an unreadable one; else UnreadableImage is raised
    That image is the next readable one of `order_N`, so a training batch never has an image that its split holds out.
    """

    listing: Listing
    order_N: Indices
    crop: Callable[[Image.Image, int], Image.Image]
    decode: Callable[[Path], Image.Image]
    skip: bool = False

    def __getitem__(self, position: int) -> tuple[Tensor, int, int]:
        count = len(self.order_N)
        for shift in range(count):
            index = int(self.order_N[(position + shift) % count])
            try:
                image = self.listing.decode(index, self.decode)
            except UnreadableImage:
                if not self.skip:
                    raise
                continue
            pixels_CHW = torch.from_numpy(np.array(self.crop(image, index))).permute(2, 0, 1).contiguous()
            return pixels_CHW, int(self.listing.labels_N[index]), int(self.order_N[position]) if shift else -1
        raise UnreadableImage(f"{self.listing.root} has no readable image; fetch the files again")


def workers() -> int:
    """Return the number of worker processes: SUITE_WORKERS, else one per core up to 8.

    Raises ValueError if SUITE_WORKERS is not a number.
    """
    text = os.environ.get("SUITE_WORKERS")
    if not text:
        return min(8, len(os.sched_getaffinity(0)))
    if not text.isdecimal():
        raise ValueError(f"SUITE_WORKERS is {text!r}; give a number of processes, such as 8, or 0 for none")
    return int(text)


def skips_bad_images() -> bool:
    """Return True if SUITE_BAD_IMAGES is "skip".

    Raises ValueError for a value that is not in `BAD_IMAGES`.
    """
    text = os.environ.get("SUITE_BAD_IMAGES") or "fatal"
    if text not in BAD_IMAGES:
        raise ValueError(f"SUITE_BAD_IMAGES is {text!r}; choose from: {', '.join(BAD_IMAGES)}")
    return text == "skip"
