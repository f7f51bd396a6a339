"""Folders of image files: `train/CLASS/*` and `val/CLASS/*`, the layout that torchvision calls ImageFolder.

Shapes: N images, B images of a batch, C channels, H rows, W columns.

`imagenet` and `tinyimagenet20` are the folders of these names in the data folder. Training images are a random part of
the file, resized and flipped (RandomResizedCrop as in torchvision: 8 to 100 % of the area, ratio 3/4 to 4/3);
evaluation resizes the shorter side and cuts out the centre. Worker processes decode: SUITE_WORKERS of them, by default
one per usable core up to 8. What is random about an image comes from (seed, epoch, image), so neither the number of
workers nor the step at which a run resumes changes a batch.

An image that cannot be decoded stops the stage. With SUITE_BAD_IMAGES=skip it is named and counted in the log instead: for
training the next readable file takes its place, so that batches keep their size, and evaluation leaves it out. Images in other
colour modes (CMYK, grey) are converted to RGB by Pillow. Of 16-bit grey pixels the upper byte is taken, as Pillow does for
16-bit RGB. Class folders may be nested. Files and folders whose name begins with a dot are left out, and
counted in the log.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import functional as F

from suite.contract import Batch
from suite.data.base import CROP, WHOLE, Dataset, Indices, Part, normalizer, stream

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AREA, LOG_RATIO, TRIES = (0.08, 1.0), (math.log(3 / 4), math.log(4 / 3)), 10
BAD_IMAGES = ("fatal", "skip")
"""Values of SUITE_BAD_IMAGES."""
FILL = "put train/CLASS/* and val/CLASS/* there"

log = logging.getLogger(__name__)


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
            log.warning("%s: %d hidden files and folders are left out", root, hidden)
        if not classes:
            raise ValueError(f"{root} has no class folders; it should hold CLASS/*.JPEG")
        return Listing(root, classes, np.array(paths), np.array(labels, np.int64))

    def path(self, index: int) -> Path:
        """Return the path of an image."""
        return self.root / os.fsdecode(bytes(self.paths_N[index]))


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageFolder(Dataset):
    """Images read from files and cut to `size_px` a side.

    For evaluation, the shorter side is scaled to `resize_px` before the cut.
    """

    parts: dict[Part, Listing]
    size_px: int
    resize_px: int

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the class folders."""
        return self.parts["train"].classes

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a batch's images."""
        return 3, self.size_px, self.size_px

    @cached_property
    def checksum(self) -> str:
        """Sha256 over sorted paths inside the folder and sizes in bytes, not over contents."""
        digest = hashlib.sha256()
        for part, listing in sorted(self.parts.items()):
            for path in sorted(listing.paths_N.tolist()):
                size = os.stat(listing.root / os.fsdecode(path)).st_size
                digest.update(b"%s/%s %d\n" % (part.encode(), path, size))
        return digest.hexdigest()

    def size(self, part: Part) -> int:
        """Return the number of training or test images, regardless of the split."""
        return len(self.parts[part].labels_N)

    def plain(self, part: Part, order_N: Indices, *, batch: int, device: torch.device) -> Iterator[Batch]:
        """Return these images in this order, as evaluated, with the last partial batch."""
        crop = partial(central, size=self.size_px, resize=self.resize_px)
        return self._batches(Files(self.parts[part], crop, skip=skips_bad_images()), _chunks(order_N, batch), device)

    def augmented(
        self,
        order_N: Indices,
        *,
        batch: int,
        start: int,
        seed: int,
        epoch: int,
        device: torch.device,
        share: slice = WHOLE,
    ) -> Iterator[Batch]:
        """Return these training images in this order, augmented, from step `start` on.

        The last partial batch is included."""
        crop = partial(augmented, size=self.size_px, seed=seed, epoch=epoch)
        chunks = [chunk[share] for chunk in _chunks(order_N, batch)[start:]]
        files = Files(self.parts["train"], crop, skip=skips_bad_images(), replace=True)
        return self._batches(files, chunks, device)

    def _batches(self, files: Files, chunks: list[list[int]], device: torch.device) -> Iterator[Batch]:
        loader: DataLoader[tuple[Tensor, int, int]] = DataLoader(
            files,
            batch_sampler=chunks,
            num_workers=min(workers(), len(chunks)),
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # its own: the loader would draw from the global one otherwise
        )
        normalize = normalizer(self.mean, self.std, device)
        named: set[int] = set()
        try:
            for pixels_BCHW, labels_B, skipped_B in loader:
                for index in skipped_B[skipped_B >= 0].tolist():
                    if index not in named:
                        named.add(index)
                        log.warning(
                            "%s is not a readable image; %d skipped so far", files.listing.path(index), len(named)
                        )
                if not files.replace and (skipped_B >= 0).any():
                    pixels_BCHW, labels_B = pixels_BCHW[skipped_B < 0], labels_B[skipped_B < 0]
                    if not len(labels_B):
                        continue
                pixels_BCHW = pixels_BCHW.to(device, non_blocking=True)
                yield normalize(pixels_BCHW), labels_B.to(device, non_blocking=True)
        except UnreadableImage as error:
            # A worker's error arrives with the text of its traceback; its last line is the message.
            raise ValueError(str(error).strip().splitlines()[-1].removeprefix(_PREFIX)) from None


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


@dataclass(frozen=True)
class Files(torch.utils.data.Dataset[tuple[Tensor, int, int]]):
    """Decoded and cropped images with their labels.

    An item is (uint8 [C, H, W], label, skipped); skipped is the index of an unreadable image, or -1.

    skip     read the next file in place of an unreadable one; else UnreadableImage is raised
    replace  the next file's image stands for the skipped one; else the reader of the batches drops it
    """

    listing: Listing
    crop: Callable[[Image.Image, int], Image.Image]
    skip: bool = False
    replace: bool = False

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        count = len(self.listing.labels_N)
        for shift in range(count):
            place = (index + shift) % count
            try:
                pixels_HWC = np.array(self.crop(self._decode(place), place))
            except UnreadableImage:
                if not self.skip:
                    raise
                continue
            pixels_CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1).contiguous()
            return pixels_CHW, int(self.listing.labels_N[place]), index if shift else -1
        raise UnreadableImage(f"{self.listing.root} has no readable image; fetch the files again")

    def _decode(self, index: int) -> Image.Image:
        path = self.listing.path(index)
        try:
            with Image.open(path) as file:
                return _eight_bits(file).convert("RGB")
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise UnreadableImage(f"{path} is not a readable image ({error}); fetch it again") from None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return the upper byte of 16-bit grey pixels; other images unchanged."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))


def central(image: Image.Image, index: int, *, size: int, resize: int) -> Image.Image:
    """Scale the shorter side to `resize`, and return the central square of `size`."""
    return F.center_crop(F.resize(image, [resize]), [size])


def augmented(image: Image.Image, index: int, *, size: int, seed: int, epoch: int) -> Image.Image:
    """Return a random part of the image, scaled to `size` and perhaps mirrored."""
    random = stream(seed, epoch, CROP, index)
    left, top, width, height = random_box(random, image.width, image.height)
    image = F.resized_crop(image, top, left, height, width, [size, size])
    return F.hflip(image) if random.random() < 0.5 else image


def random_box(random: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    """Return (left, top, width, height) of a random part of an image.

    The rule is that of torchvision's RandomResizedCrop.
    Area and log aspect ratio are uniform; after ten boxes that do not fit, the central one with the nearest ratio.
    """
    for _ in range(TRIES):
        area = width * height * random.uniform(*AREA)
        ratio = math.exp(random.uniform(*LOG_RATIO))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left, top = random.integers(width - box_width + 1), random.integers(height - box_height + 1)
            return int(left), int(top), box_width, box_height
    ratio = min(max(width / height, math.exp(LOG_RATIO[0])), math.exp(LOG_RATIO[1]))
    box_width, box_height = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (width - box_width) // 2, (height - box_height) // 2, box_width, box_height


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


def _chunks(order_N: Indices, batch: int) -> list[list[int]]:
    return [order_N[first : first + batch].tolist() for first in range(0, len(order_N), batch)]


def image_folder(folder: Path, *, name: str, size_px: int, resize_px: int, how_to_get: str = FILL) -> ImageFolder:
    """Return the data set in `folder`/`name`.

    Raises ValueError when it is not there, with `how_to_get` it, or when its two parts have different classes.
    """
    root = folder / name
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise ValueError(
                f"{name} needs {root / part}, which is not there; {how_to_get}, or name another folder with --data or SUITE_DATA"
            )
    train, test = Listing.read(root / "train"), Listing.read(root / "val")
    if train.classes != test.classes:
        differing = ", ".join(sorted(set(train.classes) ^ set(test.classes))[:5])
        raise ValueError(f"train and val of {root} have different classes ({differing}); give both the same folders")
    return ImageFolder(
        name=name,
        classes=len(train.classes),
        mean=MEAN,
        std=STD,
        parts={"train": train, "test": test},
        size_px=size_px,
        resize_px=resize_px,
    )
