"""A results folder that cannot be written for a while: reports are left out, a checkpoint's failure is not the stage's own."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import tiny_grid
import torch
from tiny_grid import results

from suite import files, jsonfile, progress, records
from suite.launch import record
from suite.run import Context, execute, fail, failure, given_up, is_done
from suite.run.folder import repair

STAGE = tiny_grid.base()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Context:
    torch.set_num_threads(1)
    context = Context(results=tmp_path_factory.mktemp("undisturbed"), threads=1)
    assert execute(STAGE, context) == "done"
    return context


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ESTALE, errno.EIO])
def test_an_unwritable_folder_is_no_failure_of_the_stage(
    undisturbed: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """It fails, but is never given up, and goes on with the same bits once the folder can be written."""
    context, attempts = Context(results=tmp_path, threads=1), 0

    def refuse(*arguments: Any, **options: Any) -> tuple[int, str]:
        """Refuse checkpoints; other files are written."""
        if "train.pt" in options["prefix"]:
            raise OSError(number, os.strerror(number), str(options["dir"]))
        return make(*arguments, **options)

    make = tempfile.mkstemp
    with monkeypatch.context() as patch:
        patch.setattr(files.tempfile, "mkstemp", refuse)
        for attempts in range(4):
            assert execute(STAGE, context) == "failed"
            assert given_up(STAGE, context) is None, attempts
        why = failure(STAGE, context)
        assert why is not None
        assert os.strerror(number) in why["reason"]
    assert execute(STAGE, context) == "done"
    assert results(context, [STAGE]) == results(undisturbed, [STAGE])


def test_reports_that_cannot_be_written_cost_nothing(
    undisturbed: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, refused = Context(results=tmp_path, threads=1), []

    def refuse(self: Path, text: str) -> int:
        if self.name.startswith("progress."):
            refused.append(self)
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        return write(self, text)

    write = Path.write_text
    monkeypatch.setattr(progress, "INTERVAL_S", 0.0)
    monkeypatch.setattr(Path, "write_text", refuse)
    assert execute(STAGE, context) == "done"
    assert refused
    assert is_done(STAGE, context)
    assert results(context, [STAGE]) == results(undisturbed, [STAGE])


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of files that the storage does not give."""
    names, given = set[str](), files.open_regular

    def opened(path: Path) -> Any:
        if path.name in names:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return given(path)

    monkeypatch.setattr("suite.jsonfile.open_regular", opened)
    return names


def test_a_record_of_jobs_that_the_storage_does_not_give_stays(tmp_path: Path, unreadable: set[str]) -> None:
    launch = record.begin("mine", "local", [STAGE], snapshot="", jobs={STAGE.key: "7"})
    record.write(launch, tmp_path)
    unreadable.add("mine.json")
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        record.read_or_set_aside(tmp_path, "mine")
    unreadable.clear()
    assert record.read(tmp_path, "mine") == launch


def test_failures_that_the_storage_does_not_give_are_kept(
    tmp_path: Path, unreadable: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    context, run = Context(results=tmp_path, threads=1), tiny_grid.run_of("l1_filter")
    files.write_json(context.folder(run) / "failures.json", {"failed: no": {"times": 2, "reason": "no"}})
    unreadable.add("failures.json")
    assert fail(run, context, "failed", "no") == "failed"
    assert "could not be written in full" in caplog.text
    assert [row.reason for row in records.read_all(tmp_path, [run.key])] == ["no"]
    unreadable.clear()
    assert fail(run, context, "failed", "no") == "failed"
    assert given_up(run, context) is not None


def test_an_output_that_the_storage_does_not_give_is_not_trained_again(
    undisturbed: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = undisturbed.folder(STAGE) / "done.json"
    before, look = done.read_bytes(), os.stat

    def refuse(path: Any, **options: Any) -> os.stat_result:
        if str(path).endswith(".safetensors"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return look(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refuse)
        with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
            repair(STAGE, undisturbed)
    assert done.read_bytes() == before
    assert is_done(STAGE, undisturbed)


def test_an_error_while_reading_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "value.json"
    files.write_json(path, 1)

    def refuse(number: int) -> os.stat_result:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with path.open("rb") as file, monkeypatch.context() as patch:
        patch.setattr("suite.jsonfile.open_regular", lambda path: file)
        patch.setattr(os, "fstat", refuse)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)) as error:
            jsonfile.read(path, int)
    assert error.value.filename == str(path)


def test_a_number_of_threads_that_the_storage_does_not_give_is_not_replaced(
    undisturbed: Context, tmp_path: Path, unreadable: set[str]
) -> None:
    context = Context(results=tmp_path, threads=1)
    started = context.folder(STAGE) / "started.json"
    files.write_json(started, {"threads": 1})
    before = started.read_bytes()
    unreadable.add("started.json")
    assert execute(STAGE, context) == "failed"
    assert started.read_bytes() == before
    unreadable.clear()
    assert execute(STAGE, context) == "done"
    assert results(context, [STAGE]) == results(undisturbed, [STAGE])
