"""Data sets: the same seed gives the same batches, whatever was loaded before; the arithmetic is the textbook one."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from images import CPU, same, write_images
from torchvision.transforms import Normalize

from suite import data
from suite.data import cifar10 as cifar10_file
from suite.data.base import CROP, ORDER, Dataset, stream
from suite.data.resident import Arrays, Resident, cropped, flipped


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
    with pytest.raises(
        ValueError, match=r"cifar10 is not at .*; `python -m suite\.prefetch cifar10 --data .*` fetches it"
    ):
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
