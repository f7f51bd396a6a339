"""Image folders: listing, crops, decoders, unreadable files, and the checks of ImageNet."""

from __future__ import annotations

import hashlib
import multiprocessing
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
from images import CPU, same, write_images
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, Normalize, RandomResizedCrop, Resize, ToTensor

from suite import data
from suite.contract import Batch
from suite.data import _imagefolder as imagefolder
from suite.data import imagenet
from suite.data.base import CROP, ORDER, Dataset, stream


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


def colour(pid: int) -> tuple[int, int, int]:
    return pid % 256, pid // 256 % 256, pid // 65536


def colour_of_parent(path: Path) -> Image.Image:
    """An image whose colour is the parent of the process that decodes it."""
    return Image.new("RGB", (40, 40), colour(os.getppid()))


def test_processes_that_decode_are_forked_in_a_stage_of_a_fork_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = small_folder(tmp_path)
    monkeypatch.setenv("SUITE_WORKERS", "1")
    monkeypatch.setitem(imagefolder.DECODERS, "pil", colour_of_parent)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)  # as in the processes of the local launcher
    try:
        images, _ = next(iter(small.test(2, CPU)))
    finally:
        multiprocessing.set_start_method(before, force=True)
    pixel = images[0, :, 0, 0] * torch.tensor(small.std) + torch.tensor(small.mean)
    assert (255 * pixel).round().tolist() == list(colour(os.getpid()))


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
    with pytest.raises(
        ValueError, match=r"^/.*/1\.jpeg is not a readable image \(.*\); fetch it again, or set SUITE_BAD_IMAGES=skip$"
    ) as caught:
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
    with pytest.raises(
        ValueError, match=r"^/.*/1\.jpeg is not a readable image \(.*\); fetch it again, or set SUITE_BAD_IMAGES=skip$"
    ):
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
    assert small.skipped == {listing.name(index) for index in trained[1:]}


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
    with pytest.raises(ValueError, match=r"SUITE_DECODER is 'torchcodec', which fails here \(.*'pil'$"):
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
    (folder / "2.jpeg").write_bytes((folder / "2.jpeg").read_bytes()[:-20])
    with pytest.raises(
        ValueError,
        match=r"^/.*/2\.jpeg is not a readable image \([\w ]+\.?\); fetch it again, or set SUITE_BAD_IMAGES=skip$",
    ):
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


IDS = [f"n{number:08d}" for number in range(2_000_000, 2_001_000)]


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> None:
    """`IDS` as the ids of ImageNet, whose list is not in the repository."""
    text = "".join(f"{name}\n" for name in IDS)
    monkeypatch.setattr(imagenet, "IDS_SHA256", hashlib.sha256(text.encode()).hexdigest())
    monkeypatch.setattr(imagenet, "IDS_SUM", sum(int(name[1:]) for name in IDS))


@pytest.mark.usefixtures("official")
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (IDS[:5] + IDS[6:], "train has 999 classes, which are not the 1000 of ImageNet: n02000005 is missing; public"),
        (IDS[:100], ": 900 WordNet ids are missing; public weights need exactly these: complete the folders"),
        ([*IDS, "n03000000"], ": n03000000 is no class of ImageNet; public"),
        ([*IDS, "n03000000", "n03000001"], ": 2 WordNet ids are too many; public"),
        ([*IDS[:5], "n01000000", *IDS[6:]], ": some of the WordNet ids are not among ImageNet's; public"),
        ([*IDS, "tench"], "has 1001 classes, .*: tench is no WordNet id; public"),
        ([*IDS[:-2], "cat", "dog"], ": cat and 1 more are no WordNet ids and 2 WordNet ids are missing; public"),
        ([*IDS[:5], "n02000005x", *IDS[6:]], ": n02000005x is no WordNet id and n02000005 is missing; public"),
    ],
)
def test_classes_that_are_not_imagenets_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imagenet.check(listings(sorted(names)))


@pytest.mark.usefixtures("official")
def test_missing_images_of_imagenet_are_counted_and_named() -> None:
    train, test = imagenet.check(listings(IDS, train=1000, test=49))
    assert train == "train has 1000000 images, not 1281167"
    assert test == "test has 49000 images, not 50000; n02000000 and 999 more classes have not 50 to 50 each"


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
    imagefolder.Listing.read(tmp_path / "mine" / "val")
    assert caplog.text.count("val: 4 hidden files and folders are left out") == 1
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
