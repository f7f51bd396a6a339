"""Folders of image files: `train/CLASS/*` and `val/CLASS/*`, the layout that torchvision calls ImageFolder.

Shapes: N images, B images of a batch, C channels, H rows, W columns.

`imagenet` and `tinyimagenet20` are the folders of these names in the data folder. Training images are a random part of
the file, resized and flipped (RandomResizedCrop as in torchvision: 8 to 100 % of the area, ratio 3/4 to 4/3);
evaluation resizes the shorter side and cuts out the centre. Worker processes decode: SUITE_WORKERS of them, by default
one per usable core up to 8; for a GPU the batches are in pinned memory. What is random about an image comes from
(seed, epoch, image), so neither the number of workers nor the step at which a run resumes changes a batch.

An image that cannot be decoded stops the stage. With SUITE_BAD_IMAGES=skip it is named and counted in the log and in the row
instead: for training the next readable image of the epoch takes its place, so that batches keep their size, and evaluation
leaves it out. Images in other colour modes (CMYK, grey) are converted to RGB by Pillow. Of 16-bit grey pixels the upper byte is
taken, as Pillow does for 16-bit RGB. Class folders may be nested. Files and folders whose name begins with a dot are left out,
and counted in the log.
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
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import functional as F

from suite.contract import Batch
from suite.data._files import DECODERS, Files, Listing, UnreadableImage, decoder, message, skips_bad_images, workers
from suite.data.base import CROP, WHOLE, Dataset, Indices, Part, normalizer, stream

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AREA, LOG_RATIO, TRIES = (0.08, 1.0), (math.log(3 / 4), math.log(4 / 3)), 10
FILL = "put train/CLASS/* and val/CLASS/* there"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageFolder(Dataset):
    """Images read from files and cut to `size_px` a side.

    For evaluation, the shorter side is scaled to `resize_px` before the cut.
    """

    parts: dict[Part, Listing]
    size_px: int
    resize_px: int

    @property
    def notes(self) -> dict[str, Any]:
        """Decoder, if not the default."""
        name = decoder()
        return {"decoder": name} if name != "pil" else {}

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
        chunks = [[*range(first, min(first + batch, len(order_N)))] for first in range(0, len(order_N), batch)]
        return self._batches(self._files(part, order_N, crop), chunks, device, replace=False)

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
        chunks = [
            [*range(first, min(first + batch, len(order_N)))[share]]
            for first in range(start * batch, len(order_N), batch)
        ]
        return self._batches(self._files("train", order_N, crop), chunks, device, replace=True)

    def _files(self, part: Part, order_N: Indices, crop: Callable[[Image.Image, int], Image.Image]) -> Files:
        return Files(self.parts[part], order_N, crop, DECODERS[decoder()], skip=skips_bad_images())

    def _batches(
        self, files: Files, chunks: list[list[int]], device: torch.device, *, replace: bool
    ) -> Iterator[Batch]:
        """Return the images at these positions, batch by batch.

        replace  another image stands for a skipped one; else the batch is smaller
        """
        processes = min(workers(), len(chunks))
        context = "fork" if processes else None  # children of the launcher's fork server would import torch, every pass
        loader: DataLoader[tuple[Tensor, int, int]] = DataLoader(
            files,
            batch_sampler=chunks,
            num_workers=processes,
            multiprocessing_context=context,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # its own: the loader would draw from the global one otherwise
        )
        normalize = normalizer(self.mean, self.std, device)
        try:
            for pixels_BCHW, labels_B, skipped_B in loader:
                self._name(files, skipped_B[skipped_B >= 0].tolist())
                if not replace and (skipped_B >= 0).any():
                    pixels_BCHW, labels_B = pixels_BCHW[skipped_B < 0], labels_B[skipped_B < 0]
                    if not len(labels_B):
                        continue
                pixels_BCHW = pixels_BCHW.to(device, non_blocking=True)
                yield normalize(pixels_BCHW), labels_B.to(device, non_blocking=True)
        except UnreadableImage as error:
            raise ValueError(message(error)) from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise OSError(f"training images cannot be read: {message(error)}") from None  # of a worker process

    def _name(self, files: Files, skipped: list[int]) -> None:
        """Log each unreadable image once a stage, and store its name."""
        for index in skipped:
            name = files.listing.name(index)
            if name not in self.skipped:
                self.skipped.add(name)
                path = files.listing.path(index)
                log.warning("%s is not a readable image; %d skipped so far", path, len(self.skipped))


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
