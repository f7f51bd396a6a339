"""CIFAR-size images that live as one uint8 tensor on the training device.

Shapes: N images, B images of a batch, C channels, H rows, W columns, P crop padding.

Random crops, flips and the normalisation act on whole batches there: no loop over images, no worker processes. What is
random in an epoch is drawn at once by a generator on the CPU, so batches are the same on a GPU and a CPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from suite.contract import Batch
from suite.data.base import CROP, WHOLE, Dataset, Indices, Part, normalizer, stream


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrays:
    """The images, uint8 [N, C, H, W], and their labels, int64 [N]."""

    train_images_NCHW: Tensor
    train_labels_N: Tensor
    test_images_NCHW: Tensor
    test_labels_N: Tensor
    _moved: dict[torch.device, Arrays] = field(default_factory=dict, repr=False)

    @staticmethod
    def of_nhwc(
        train_images: NDArray[np.uint8], train_labels: Indices, test_images: NDArray[np.uint8], test_labels: Indices
    ) -> Arrays:
        """From images in the order [N, H, W, C] of most files."""
        return Arrays(
            train_images_NCHW=torch.from_numpy(train_images).permute(0, 3, 1, 2).contiguous(),
            train_labels_N=torch.from_numpy(train_labels),
            test_images_NCHW=torch.from_numpy(test_images).permute(0, 3, 1, 2).contiguous(),
            test_labels_N=torch.from_numpy(test_labels),
        )

    def part(self, part: Part) -> tuple[Tensor, Tensor]:
        """Images and labels of the training or the test set."""
        if part == "train":
            return self.train_images_NCHW, self.train_labels_N
        return self.test_images_NCHW, self.test_labels_N

    @cached_property
    def checksum(self) -> str:
        """Sha256 over the bytes of train images, train labels, test images and test labels."""
        digest = hashlib.sha256()
        for tensor in (*self.part("train"), *self.part("test")):
            digest.update(tensor.numpy().data)
        return digest.hexdigest()

    def on(self, device: torch.device) -> Arrays:
        """Return the same arrays on a device; the first call moves them."""
        if device.type == "cpu":
            return self
        if device not in self._moved:
            (train_images, train_labels), (test_images, test_labels) = (
                [tensor.to(device) for tensor in self.part(part)] for part in ("train", "test")
            )
            self._moved[device] = Arrays(
                train_images_NCHW=train_images,
                train_labels_N=train_labels,
                test_images_NCHW=test_images,
                test_labels_N=test_labels,
            )
        return self._moved[device]


@dataclass(frozen=True, kw_only=True, eq=False)
class Resident(Dataset):
    """Images small enough to stay on the device.

    Augmentation is a random crop after zero padding, then a horizontal flip.

    `crop_padding` pixels of zeros surround an image before it is cropped to its own size (0: no crop).
    """

    arrays: Arrays
    crop_padding: int = 4
    flip: bool = True

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a batch's images."""
        channels, height, width = self.arrays.train_images_NCHW.shape[1:]
        return channels, height, width

    @property
    def checksum(self) -> str:
        """Sha256 over the arrays: images uint8 [N, C, H, W], labels int64, train before test."""
        return self.arrays.checksum

    def size(self, part: Part) -> int:
        """Return the number of training or test images, regardless of the split."""
        return len(self.arrays.part(part)[1])

    def plain(self, part: Part, order_N: Indices, *, batch: int, device: torch.device) -> Iterator[Batch]:
        """Return these images in this order, as evaluated, with the last partial batch."""
        images_NCHW, labels_N = self.arrays.on(device).part(part)
        normalize = normalizer(self.mean, self.std, device)
        index_N = torch.from_numpy(order_N).to(device)
        for first in range(0, len(order_N), batch):
            index_B = index_N[first : first + batch]
            yield normalize(images_NCHW.index_select(0, index_B)), labels_N.index_select(0, index_B)

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
        random = stream(seed, epoch, CROP)
        offsets_2N = random.integers(2 * self.crop_padding + 1, size=(2, len(order_N)))
        flipped_N = random.integers(2, size=len(order_N)) * self.flip
        draws_4N = torch.from_numpy(np.stack([order_N, *offsets_2N, flipped_N])).to(device)

        images_NCHW, labels_N = self.arrays.on(device).part("train")
        normalize = normalizer(self.mean, self.std, device)
        for first in range(start * batch, len(order_N), batch):
            index_B, top_B, left_B, flipped_B = draws_4N[:, first : first + batch][:, share]
            pixels_BCHW = images_NCHW.index_select(0, index_B)
            if self.crop_padding:
                pixels_BCHW = cropped(pixels_BCHW, top_B, left_B, self.crop_padding)
            if self.flip:
                pixels_BCHW = flipped(pixels_BCHW, flipped_B)
            yield normalize(pixels_BCHW), labels_N.index_select(0, index_B)


def cropped(images_BCHW: Tensor, top_B: Tensor, left_B: Tensor, padding: int) -> Tensor:
    """Return each image padded by `padding` zeros and cropped at its own offsets, 0..2P.

    All 2P+1 by 2P+1 windows of an image are a strided view without a copy; one indexing picks each image's own.
    """
    height, width = images_BCHW.shape[2:]
    padded = F.pad(images_BCHW, (padding,) * 4)
    windows_BCPPHW = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows_BCPPHW[torch.arange(len(images_BCHW), device=images_BCHW.device), :, top_B, left_B]


def flipped(images_BCHW: Tensor, flipped_B: Tensor) -> Tensor:
    """Mirror each image left to right if its `flipped_B` is 1.

    Picking whole images from both versions is several times faster on a CPU than `torch.where` over pixels.
    """
    count = len(images_BCHW)
    both = torch.cat([images_BCHW, images_BCHW.flip(-1)])
    return both.index_select(0, torch.arange(count, device=images_BCHW.device) + count * flipped_B)
