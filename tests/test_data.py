"""Data sets: the same seed gives the same batches, whatever was loaded before; the arithmetic is the textbook one."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, Normalize, RandomResizedCrop, Resize, ToTensor

from suite import data
from suite.contract import Batch
from suite.data import _imagefolder as imagefolder
from suite.data import cifar10 as cifar10_file
from suite.data import imagenet
from suite.data.base import CROP, ORDER, Dataset, stream
from suite.data.resident import Arrays, Resident, cropped, flipped

CPU = torch.device("cpu")


def same(left: list[Batch], right: list[Batch]) -> bool:
    """Are they bit for bit the same batches?"""
    pairs = itertools.zip_longest(left, right)
    return all(a and b and torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


def random_images(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 32, 32, 3] and labels of ten classes."""
    random = np.random.default_rng(seed)
    return random.integers(256, size=(count, 32, 32, 3), dtype=np.uint8), random.integers(10, size=count)


def write_cifar10(folder: Path, train: int = 100, test: int = 30) -> dict[str, np.ndarray]:
    """A small `cifar10.npz` and what is in it."""
    arrays = dict(zip(("train_images", "train_labels"), random_images(train), strict=True))
    arrays |= dict(zip(("test_images", "test_labels"), random_images(test, seed=1), strict=True))
    cifar10_file.write_npz(folder / "cifar10.npz", arrays)
    return arrays


def write_images(root: Path, counts: dict[str, int], suffix: str = ".png") -> None:
    """`root`/CLASS/N.png of random smooth images of several sizes and colour modes."""
    random = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            small = Image.fromarray(random.integers(256, size=(5, 5, 3), dtype=np.uint8))
            image = small.resize((40 + 3 * i, 50 + i), Image.Resampling.BICUBIC)
            image.convert("L" if i == 1 else "RGB").save(root / name / f"{i}{suffix}")


@pytest.fixture(params=["digits", "cifar10", "tinyimagenet20"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """One of each kind, small."""
    monkeypatch.setenv("SUITE_WORKERS", "0")
    write_cifar10(tmp_path)
    write_images(tmp_path / "tinyimagenet20" / "train", {"cat": 11, "dog": 9})
    write_images(tmp_path / "tinyimagenet20" / "val", {"cat": 3, "dog": 4}, ".JPEG")
    return data.load(request.param, tmp_path)


# ---- every data set --------------------------------------------------------------------------------------------------


def test_the_same_seed_and_epoch_give_the_same_batches(dataset: Dataset) -> None:
    loader = dataset.train("all", batch=8, seed=3, device=CPU, limit=40)
    first = list(loader.epoch(1))
    assert same(first, list(dataset.train("all", batch=8, seed=3, device="cpu", limit=40).epoch(1)))
    assert not same(first, list(loader.epoch(2)))
    assert not same(first, list(dataset.train("all", batch=8, seed=4, device=CPU, limit=40).epoch(1)))


def test_an_epoch_goes_on_from_any_step(dataset: Dataset) -> None:
    loader = dataset.train("tuning", batch=4, seed=0, device=CPU, limit=18)
    whole = list(loader.epoch(5))
    assert len(whole) == len(loader) == 4
    for start in range(len(loader) + 1):
        assert same(whole[start:], list(loader.epoch(5, start)))


def test_loading_leaves_the_global_random_states_alone(dataset: Dataset) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    list(dataset.train("all", batch=4, seed=0, device=CPU, limit=8).epoch(0))
    list(dataset.test(4, CPU))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # type: ignore[index]


def test_batches_have_the_documented_form(dataset: Dataset) -> None:
    loader = dataset.train("all", batch=4, seed=0, device=CPU, limit=4)
    samples = [dataset.samples(3, split="all", device=CPU)]
    for batches in (loader.epoch(0), dataset.test(4, CPU), dataset.validation(4, CPU), samples):
        images, labels = next(iter(batches))
        assert images.dtype == torch.float32
        assert images.is_contiguous()
        assert tuple(images.shape[1:]) == dataset.input_shape
        assert labels.dtype == torch.int64
        assert labels.shape == images.shape[:1]
        assert 0 <= int(labels.min()) <= int(labels.max()) < dataset.classes


def test_the_tuning_split_holds_out_a_fixed_tenth(dataset: Dataset) -> None:
    everything, kept = dataset.train_indices("all"), dataset.train_indices("tuning")
    held_out = len(everything) // 10
    assert sorted(everything) == list(range(dataset.train_size("all")))
    assert dataset.train_size("tuning") == len(kept) == len(everything) - held_out
    assert np.array_equal(kept, everything[: len(kept)])
    validation = list(dataset.validation(2, CPU))
    assert sum(len(labels) for _, labels in validation) == held_out
    assert same(validation, list(dataset.plain("train", everything[len(kept) :], batch=2, device=CPU)))
    assert same(validation, list(dataset.validation(2, CPU)))


def test_the_held_out_tenth_never_changes() -> None:
    digits = data.load("digits")
    assert digits.train_indices("all")[-5:].tolist() == [763, 835, 1216, 559, 684]
    assert (digits.train_size("tuning"), digits.train_size("all"), digits.test_size) == (1294, 1437, 360)


def test_the_split_all_has_no_validation_images(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match=r"the split 'all' of .* trains on every image"):
        dataset.validation(2, CPU, split="all")


def test_steps_drop_the_last_partial_batch_of_training_only(dataset: Dataset) -> None:
    size = dataset.train_size("tuning")
    for batch in (1, 7, size - 1, size):
        loader = dataset.train("tuning", batch=batch, seed=0, device=CPU, limit=21)
        images = min(size, 21)
        sizes = [len(labels) for _, labels in loader.epoch(0)]
        assert sizes == ([batch] * (images // batch) if batch <= images else [images])
        assert len(sizes) == len(loader)
    assert [len(labels) for _, labels in dataset.train("all", batch=9999, seed=0, device=CPU).epoch(0)] == [
        dataset.train_size("all")
    ]
    tested = [len(labels) for _, labels in dataset.test(4, CPU)]
    assert sum(tested) == dataset.test_size
    assert set(tested[:-1]) <= {4}


def test_an_epoch_visits_every_image_once_and_a_limit_draws_others_each_epoch() -> None:
    digits = data.load("digits")
    labels = torch.cat([labels for _, labels in digits.train("all", batch=479, seed=0, device=CPU).epoch(0)])
    assert labels.bincount().tolist() == [142, 146, 141, 147, 144, 146, 145, 143, 139, 144]
    limited = digits.train("all", batch=10, seed=0, device=CPU, limit=30)
    unlimited = digits.train("all", batch=10, seed=0, device=CPU)
    for epoch in (0, 1):  # the first images of the epoch's permutation
        seen = [y.tolist() for _, y in limited.epoch(epoch)]
        assert seen == [y.tolist() for _, y in itertools.islice(unlimited.epoch(epoch), 3)]


def test_samples_are_the_same_in_both_splits_and_not_augmented(dataset: Dataset) -> None:
    images, labels = dataset.samples(6, split="tuning", device=CPU)
    assert same([(images, labels)], [dataset.samples(6, split="all", device=CPU)])
    assert torch.equal(images[:4], dataset.samples(4, split="all", device=CPU)[0])
    assert same([(images, labels)], list(dataset.plain("train", dataset.train_indices("all")[:6], batch=6, device=CPU)))
    with pytest.raises(ValueError, match=r"samples asked of \w+, whose split 'tuning' has"):
        dataset.samples(dataset.train_size("all"), split="tuning", device=CPU)


def test_another_normalization_changes_only_that(dataset: Dataset) -> None:
    other = dataset.with_normalization((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert other.checksum == dataset.checksum
    for ours, theirs in zip(dataset.test(4, CPU), other.test(4, CPU), strict=True):
        pixels = ours[0] * torch.tensor(dataset.std)[:, None, None] + torch.tensor(dataset.mean)[:, None, None]
        expected = Normalize((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))(pixels)
        torch.testing.assert_close(theirs[0], expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="a positive std for each of its 3 channels"):
        dataset.with_normalization((0.5,), (0.1,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0}, "batch 0 is not positive"),
        ({"limit": 0}, "limit 0 is not positive"),
        ({"seed": -1}, "seed -1 is negative"),
        ({"split": "test"}, "unknown split 'test'; choose from: all, tuning, held_out"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    given = {"split": "all", "batch": 8, "seed": 0, "device": CPU} | arguments
    with pytest.raises(ValueError, match=message):
        list(data.load("digits").train(**given).epoch(0))
    loader = data.load("digits").train("all", batch=1000, seed=0, device=CPU)
    with pytest.raises(ValueError, match="an epoch has 1 steps"):
        loader.epoch(0, start=2)


# ---- finding data sets -----------------------------------------------------------------------------------------------


def test_data_sets_are_found_by_name() -> None:
    assert {"digits", "cifar10", "imagenet", "tinyimagenet20"} <= set(data.available())
    with pytest.raises(ValueError, match=r"unknown data set 'cifar' \(did you mean cifar10\?\); choose from: cifar10"):
        data.load("cifar")


def test_the_data_folder_is_the_argument_or_the_variable_or_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUITE_DATA", "/from/variable")
    assert data.data_folder(Path("/given")) == Path("/given")
    assert data.data_folder() == Path("/from/variable")
    monkeypatch.delenv("SUITE_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert data.data_folder() == Path("/cache/pruning-suite")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data.data_folder() == Path.home() / ".cache" / "pruning-suite"


def test_the_digits_are_these() -> None:
    digits = data.load("digits")
    assert (digits.name, digits.classes, digits.input_shape) == ("digits", 10, (3, 32, 32))
    assert digits.checksum == "ebbfa726d26f9d5207c1374cd8c98b03c45ae13a2093d82ff8d06ad7f8886a4a"
    labels = torch.cat([labels for _, labels in digits.test(100, CPU)])
    assert labels.bincount(minlength=10).tolist() == [36, 36, 36, 36, 37, 36, 36, 36, 35, 36]
    images, _ = digits.samples(1294, split="tuning", device=CPU)
    assert abs(float(images.mean())) < 0.01
    assert abs(float(images.std()) - 1) < 0.01


# ---- images on the device --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [1, 2, 4])
def test_crops_and_flips_equal_those_made_image_by_image(padding: int) -> None:
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(256, size=(50, 3, 12, 10), dtype=np.uint8))
    top, left = torch.from_numpy(random.integers(2 * padding + 1, size=(2, 50)))
    mirrored = torch.from_numpy(random.integers(2, size=50))
    result = flipped(cropped(images, top, left, padding), mirrored)
    for i, image in enumerate(images):
        y, x = int(top[i]), int(left[i])
        one = torch.zeros(3, 12 + 2 * padding, 10 + 2 * padding, dtype=torch.uint8)
        one[:, padding : padding + 12, padding : padding + 10] = image
        one = one[:, y : y + 12, x : x + 10]
        assert torch.equal(result[i], one.flip(-1) if mirrored[i] else one)


def test_a_training_batch_equals_the_textbook_pipeline(tmp_path: Path) -> None:
    arrays = write_cifar10(tmp_path)
    cifar10 = data.load("cifar10", tmp_path)
    [(images, labels)] = cifar10.train("all", batch=100, seed=7, device=CPU).epoch(2)
    order = stream(7, 2, ORDER).permutation(cifar10.train_indices("all"))
    crops = stream(7, 2, CROP)
    offsets, mirrored = crops.integers(9, size=(2, 100)), crops.integers(2, size=100)
    assert labels.tolist() == arrays["train_labels"][order].tolist()
    assert set(offsets.flatten()) == set(range(9))
    for i, (index, y, x, mirror) in enumerate(zip(order, *offsets, mirrored, strict=True)):
        padded = np.pad(arrays["train_images"][index], ((4, 4), (4, 4), (0, 0)))[y : y + 32, x : x + 32]
        pixels = (padded[:, ::-1] if mirror else padded) / 255
        expected = (pixels - cifar10.mean) / cifar10.std
        np.testing.assert_allclose(images[i].permute(1, 2, 0), expected, rtol=0, atol=1e-6)


def test_a_data_set_without_crops_or_flips_is_only_normalized() -> None:
    images, labels = random_images(20)
    plain = Resident(
        name="plain",
        classes=10,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        arrays=Arrays.of_nhwc(images, labels, images, labels),
        crop_padding=0,
        flip=False,
    )
    [(batch, _)] = plain.train("all", batch=20, seed=0, device=CPU).epoch(0)
    by_sum = sorted(batch.sum((1, 2, 3)).tolist())
    np.testing.assert_allclose(by_sum, np.sort(images.sum((1, 2, 3)) / 255), rtol=1e-5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_sees_the_same_batches(dataset: Dataset) -> None:
    gpu = torch.device("cuda")
    batches = {
        device: [
            *dataset.train("all", batch=8, seed=1, device=device).epoch(3),
            *dataset.test(5, device),
            *dataset.validation(5, device),
            dataset.samples(5, split="tuning", device=device),
        ]
        for device in (CPU, gpu)
    }
    assert all(images.is_cuda and labels.is_cuda for images, labels in batches[gpu])
    assert same(batches[CPU], [(images.cpu(), labels.cpu()) for images, labels in batches[gpu]])


# ---- CIFAR-10 --------------------------------------------------------------------------------------------------------


def test_cifar10_is_read_as_it_was_written(tmp_path: Path) -> None:
    arrays = write_cifar10(tmp_path)
    cifar10 = data.load("cifar10", tmp_path)
    assert (cifar10.train_size("all"), cifar10.train_size("tuning"), cifar10.test_size) == (100, 90, 30)
    raw = cifar10.with_normalization((0.0,) * 3, (1.0,) * 3)
    images = torch.cat([images for images, _ in raw.test(7, CPU)])
    np.testing.assert_allclose(images.permute(0, 2, 3, 1), arrays["test_images"] / 255, rtol=0, atol=1e-6)
    labels = torch.cat([labels for _, labels in raw.test(7, CPU)])
    assert labels.tolist() == arrays["test_labels"].tolist()
    assert list(tmp_path.glob(".cifar10*part*")) == []


def test_the_checksum_is_of_the_arrays_not_of_the_file(tmp_path: Path) -> None:
    arrays = write_cifar10(tmp_path)
    checksum = data.load("cifar10", tmp_path).checksum
    np.savez_compressed(tmp_path / "cifar10.npz", extra=np.zeros(3), **arrays)  # type: ignore[arg-type]
    assert data.load("cifar10", tmp_path).checksum == checksum
    arrays["test_labels"][0] = (arrays["test_labels"][0] + 1) % 10
    cifar10_file.write_npz(tmp_path / "cifar10.npz", arrays)
    assert data.load("cifar10", tmp_path).checksum != checksum


def test_a_broken_cifar10_file_is_named_in_one_line(tmp_path: Path) -> None:
    arrays = write_cifar10(tmp_path)
    path = tmp_path / "cifar10.npz"
    whole = path.read_bytes()
    flipped_bit = bytearray(whole)
    flipped_bit[5000] ^= 1
    np.save(tmp_path / "array.npy", np.zeros(3))
    for content in (
        b"",
        b"not a zip",
        (tmp_path / "array.npy").read_bytes(),
        whole[: len(whole) // 2],
        bytes(flipped_bit),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cifar10\.npz is not a whole cifar10\.npz .* delete it") as caught:
            data.load("cifar10", tmp_path)
        assert "\n" not in str(caught.value)
    for wrong in (
        {"train_labels": arrays["train_labels"] + 5},
        {"train_images": arrays["train_images"].astype(np.float32)},
        {"test_images": arrays["test_images"][1:]},
        {"test_labels": arrays["test_labels"].astype(object)},
    ):
        np.savez(path, **(arrays | wrong))
        with pytest.raises(ValueError, match="is not a whole cifar10"):
            data.load("cifar10", tmp_path)
    np.savez(path, train_images=arrays["train_images"])
    with pytest.raises(ValueError, match="train_labels"):
        data.load("cifar10", tmp_path)


class FakeOfficial:
    """In the place of torchvision's CIFAR10."""

    def __init__(self, root: Path, train: bool, download: bool = False) -> None:
        assert download == train
        self.data, labels = random_images(20 if train else 10)
        self.targets = labels.tolist()


def test_the_official_download_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR10", FakeOfficial)
    data.fetch("cifar10", tmp_path / "new")
    monkeypatch.setattr("torchvision.datasets.CIFAR10", None)
    data.fetch("cifar10", tmp_path / "new")
    found = data.load("cifar10", tmp_path / "new")
    assert (found.train_size("all"), found.test_size) == (20, 10)


def test_only_fetching_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR10", FakeOfficial)
    with pytest.raises(ValueError, match=r"CIFAR-10 is not at .*; `python -m suite\.prefetch --grid NAME` fetches it"):
        data.load("cifar10", tmp_path)
    assert list(tmp_path.iterdir()) == []
    data.fetch("digits", tmp_path)
    with pytest.raises(ValueError, match="unknown data set 'cifar'"):
        data.fetch("cifar", tmp_path)


def test_missing_cifar10_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **options: object) -> None:
        raise OSError("<urlopen error [Errno -3]\nTemporary failure in name resolution>")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", unreachable)
    with pytest.raises(ValueError, match=r"CIFAR-10 is not at .*cifar10\.npz, and downloading it failed") as caught:
        data.fetch("cifar10", tmp_path)
    assert str(tmp_path / "cifar10.npz") in str(caught.value)
    assert "\n" not in str(caught.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="CIFAR-10 is not at"):
        data.fetch("cifar10", tmp_path / "file")


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", FakeOfficial)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="No space left on device"):
        data.fetch("cifar10", tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


@pytest.mark.skipif(
    not (data.data_folder() / "cifar10.npz").exists(), reason="needs cifar10.npz in the folder named by SUITE_DATA"
)
def test_the_real_cifar10_has_its_sizes() -> None:
    cifar10 = data.load("cifar10")
    assert (cifar10.train_size("all"), cifar10.train_size("tuning"), cifar10.test_size) == (50000, 45000, 10000)
    assert sum(len(labels) for _, labels in cifar10.validation(500, CPU)) == 5000
    labels = torch.cat([labels for _, labels in cifar10.test(1000, CPU)])
    assert labels.bincount().tolist() == [1000] * 10
    images, _ = cifar10.samples(5000, split="all", device=CPU)
    assert float(images.mean((0, 2, 3)).abs().max()) < 0.02
    assert float((images.std((0, 2, 3)) - 1).abs().max()) < 0.02


# ---- folders of images -----------------------------------------------------------------------------------------------


def small_folder(root: Path) -> Dataset:
    """Two classes of generated images."""
    write_images(root / "small" / "train", {"b": 6, "a": 7})
    write_images(root / "small" / "val", {"a": 2, "b": 3}, ".jpeg")
    (root / "small" / "train" / "a" / "notes.txt").write_text("not an image")
    return imagefolder.image_folder(root, name="small", size_px=32, resize_px=36)


def test_a_folder_is_listed_by_class_and_name(tmp_path: Path) -> None:
    small = small_folder(tmp_path)
    assert (small.classes, small.input_shape, small.train_size("all"), small.test_size) == (2, (3, 32, 32), 13, 5)
    assert torch.cat([labels for _, labels in small.test(2, CPU)]).tolist() == [0, 0, 1, 1, 1]


def test_evaluation_is_torchvisions_resize_and_centre_crop(tmp_path: Path) -> None:
    small = small_folder(tmp_path)
    transform = Compose([Resize(36), CenterCrop(32), ToTensor(), Normalize(small.mean, small.std)])
    paths = sorted((tmp_path / "small" / "val").rglob("*.jpeg"))
    expected = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    torch.testing.assert_close(torch.cat([images for images, _ in small.test(2, CPU)]), expected, rtol=0, atol=1e-6)


def test_batches_do_not_depend_on_the_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = small_folder(tmp_path)
    found: list[list[Batch]] = []
    for count in ("0", "1", "2"):
        monkeypatch.setenv("SUITE_WORKERS", count)
        loader = small.train("all", batch=3, seed=1, device=CPU)
        found.append([*loader.epoch(1), *loader.epoch(1, start=2), *small.test(2, CPU)])
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    monkeypatch.setenv("SUITE_WORKERS", "many")
    with pytest.raises(ValueError, match="SUITE_WORKERS is 'many'; give a number"):
        next(loader.epoch(0))


@pytest.mark.parametrize(("width", "height"), [(500, 375), (64, 64), (30, 900), (900, 30)])
def test_random_boxes_are_distributed_as_torchvisions(width: int, height: int) -> None:
    random = np.random.default_rng(0)
    ours = np.array([imagefolder.random_box(random, width, height) for _ in range(2000)])
    left, top, box_width, box_height = ours.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + box_width <= width).all()
    assert (top + box_height <= height).all()
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(2000)])
    theirs = theirs[:, [1, 0, 3, 2]]
    error = np.sqrt((ours.var(0) + theirs.var(0)) / 2000)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) <= 4 * error + 1e-9).all()


def test_training_images_are_crops_and_mirror_images(tmp_path: Path) -> None:
    small = small_folder(tmp_path)
    listing = imagefolder.Listing.read(tmp_path / "small" / "train")
    [(images, _)] = small.train("all", batch=13, seed=2, device=CPU).epoch(4)
    order = stream(2, 4, ORDER).permutation(small.train_indices("all"))
    normalize = Compose([ToTensor(), Normalize(small.mean, small.std)])
    mirrored = 0
    for image, index in zip(images, order, strict=True):
        random = stream(2, 4, CROP, index)
        source = Image.open(listing.path(index)).convert("RGB")
        left, top, width, height = imagefolder.random_box(random, *source.size)
        crop = source.crop((left, top, left + width, top + height)).resize((32, 32), Image.Resampling.BILINEAR)
        if random.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            mirrored += 1
        torch.testing.assert_close(image, normalize(crop), rtol=0, atol=1e-6)
    assert 0 < mirrored < 13


@pytest.mark.parametrize("count", ["0", "2"])
def test_an_unreadable_image_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: str) -> None:
    monkeypatch.setenv("SUITE_WORKERS", count)
    small = small_folder(tmp_path)
    path = tmp_path / "small" / "val" / "b" / "1.jpeg"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"^/.*/1\.jpeg is not a readable image \(.*\); fetch it again$") as caught:
        list(small.test(2, CPU))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", ["0", "2"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)])
def test_what_is_no_image_is_named_and_blocks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: str, make: Callable[[Path], object]
) -> None:
    monkeypatch.setenv("SUITE_WORKERS", count)
    small = small_folder(tmp_path)
    path = tmp_path / "small" / "val" / "b" / "1.jpeg"
    path.unlink()
    make(path)
    with pytest.raises(ValueError, match=r"^/.*/1\.jpeg is not a readable image \(.*\); fetch it again$"):
        list(small.test(2, CPU))


@pytest.mark.parametrize("count", ["0", "2"])
def test_unreadable_images_are_skipped_named_and_counted_by_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, count: str
) -> None:
    """Evaluation leaves the image out; a training batch keeps its size."""
    monkeypatch.setenv("SUITE_WORKERS", count)
    small = small_folder(tmp_path)
    whole = torch.cat([images for images, _ in small.test(2, CPU)])
    bad = [tmp_path / "small" / part for part in ("val/b/1.jpeg", "train/a/2.png")]
    for path in bad:
        path.write_bytes(path.read_bytes()[:100])
    monkeypatch.setenv("SUITE_BAD_IMAGES", "skip")
    rest = torch.cat([images for images, _ in small.test(2, CPU)])
    assert torch.equal(rest, whole[[0, 1, 2, 4]])
    [(images, _)] = small.train("all", batch=13, seed=0, device=CPU).epoch(0)
    assert len(images) == 13
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings == [f"{path} is not a readable image; {1 + i} skipped so far" for i, path in enumerate(bad)]
    monkeypatch.setenv("SUITE_BAD_IMAGES", "never")
    with pytest.raises(ValueError, match="SUITE_BAD_IMAGES is 'never'; choose from: fatal, skip"):
        next(small.test(2, CPU))


def test_no_held_out_image_stands_for_an_unreadable_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All training images but one are unreadable, and so is the file that follows each in the folder."""
    monkeypatch.setenv("SUITE_WORKERS", "0")
    monkeypatch.setenv("SUITE_BAD_IMAGES", "skip")
    write_images(tmp_path / "small" / "train", {"a": 10, "b": 10})
    write_images(tmp_path / "small" / "val", {"a": 1, "b": 1})
    small = imagefolder.image_folder(tmp_path, name="small", size_px=32, resize_px=36)
    listing = small.parts["train"]
    trained = small.train_indices("held_out")
    for index in trained[1:]:
        listing.path(index).write_bytes(b"")
    [(_, labels)] = small.train("held_out", batch=len(trained), seed=0, device=CPU).epoch(0)
    assert labels.tolist() == [listing.labels_N[trained[0]]] * len(trained)
    assert small.notes == {"skipped_images": len(trained) - 1}


def test_samples_are_as_many_as_asked_though_some_are_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUITE_WORKERS", "0")
    small = small_folder(tmp_path)
    whole, _ = small.samples(6, split="all", device=CPU)
    imagefolder.Listing.read(tmp_path / "small" / "train").path(small.train_indices("all")[2]).write_bytes(b"")
    monkeypatch.setenv("SUITE_BAD_IMAGES", "skip")
    images, labels = small.samples(5, split="all", device=CPU)
    assert torch.equal(images, whole[[0, 1, 3, 4, 5]])
    assert len(labels) == 5


def test_a_decoder_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = small_folder(tmp_path)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    monkeypatch.setenv("SUITE_DECODER", "torchcodec")
    with pytest.raises(ValueError, match=r"SUITE_DECODER is 'torchcodec', which does not work here \(.*'pil'$"):
        next(small.test(2, CPU))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", types.ModuleType("torchcodec.decoders"))
    with pytest.raises(ValueError, match="this version of torchcodec has no decode_jpeg"):
        next(small.test(2, CPU))
    monkeypatch.setenv("SUITE_DECODER", "ours")
    with pytest.raises(ValueError, match="SUITE_DECODER is 'ours'; choose from: pil, torchcodec"):
        next(small.test(2, CPU))


@pytest.mark.parametrize("error", [MemoryError("no room"), AttributeError("no such function")])
def test_an_error_of_the_machine_is_no_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def decode(path: Path) -> Image.Image:
        raise error

    small = small_folder(tmp_path)
    monkeypatch.setenv("SUITE_WORKERS", "0")
    monkeypatch.setenv("SUITE_BAD_IMAGES", "skip")
    monkeypatch.setitem(imagefolder.DECODERS, "pil", decode)
    with pytest.raises(type(error), match=str(error)):
        next(small.test(2, CPU))


@pytest.mark.parametrize("count", ["0", "1"])
def test_storage_that_fails_is_no_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: str) -> None:
    small = small_folder(tmp_path)
    monkeypatch.setenv("SUITE_WORKERS", count)
    monkeypatch.setenv("SUITE_BAD_IMAGES", "skip")
    (tmp_path / "small" / "val" / "b" / "1.jpeg").unlink()
    with pytest.raises(OSError, match=r"\[Errno 2\] No such file or directory: .*1\.jpeg") as caught:
        list(small.test(2, CPU))
    assert "\n" not in str(caught.value)


def test_decoders_give_equal_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a grey and a CMYK file; a truncated file is named alike."""
    pytest.importorskip("torchcodec.decoders")
    monkeypatch.setenv("SUITE_WORKERS", "0")
    small = small_folder(tmp_path)
    folder = tmp_path / "small" / "val" / "b"
    Image.new("L", (50, 40), 90).save(folder / "0.jpeg")
    Image.new("RGB", (50, 50), (200, 30, 90)).convert("CMYK").save(folder / "1.jpeg", quality=95)
    expected = torch.cat([images for images, _ in small.test(2, CPU)])
    monkeypatch.setenv("SUITE_DECODER", "torchcodec")
    assert torch.equal(torch.cat([images for images, _ in small.test(2, CPU)]), expected)
    assert small.notes == {"decoder": "torchcodec"}
    (folder / "2.jpeg").write_bytes((folder / "2.jpeg").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"^/.*/2\.jpeg is not a readable image \(.*\); fetch it again$"):
        list(small.test(2, CPU))


def test_cmyk_images_are_read_as_rgb(tmp_path: Path) -> None:
    small = small_folder(tmp_path)
    path = tmp_path / "small" / "val" / "b" / "1.jpeg"
    Image.new("RGB", (50, 50), (200, 30, 90)).convert("CMYK").save(path, quality=95)
    images = torch.cat([images for images, _ in small.test(2, CPU)])
    std_C, mean_C = torch.tensor(small.std), torch.tensor(small.mean)
    colour_C = 255 * (images[3].mean((1, 2)) * std_C + mean_C)
    torch.testing.assert_close(colour_C, torch.tensor([200.0, 30.0, 90.0]), rtol=0, atol=4)


def test_the_checksum_of_a_folder_is_of_names_and_sizes(tmp_path: Path) -> None:
    small = small_folder(tmp_path / "one")
    assert small.checksum == small_folder(tmp_path / "two").checksum
    (tmp_path / "one" / "small" / "val" / "b" / "1.jpeg").rename(tmp_path / "one" / "small" / "val" / "b" / "9.jpeg")
    assert imagefolder.image_folder(tmp_path / "one", name="small", size_px=32, resize_px=36).checksum != small.checksum


def test_a_folder_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"imagenet needs .*imagenet/train, which is not there; fetch ILSVRC2012"):
        data.load("imagenet", tmp_path)
    small_folder(tmp_path)
    (tmp_path / "small" / "val" / "c").mkdir()
    with pytest.raises(ValueError, match="val/c has no image files"):
        imagefolder.image_folder(tmp_path, name="small", size_px=32, resize_px=36)
    Image.new("RGB", (8, 8)).save(tmp_path / "small" / "val" / "c" / "0.png")
    with pytest.raises(ValueError, match=r"train and val of .* have different classes \(c\)"):
        imagefolder.image_folder(tmp_path, name="small", size_px=32, resize_px=36)
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "empty" / "val").mkdir()
    with pytest.raises(ValueError, match="has no class folders"):
        imagefolder.image_folder(tmp_path, name="empty", size_px=32, resize_px=36)


@pytest.mark.skipif(
    not (data.data_folder() / "tinyimagenet20").is_dir(),
    reason="needs tinyimagenet20 in the folder named by SUITE_DATA",
)
def test_the_real_tinyimagenet20_loads() -> None:
    tiny = data.load("tinyimagenet20")
    assert (tiny.classes, tiny.input_shape, tiny.train_size("all"), tiny.test_size) == (20, (3, 64, 64), 2000, 500)
    labels = torch.cat([labels for _, labels in tiny.test(64, CPU)])
    assert labels.bincount().tolist() == [25] * 20
    loader = tiny.train("tuning", batch=64, seed=0, device=CPU, limit=200)
    whole: list[tuple[Tensor, Tensor]] = list(loader.epoch(0))
    assert len(whole) == 3
    assert same(whole[2:], list(loader.epoch(0, start=2)))


def listings(names: list[str], train: int = 1300, test: int = 50) -> dict[data.base.Part, Any]:
    """Listings with so many images of each class, without files."""
    from suite.data._imagefolder import Listing

    counts: dict[data.base.Part, int] = {"train": train, "test": test}
    return {
        part: Listing(Path(part), tuple(names), np.array([], dtype="S1"), np.repeat(np.arange(len(names)), count))
        for part, count in counts.items()
    }


OFFICIAL = ["n01440764", *(f"n{number:08d}" for number in range(2_000_000, 2_000_998)), "n15075141"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (OFFICIAL[:-1], "has 999 classes from n01440764 to n02000997"),
        ([*OFFICIAL[:-1], "n15075142"], "from n01440764 to n15075142; ImageNet has 1000"),
        ([OFFICIAL[0], "tench", *OFFICIAL[2:]], "of which tench is no WordNet id"),
    ],
)
def test_classes_that_are_not_imagenets_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        imagenet.check(listings(names))
    assert "complete the folders" in str(caught.value)


def test_missing_images_of_imagenet_are_counted_and_named() -> None:
    train, test = imagenet.check(listings(OFFICIAL, train=1000, test=49))
    assert train == "train has 1000000 images, not 1281167"
    assert test == "test has 49000 images, not 50000; n01440764 and 999 more classes have not 50 to 50 each"


def test_unreadable_files_of_a_sample_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    small = small_folder(tmp_path)
    parts = small.parts  # type: ignore[attr-defined]
    assert imagenet.check_sample(parts) == []
    for path in (tmp_path / "small" / "val" / "b").iterdir():
        path.write_bytes(path.read_bytes()[:300])
    (line,) = imagenet.check_sample(parts)
    assert "of a sample of 8 test images cannot be read, first: " in line
    assert "is not a readable image" in line


def test_data_folders_are_read_as_people_have_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part in ("train", "val"):
        write_images(
            tmp_path / "mine" / part,
            {"cat": 1, "cat/white": 2, "dog": 3} if part == "val" else {"dog": 2, "cat/a/b": 2},
        )
        root = tmp_path / "mine" / part
        (root / ".ipynb_checkpoints").mkdir()
        (root / "dog" / ".ipynb_checkpoints").mkdir()
        (root / "dog" / ".ipynb_checkpoints" / "0.png").write_bytes(b"no image")
        for name in (".DS_Store", "._0.png"):
            (root / "dog" / name).write_bytes(b"no image")
    dataset = data.image_folder(tmp_path, "mine", size_px=16, resize_px=20, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert "val: 4 hidden files and folders are left out" in caplog.text
    assert data.class_names(dataset) == ["cat", "dog"]
    assert (dataset.size("train"), dataset.size("test"), dataset.mean) == (4, 6, (0.5,) * 3)
    listing = imagefolder.Listing.read(tmp_path / "mine" / "val")
    shutil.rmtree(tmp_path / "mine" / "val" / ".ipynb_checkpoints")
    expected = ImageFolder(str(tmp_path / "mine" / "val"), is_valid_file=lambda path: "/." not in path)
    assert [str(listing.path(index)) for index in range(6)] == [path for path, _ in expected.samples]
    assert listing.labels_N.tolist() == expected.targets


def test_grey_pixels_of_16_bits_are_scaled(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / "mine" / part / "a").mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 300 * 100, np.uint16)).save(tmp_path / "mine" / part / "a" / "0.png")
    dataset = data.image_folder(tmp_path, "mine", size_px=8, resize_px=8, mean=(0.0,) * 3, std=(1.0,) * 3)
    ((images, _),) = dataset.test(1, "cpu")
    assert (images * 255).round().unique().tolist() == [300 * 100 // 256]
