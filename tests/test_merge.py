"""Results folders are put together: nothing is lost in silence, and what is merged is done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_grid import base, call, run_of

from suite import records
from suite.records.__main__ import main
from suite.records.merge import merge
from suite.run import Context, execute, is_done, repair
from suite.schedule import Schedule
from suite.stages import Timed, Timing, in_order

SHORT = Schedule(epochs=1, epoch_images=64, lr=0.05, weight_decay=5e-4, batch=64)
RUNS = [run_of("l1_filter", budget, of=base(schedule=SHORT), finetune=SHORT) for budget in (0.3, 0.5)]
TIMED = Timed(pruned=RUNS[0], timing=Timing(batch=8, protocol="quick"))
STAGES = in_order([*RUNS, TIMED])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with two runs and a latency measurement."""
    folder = tmp_path_factory.mktemp("done") / "results"
    context = Context(results=folder, threads=1)
    assert [execute(stage, context) for stage in STAGES] == ["done"] * 4
    return folder


@pytest.fixture
def folders(done: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The first has one run, the second all."""
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        shutil.copytree(done, folder)
    for stage in (RUNS[1], TIMED):
        shutil.rmtree(first / "work" / stage.key)
        (first / "rows" / f"{stage.key}.json").unlink()
    return first, second


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def row_path(folder: Path, key: str) -> Path:
    return records.rows_folder(folder) / f"{key}.json"


def change(folder: Path, key: str, **columns: Any) -> None:
    path = row_path(folder, key)
    path.write_text(json.dumps(json.loads(path.read_text()) | columns))


def test_what_is_missing_is_taken_and_done(folders: tuple[Path, Path], done: Path) -> None:
    first, second = folders
    before = contents(second)
    merged = merge(first, second)
    assert merged.counts == {"equal rows": 1, "rows taken": 2, "outputs copied": 2}
    assert (merged.conflicts, merged.unreadable) == ([], [])
    assert all(is_done(stage, Context(results=first)) for stage in STAGES)
    assert contents(second) == before
    after = contents(first)
    assert merge(first, second).counts == {"equal rows": 3}
    assert contents(first) == after


def test_into_a_new_folder_leaves_both_as_they_are(folders: tuple[Path, Path], tmp_path: Path) -> None:
    before = [contents(folder) for folder in folders]
    merge(*folders, tmp_path / "new" / "c")
    assert [contents(folder) for folder in folders] == before
    assert all(is_done(stage, Context(results=tmp_path / "new" / "c")) for stage in STAGES)


@pytest.mark.parametrize("key", [RUNS[0].key, TIMED.key])
def test_a_conflict_is_named_and_both_rows_are_kept(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], key: str
) -> None:
    first, second = folders
    merge(first, second)
    column = "pruned_top1_pct" if key == RUNS[0].key else "packed_ms"
    change(second, key, **{column: 12.5})
    mine, theirs = row_path(first, key).read_bytes(), json.loads(row_path(second, key).read_text())
    for _ in range(2):
        assert call(main, "merge", first, second) == 1
        shown = capsys.readouterr()
        assert shown.err.startswith(f"conflict: {key} ")
        assert f"{column} " in shown.err
        assert "1 conflicts" in shown.out
        (beside,) = first.glob("rows/*.conflict-*")
        assert json.loads(beside.read_text()) == theirs
        assert row_path(first, key).read_bytes() == mine
    assert is_done(RUNS[0], Context(results=first)), "the row that stays is that of the output"


def test_a_result_takes_the_place_of_a_failure(folders: tuple[Path, Path]) -> None:
    first, second = folders
    failure = {"status": "failed", "reason": "a reason", "pruned_top1_pct": None}
    shutil.copy(row_path(second, RUNS[1].key), row_path(first, RUNS[1].key))
    change(first, RUNS[1].key, **failure)
    assert merge(first, second).counts["failures replaced by results"] == 1
    assert is_done(RUNS[1], Context(results=first))
    change(second, RUNS[0].key, **failure)
    before = row_path(first, RUNS[0].key).read_bytes()
    assert merge(first, second).counts["failures beside a result"] == 1
    assert row_path(first, RUNS[0].key).read_bytes() == before


@pytest.mark.parametrize("name", ["../../../victim.py", "/tmp/victim.py", "..", "a/b", ""])
def test_names_that_leave_the_folder_are_refused(folders: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    first, second = folders
    (tmp_path / "victim.py").write_text("mine")
    (second / "victim.py").write_text("evil")
    folder = second / "work" / RUNS[1].key
    about = json.loads((folder / "done.json").read_text())
    about["files"] = {name: {"bytes": 4, "sha256": "0" * 64}}
    (folder / "done.json").write_text(json.dumps(about))
    merged = merge(first, second)
    assert any(str(folder) in line for line in merged.unreadable)
    assert not (first / "work" / RUNS[1].key).exists()
    assert (tmp_path / "victim.py").read_text() == "mine"
    context = Context(results=second)
    assert not is_done(RUNS[1], context)
    repair(RUNS[1], context)
    assert not (folder / "done.json").exists()


def test_networks_that_differ_are_named(folders: tuple[Path, Path]) -> None:
    first, second = folders
    path = second / "work" / RUNS[0].base.key / "done.json"
    about = json.loads(path.read_text())
    about["files"]["final.safetensors"]["sha256"] = "0" * 64
    path.write_text(json.dumps(about))
    (said,) = merge(first, second).conflicts
    assert said.startswith(f"{RUNS[0].base.key} (digits/vgg6 seed 0): final.safetensors differs")


@pytest.mark.parametrize("damaged", ["packed.safetensors", "done.json"])
def test_what_is_damaged_in_the_target_is_replaced(folders: tuple[Path, Path], damaged: str) -> None:
    first, second = folders
    work = Path("work") / RUNS[0].key
    shutil.copytree(second / work, first / work, dirs_exist_ok=True)
    (first / work / damaged).write_bytes(b"half")
    merged = merge(first, second)
    assert (merged.conflicts, merged.unreadable) == ([], [])
    assert contents(first / work) == contents(second / work)


def test_what_cannot_be_read_is_named_and_left(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    first, second = folders
    row_path(second, RUNS[1].key).write_text("{half")
    (second / "work" / RUNS[0].key / "packed.safetensors").write_bytes(b"half")
    shutil.rmtree(first / "work" / RUNS[0].key)
    assert call(main, "merge", first, second) == 1
    shown = capsys.readouterr()
    assert shown.err.count("left out: ") == 2
    assert "2 left out" in shown.out
    assert row_path(second, RUNS[1].key).read_text() == "{half"
    assert not row_path(first, RUNS[1].key).exists()
    assert not (first / "work" / RUNS[0].key).exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (lambda a, b: (a, b.parent / "absent"), "absent holds no results: it has neither rows/ nor work/"),
        (lambda a, b: (a, a / "." / ".." / "a"), "are the same folder; name two"),
        (lambda a, b: (a, b, "--into", b), "is one of the folders or lies in one"),
        (lambda a, b: (a, b, "--into", a / "rows"), "is one of the folders or lies in one"),
        (lambda a, b: (a, b, "--into", a.parent), "exists and is not empty"),
    ],
)
def test_nonsense_is_refused_in_one_line(
    folders: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    words: Callable[[Path, Path], tuple[object, ...]],
    said: str,
) -> None:
    before = [contents(folder) for folder in folders]
    assert call(main, "merge", *words(*folders)) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert (shown.err.count("\n"), shown.out) == (1, "")
    assert [contents(folder) for folder in folders] == before
