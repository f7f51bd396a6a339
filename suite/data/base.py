"""Data sets: training epochs that a seed determines, and batches for evaluation.

Shapes: N images, B images of a batch, C channels, H rows, W columns.

All randomness of an epoch comes from (seed, epoch), and that of an image file from (seed, epoch, image). No loader has
a state: to go on in the middle of an epoch, ask for that epoch from that step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Self, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suite.contract import Batch

Indices: TypeAlias = NDArray[np.int64]
Split = Literal["all", "tuning", "held_out"]
"""Which training images are trained on: all of them, or all but a fixed tenth for validation. Results are then accuracies on
the test set, or ("tuning") on that tenth, so that no test image is read."""
Part = Literal["train", "test"]

ORDER, CROP = 0, 1
"""What a stream of random numbers is for; streams of one (seed, epoch) are independent."""


WHOLE = slice(None)


def stream(seed: int, epoch: int, *use: int) -> np.random.Generator:
    """Return the generator of one use in one epoch: ORDER, or CROP and an image."""
    return np.random.default_rng((seed, epoch, *use))


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes that the cost of training depends on, known without the images.

    train  number of training images, regardless of the split
    path   of the data in the data folder
    """

    classes: int
    input_shape: tuple[int, int, int]
    train: int
    path: str

    def train_size(self, split: Split) -> int:
        """Return the number of images that a split trains on."""
        return self.train - (0 if split == "all" else self.train // 10)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset(ABC):
    """Labelled training and test images.

    `mean` and `std` are those of a channel, of pixels in [0, 1]. `skipped` has the names of the image files that this task has
    skipped in the current stage.
    """

    name: str
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    skipped: set[str] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        channels = self.input_shape[0]
        if len(self.mean) != channels or len(self.std) != channels or min(self.std) <= 0:
            raise ValueError(
                f"{self.name} takes a mean and a positive std for each of its {channels} channels, "
                f"got {self.mean} and {self.std}"
            )

    # ---- what a kind of data set implements --------------------------------------------------------------------------

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a batch's images."""

    @property
    @abstractmethod
    def checksum(self) -> str:
        """Sha256, hex, of the images and labels."""

    @abstractmethod
    def size(self, part: Part) -> int:
        """Return the number of training or test images, regardless of the split."""

    @abstractmethod
    def plain(self, part: Part, order_N: Indices, *, batch: int, device: torch.device) -> Iterator[Batch]:
        """Return these images in this order, as evaluated, with the last partial batch."""

    @abstractmethod
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

        The last partial batch is included.

        Of each batch the images `share`, bit for bit as they are in the whole one.
        """

    @property
    def notes(self) -> dict[str, Any]:
        """Facts about reading the images that belong into a row's provenance."""
        return {}

    # ---- what follows from it ----------------------------------------------------------------------------------------

    @cached_property
    def _permutation_N(self) -> Indices:
        """A permutation of the training images that never changes (NumPy froze the stream of RandomState)."""
        return np.random.RandomState(0).permutation(self.size("train")).astype(np.int64)

    def train_indices(self, split: Split) -> Indices:
        """Return the indices of the training images of a split.

        All splits but "all" hold out the last tenth of a fixed permutation.
        Raises ValueError for another split.
        """
        if split not in get_args(Split):
            raise ValueError(f"unknown split {split!r}; choose from: {', '.join(get_args(Split))}")
        held_out = 0 if split == "all" else len(self._permutation_N) // 10
        return self._permutation_N[: len(self._permutation_N) - held_out]

    def train_size(self, split: Split) -> int:
        """Return the number of images that a split trains on."""
        return len(self.train_indices(split))

    @property
    def test_size(self) -> int:
        """Number of test images."""
        return self.size("test")

    def with_normalization(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Self:
        """Return the same images with another normalisation, that of public weights."""
        return replace(self, mean=tuple(mean), std=tuple(std))

    def train(
        self,
        split: Split,
        *,
        batch: int,
        seed: int,
        device: torch.device | str,
        limit: int | None = None,
        share: slice = WHOLE,
    ) -> Loader:
        """Return the augmented training batches, with at most `limit` images an epoch.

        Each epoch takes other images.
        """
        return Loader(
            dataset=self, split=split, batch=batch, seed=seed, device=torch.device(device), limit=limit, share=share
        )

    def test(self, batch: int, device: torch.device | str, share: slice = WHOLE) -> Iterator[Batch]:
        """Return the test images in order, or `share` of them, not augmented.

        The last partial batch is included.
        """
        check_positive("batch", batch)
        order_N = np.arange(self.size("test"), dtype=np.int64)[share]
        return self.plain("test", order_N, batch=batch, device=torch.device(device))

    def validation(
        self, batch: int, device: torch.device | str, share: slice = WHOLE, split: Split = "tuning"
    ) -> Iterator[Batch]:
        """Return the training images that `split` holds out, or `share` of them.

        Their order is fixed; they are not augmented.

        Raises ValueError for the split "all", which holds none out.
        """
        check_positive("batch", batch)
        held_out_N = self._permutation_N[self.train_size(split) :][share]
        if split == "all":
            raise ValueError(
                f"the split 'all' of {self.name} trains on every image; 'tuning' and 'held_out' hold some out"
            )
        return self.plain("train", held_out_N, batch=batch, device=torch.device(device))

    def samples(self, n: int, *, split: Split, device: torch.device | str) -> Batch:
        """Return the first `n` training images of a fixed permutation, not augmented.

        They are the same in every split.

        Raises ValueError when the split has fewer.
        """
        check_positive("number of samples", n)
        if n > self.train_size(split):
            raise ValueError(f"{n} samples asked of {self.name}, whose split {split!r} has {self.train_size(split)}")
        order_N, parts, first, count = self.train_indices(split), list[Batch](), 0, 0
        while count < n and first < len(order_N):  # more than once only if unreadable images are skipped
            missing_N = order_N[first : first + n - count]
            parts += self.plain("train", missing_N, batch=min(len(missing_N), 256), device=torch.device(device))
            first, count = first + len(missing_N), sum(len(labels) for _, labels in parts)
        return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


@dataclass(frozen=True, kw_only=True, eq=False)
class Loader:
    """The training batches of a data set, normalised and augmented.

    Images are float32 [B, C, H, W], labels int64 [B].

    An epoch visits a fresh permutation of the split's images; the last partial batch is dropped. Where there are fewer
    images than one batch, an epoch is one step of what there is.
    """

    dataset: Dataset
    split: Split
    batch: int
    seed: int
    device: torch.device
    limit: int | None = None
    share: slice = field(default_factory=lambda: WHOLE)

    def __post_init__(self) -> None:
        check_positive("batch", self.batch)
        check_positive("limit", 1 if self.limit is None else self.limit)
        if self.seed < 0:
            raise ValueError(f"seed {self.seed} is negative; take 0 or more")

    @cached_property
    def images_per_epoch(self) -> int:
        """The images that an epoch uses."""
        size = self.dataset.train_size(self.split)
        used = size if self.limit is None else min(size, self.limit)
        return used if used < self.batch else used - used % self.batch

    def __len__(self) -> int:
        """Return the number of steps of an epoch."""
        return -(-self.images_per_epoch // self.batch)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Return the batches of one epoch from step `start` on.

        They have the bits that a whole epoch has there.
        """
        if epoch < 0 or not 0 <= start <= len(self):
            raise ValueError(f"epoch {epoch} from step {start}: an epoch has {len(self)} steps, and both count from 0")
        order_N = stream(self.seed, epoch, ORDER).permutation(self.dataset.train_indices(self.split))
        return self.dataset.augmented(
            order_N[: self.images_per_epoch],
            batch=self.batch,
            start=start,
            seed=self.seed,
            epoch=epoch,
            device=self.device,
            share=self.share,
        )


def normalizer(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the function from uint8 pixels to (pixel / 255 - mean) / std.

    It maps [B, C, H, W] to float32 of the same shape.

    One multiplication and one addition, in two kernels: a fused one would round differently on a GPU than on a CPU.
    """
    mean_C, std_C = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    scale_C11 = (1 / (255 * std_C)).float()[:, None, None].to(device)
    shift_C11 = (-mean_C / std_C).float()[:, None, None].to(device)
    return lambda pixels_BCHW: pixels_BCHW.float().mul_(scale_C11).add_(shift_C11)


def check_positive(what: str, value: int) -> None:
    """Raise ValueError unless `value` is at least 1."""
    if value < 1:
        raise ValueError(f"{what} {value} is not positive; take 1 or more")
