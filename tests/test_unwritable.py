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

from suite import files, progress
from suite.run import Context, execute, failure, given_up, is_done

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
