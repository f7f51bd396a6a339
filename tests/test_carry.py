"""A grid done in slices, between which nothing but the files of the carry folder moves to another machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_grid
from tiny_grid import call

from suite import grids, records
from suite.launch import carry
from suite.launch.__main__ import main
from suite.progress import Watch
from suite.run import Context, execute
from suite.run.folder import is_done
from suite.stages import Base, in_order

RUN = tiny_grid.run_of("dsp")
STAGES = in_order([RUN])
BOUNDS: dict[str, Any] = {"files": 8, "mb": 16}


class StopAfter(Watch):
    """A watch whose time is up after so many reports."""

    def __init__(self, reports: int) -> None:
        super().__init__()
        self.left = reports

    def report(self, doing: str, **numbers: object) -> None:
        self.left -= 1

    @property
    def must_stop(self) -> bool:
        return self.left <= 0


def sliced(folder: Path, reports: int) -> Context:
    """Return a machine's context after a slice of about so many steps."""
    context = Context(results=folder, threads=1)
    watch = StopAfter(reports)
    for stage in STAGES:
        if not is_done(stage, context) and not watch.must_stop:
            execute(stage, context, watch)
    return context


def row_of(context: Context) -> records.Row | None:
    return records.read(records.rows_folder(context.results) / f"{RUN.key}.json")


def moved(context: Context, tmp_path: Path, number: int) -> Context:
    """Return another machine's context, to which only the carry files went."""
    carry.save(STAGES, context, tmp_path / f"from{number}", **BOUNDS)
    shutil.copytree(tmp_path / f"from{number}", tmp_path / f"to{number}")
    shutil.rmtree(context.results)
    other = Context(results=tmp_path / f"machine{number}", threads=1)
    assert carry.load(other, tmp_path / f"to{number}") > 0
    return other


def test_a_run_in_slices_on_other_machines_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = sliced(tmp_path / "whole", 10_000)
    context, slices = sliced(tmp_path / "machine", 7), 1
    while not all(is_done(stage, context) for stage in STAGES):
        context = moved(context, tmp_path, slices)
        sliced(context.results, 7)
        slices += 1
    assert slices > 3
    rows = [row_of(one) for one in (whole, context)]
    assert isinstance(rows[0], records.PrunedRow)
    assert isinstance(rows[1], records.PrunedRow)
    assert rows[0].weights_sha256 == rows[1].weights_sha256
    assert rows[0].plan_sha256 == rows[1].plan_sha256


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A machine where a base network is done and the learning is interrupted."""
    return sliced(tmp_path_factory.mktemp("base"), 10)


def work_size(context: Context) -> int:
    return sum(path.stat().st_size for path in (context.results / "work").rglob("*") if path.is_file())


def test_files_are_few_and_small(base: Context, tmp_path: Path) -> None:
    mb = work_size(base) / 1e6 / 3
    for _ in range(2):
        assert carry.save(STAGES, base, tmp_path, files=5, mb=mb) == []
        paths = list(tmp_path.iterdir())
        assert len(paths) <= 5
        assert max(path.stat().st_size for path in paths) <= mb * 1e6


def test_what_does_not_fit_is_named_and_what_is_done_goes_first(
    base: Context, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done = [stage for stage in STAGES if is_done(stage, base)]
    size = sum(path.stat().st_size for stage in done for path in base.folder(stage).iterdir())
    left_out = carry.save(STAGES, base, tmp_path, files=2, mb=size / 1e6 + 0.05)
    assert [stage.kind for stage in left_out] == ["learned"]
    assert "raise --carry-files or --carry-mb" in caplog.text
    other = Context(results=tmp_path / "other")
    carry.load(other, tmp_path)
    assert all(is_done(stage, other) for stage in done)
    assert not other.folder(left_out[0]).exists()


def test_newer_files_stay(base: Context, tmp_path: Path) -> None:
    carry.save(STAGES, base, tmp_path, **BOUNDS)
    assert carry.load(base, tmp_path) == 0
    other = Context(results=tmp_path / "other")
    assert carry.load(other, tmp_path) > 0
    assert carry.load(other, tmp_path) == 0


@pytest.mark.parametrize("damage", ["missing", "changed", "manifest", "foreign"])
def test_a_damaged_archive_is_refused_in_one_line(base: Context, tmp_path: Path, damage: str) -> None:
    carry.save(STAGES, base, tmp_path, **BOUNDS)
    piece, manifest = next(tmp_path.glob("*.tar")), tmp_path / "carry.json"
    if damage == "missing":
        piece.unlink()
    elif damage == "changed":
        piece.write_bytes(piece.read_bytes()[:-1] + b"x")
    elif damage == "manifest":
        manifest.write_text("[]")
    else:
        manifest.write_text(json.dumps({"pieces": {"../etc": "0"}}))
    with pytest.raises(ValueError, match=r"delete .*carry\.json"):
        carry.load(Context(results=tmp_path / "other"), tmp_path)
    assert not (tmp_path / "other").exists()


def test_tables_of_layer_times_move_to_the_next_machine(base: Context, tmp_path: Path) -> None:
    folder = base.results / "layer_times"
    folder.mkdir()
    (folder / "cpu_1threads_fp32_batch8.json").write_text('{"dense_ms": 1.5}')
    (folder / "cpu_1threads_fp32_batch8.lease").write_text("held")
    carry.save(STAGES, base, tmp_path, **BOUNDS)
    shutil.rmtree(folder)
    other = Context(results=tmp_path / "other")
    carry.load(other, tmp_path)
    (table,) = (other.results / "layer_times").iterdir()
    assert (table.name, table.read_text()) == ("cpu_1threads_fp32_batch8.json", '{"dense_ms": 1.5}')


def test_tables_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "layer_times"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.json").write_text("x" * 6000)
    carry.save([], Context(results=tmp_path), tmp_path / "carried", files=2, mb=0.1)
    assert len(list((tmp_path / "carried").iterdir())) == 2
    assert 0 < carry.load(Context(results=tmp_path / "other"), tmp_path / "carried") < 30


BIG = Base(data="imagenet", model="resnet50", schedule=tiny_grid.SHORT, seed=0)
WEIGHTS_MB = 4 * (25_557_032 + 2 * 26_560) / 1e6
"""Parameters, means and variances of torchvision's ResNet-50; its 53 counters of batches have 8 bytes each."""


def test_a_network_that_does_not_fit_is_refused_before_it_trains() -> None:
    stages = in_order([tiny_grid.run_of("l1_filter", of=BIG)])
    context = Context(results=Path("absent"))
    assert carry.output_bytes(BIG, context) / 1e6 == pytest.approx(2 * WEIGHTS_MB, abs=0.001)
    assert carry.work_bytes(BIG, context) / 1e6 == pytest.approx(3 * WEIGHTS_MB, abs=0.002)
    with pytest.raises(
        ValueError, match=r"^--carry-files 8 --carry-mb 16 hold 112 MB, and .*/resnet50 .* takes about 410 MB"
    ) as caught:
        carry.check(stages, stages, context, **BOUNDS)
    assert "take --carry-mb 60 or more; --carry-mb 45 holds the outputs of all 2 stages, 307 MB at most" in str(
        caught.value
    )
    assert carry.check(stages, stages, context, files=8, mb=60) == ""


def test_sizes_are_those_of_the_files(base: Context) -> None:
    """The base network is done; the learned stage has a checkpoint."""
    for stage, estimate in zip(STAGES, (carry.output_bytes, carry.work_bytes), strict=False):
        size = sum(path.stat().st_size for path in base.folder(stage).iterdir())
        assert estimate(stage, base) <= size <= 1.1 * estimate(stage, base)


def test_outputs_that_will_not_fit_are_counted_in_a_line() -> None:
    stages = in_order([tiny_grid.run_of("l1_filter", budget, of=BIG) for budget in (0.5, 0.6, 0.7)])
    context = Context(results=Path("absent"))
    assert carry.check(stages, stages, context, files=8, mb=60).startswith(
        "--carry-files 8 --carry-mb 60 hold 420 MB; --carry-mb 75 holds the outputs of all 4 stages, 512 MB at most"
    )


def test_no_archive_is_a_fresh_start(tmp_path: Path) -> None:
    assert carry.load(Context(results=tmp_path), tmp_path / "absent") == 0


def test_the_launcher_carries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its time is up at once in the first slice; the second, elsewhere, has what the first had."""
    options = ("--grid", tiny_grid.FILE, "--only", "l1_filter", "--device", "cpu", "--threads", 1, "--cluster", "debug")
    slices = ("--carry", tmp_path / "carry", "--carry-files", 4, "--carry-mb", 8)
    context = Context(results=tmp_path / "one", threads=1)
    first = grids.stages_of(tiny_grid.GRID, grids.runs_of(tiny_grid.GRID, only="l1_filter"))[0]
    execute(first, context, Watch())
    assert call(main, *options, "--results", tmp_path / "one", "--max-minutes", 0, *slices) == 75
    assert call(main, *options, "--results", tmp_path / "two", "--max-minutes", 0, *slices) == 75
    assert is_done(first, Context(results=tmp_path / "two"))
    capsys.readouterr()
    assert call(main, *options, "--results", tmp_path / "two", *slices[:2], "--carry-files", 1) == 2
    assert "take 2 files or more" in capsys.readouterr().err
    assert call(main, *options, "--results", tmp_path / "two", *slices[:2], "--carry-mb", 0.1, "--dry-run") == 2
    assert "take --carry-mb 1 or more" in capsys.readouterr().err
