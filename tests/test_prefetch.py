"""Data and weights are fetched before a grid is launched, by whom it is asked; jobs and dry runs never download."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import tiny_grid
from tiny_grid import call

from suite import prefetch, weights
from suite.files import sha256
from suite.launch import cost
from suite.launch.__main__ import main as launch
from suite.run import Context, execute, failure
from suite.stages import Base

GRID = """
from suite.grids import Grid, cross
from suite.schedule import Schedule
from suite.stages import Base

SHORT = Schedule(epochs=1, epoch_images=128, lr=0.05, weight_decay=5e-4)
BASES = [
    Base(data="cifar10", model="resnet20_a", schedule=None, seed=0, weights="cifar10_resnet20_a"),
    Base(data="cifar10", model="vgg6", schedule=SHORT, seed=0),
]
GRID = Grid(
    title="Mine", about="", runs=lambda: cross(bases=BASES, method="l1_filter", budgets=[0.5], finetune=SHORT), timings=()
)
"""


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A grid that needs a data set that can be fetched and a file of weights that cannot."""
    monkeypatch.setenv("SUITE_WEIGHTS", str(tmp_path / "weights"))
    path = tmp_path / "mine.py"
    path.write_text(GRID)
    return path


class FakeOfficial:
    """In the place of torchvision's CIFAR10."""

    def __init__(self, root: Path, train: bool, download: bool = False) -> None:
        self.data = np.random.default_rng(0).integers(256, size=(20, 32, 32, 3), dtype=np.uint8)
        self.targets = [number % 10 for number in range(20)]


def no_network(*arguments: object, **options: object) -> None:
    raise URLError("no network")


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise AssertionError("somebody downloads")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", refused)
    monkeypatch.setattr("torch.hub.download_url_to_file", refused)


@pytest.mark.usefixtures("no_download")
def test_a_dry_run_says_what_is_missing_and_how_to_get_it(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--grid", grid, "--data", tmp_path / "data", "--results", tmp_path / "results", "--device", "cpu")
    assert call(launch, *options, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "4 stages, 0 done, 4 to do" in shown
    assert f"missing: cifar10 is not at {tmp_path / 'data' / 'cifar10.npz'}" in shown
    assert f"missing: {tmp_path / 'weights' / 'cifar10_resnet20_optionA.th'} is missing (Yerlan" in shown
    assert f"to fetch: python -m suite.prefetch --grid {grid} --data {tmp_path / 'data'}" in shown
    assert "PetaMACs of training" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.py"]


@pytest.mark.parametrize(("name", "count"), [("cifar10", 1), ("tinyimagenet20", 0)])
def test_a_dry_run_names_prefetch_for_data_that_it_can_fetch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, count: int
) -> None:
    (tmp_path / "mine.py").write_text(GRID.replace('data="cifar10"', f'data="{name}"'))
    options = ("--grid", tmp_path / "mine.py", "--data", tmp_path / "data", "--results", tmp_path / "results")
    assert call(launch, *options, "--only", "vgg6", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "missing: " in shown
    assert shown.count("to fetch: ") == count


@pytest.mark.usefixtures("grid")
def test_missing_data_are_named_beside_missing_weights(tmp_path: Path) -> None:
    public = Base(data="cifar10", model="resnet20_a", schedule=None, seed=0, weights="cifar10_resnet20_a")
    of_weights, of_data = cost.missing([public], Context(results=tmp_path / "results", data=tmp_path / "data"))
    assert of_weights.startswith(f"{tmp_path / 'weights' / 'cifar10_resnet20_optionA.th'} is missing")
    assert of_data.startswith(f"cifar10 is not at {tmp_path / 'data' / 'cifar10.npz'}")


@pytest.mark.usefixtures("no_download")
def test_a_stage_whose_data_are_missing_says_run_prefetch(tmp_path: Path) -> None:
    context = Context(results=tmp_path / "results", data=tmp_path / "data", threads=1)
    base = dataclasses.replace(tiny_grid.base(), data="cifar10")
    assert execute(base, context) == "failed"
    assert (
        f"`python -m suite.prefetch cifar10 --data {tmp_path / 'data'}` fetches it"
        in (failure(base, context) or {})["reason"]
    )
    public = Base(data="digits", model="resnet18", schedule=None, seed=0, weights="imagenet_resnet18")
    assert execute(public, context) == "failed"
    command = f"`python -m suite.prefetch imagenet_resnet18 --data {tmp_path / 'data'}` fetches it from https"
    assert command in (failure(public, context) or {})["reason"]


@pytest.mark.parametrize("error", [URLError("no network"), RuntimeError('invalid hash value (expected "f37072fd")')])
def test_weights_that_do_not_arrive_whole_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("torch.hub.download_url_to_file", broken)
    with pytest.raises(FileNotFoundError, match=r"cannot be fetched \(.*(no network|invalid hash)"):
        weights.fetch("imagenet_resnet18", tmp_path / "data")


@pytest.mark.parametrize("name", ["cifar10_resnet20_a", "timm/resnet18.a1_in1k"])
def test_a_failed_download_leaves_the_file_of_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    entry = dataclasses.replace(weights.public("cifar10_resnet20_a"), url="" if "timm" in name else "https://x/y")
    path = tmp_path / entry.file

    def beaten(*arguments: object, **options: object) -> None:
        path.write_bytes(b"whole")
        raise URLError("no network")

    monkeypatch.setenv("SUITE_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(weights, "public", lambda name: entry)
    monkeypatch.setattr("torch.hub.download_url_to_file", beaten)
    monkeypatch.setattr("suite.models._zoo.timm", lambda: SimpleNamespace(create_model=beaten))
    with pytest.raises(FileNotFoundError, match=r"cannot be fetched \(.*no network"):
        weights.fetch(name, tmp_path)
    assert path.read_bytes() == b"whole"


def test_a_web_page_in_place_of_the_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.html"
    page.write_text("<html>please log in</html>")
    entry = dataclasses.replace(weights.public("cifar10_resnet20_a"), url=page.as_uri())
    monkeypatch.setenv("SUITE_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(weights, "public", lambda name: entry)
    with pytest.raises(FileNotFoundError, match="invalid hash value"):
        weights.fetch("cifar10_resnet20_a", tmp_path)
    assert not list((tmp_path / "weights").iterdir())
    monkeypatch.setattr(weights, "public", lambda name: dataclasses.replace(entry, sha256=sha256(page)[:8]))
    assert weights.fetch("cifar10_resnet20_a", tmp_path).read_bytes() == page.read_bytes()


def test_prefetch_fetches_what_can_be_had_and_names_the_rest(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR10", FakeOfficial)
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    (tmp_path / "data").mkdir()
    options = ("--grid", grid, "--data", tmp_path / "data")
    assert call(prefetch.main, *options) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("cifar10: 20 + 20 images, sha256 ")
    assert shown.err.startswith("suite.prefetch: cifar10_resnet20_a: ")
    assert "cifar10_resnet20_optionA.th is missing and https://github.com/" in shown.err
    assert shown.err.count("\n") == 1

    file = tmp_path / "weights" / "cifar10_resnet20_optionA.th"
    file.write_bytes(b"something else")
    assert call(prefetch.main, *options) == 1
    assert f"{file} is damaged, or another file: its sha256 begins with" in capsys.readouterr().err

    entry = dataclasses.replace(weights.public("cifar10_resnet20_a"), sha256=sha256(file)[:8])
    monkeypatch.setitem(weights.PUBLIC, "cifar10_resnet20_a", entry)
    assert call(prefetch.main, *options) == 0
    assert call(prefetch.main, *options, "--only", "vgg6") == 0
    assert call(prefetch.main, "cifar10", "cifar10_resnet20_a", "--data", tmp_path / "data") == 0


def test_every_public_file_has_a_digest() -> None:
    for entry in weights.PUBLIC.values():
        assert len(entry.sha256) == 8
        assert int(entry.sha256, 16) >= 0


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(prefetch.main, "--grid", "quikstart") == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("suite.prefetch: unknown grid 'quikstart' (did you mean quickstart?)")
    assert (shown.out, shown.err.count("\n")) == ("", 1)


def test_a_mistyped_folder_is_not_made(grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(prefetch.main, "--grid", grid, "--data", tmp_path / "typo") == 2
    assert (
        f"--data {tmp_path / 'typo'}: there is no such folder for cifar10, cifar10_resnet20_a"
        in capsys.readouterr().err
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.py"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ((), "give either --grid, or names"),
        (("cifar10", "--grid", "quickstart"), "give either"),
        (("cifar11",), "no data set (cifar10, digits, "),
        (("cifar11",), "), and unknown public weights 'cifar11'; choose from: cifar10_resnet20_a, "),
        (("cifar10", "--smoke"), "leave them out"),
    ],
)
def test_names_are_checked(names: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(prefetch.main, *names) == 2
    assert reason in capsys.readouterr().err


def test_embedded_data_need_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(prefetch.main, "--grid", tiny_grid.FILE) == 0
    assert capsys.readouterr().out.startswith("digits: 1,437 + 360 images, sha256 ")
