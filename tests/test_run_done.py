"""What counts as done, and what becomes of outputs that are damaged."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
from tiny_grid import contents, do_all, results, row_of, stages, the

from suite import records
from suite.run import Context, execute, failure, is_done, repair
from suite.stages import in_order


def test_what_is_done_is_not_done_again(copied: Context) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.results.rglob("*.*")}
    assert do_all(stages(), copied) == ["done"] * 9
    assert {path: path.stat().st_mtime_ns for path in copied.results.rglob("*.*")} == before


@pytest.mark.parametrize("damage", ["truncated", "gone", "no json", "a list", "no files", "empty"])
def test_a_damaged_output_is_set_aside_and_done_again(
    copied: Context, finished: Context, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    stage = the("pruned", "l1_filter")
    folder = copied.folder(stage)
    packed, done = folder / "packed.safetensors", folder / "done.json"
    if damage == "truncated":
        packed.write_bytes(packed.read_bytes()[:-1])
    elif damage == "gone":
        packed.unlink()
    else:
        done.write_text({"no json": "{", "a list": "[1]", "no files": "{}", "empty": ""}[damage])
    before = contents(copied.results)
    assert not is_done(stage, copied)
    assert contents(copied.results) == before, "is_done reads only"
    with caplog.at_level(logging.WARNING):
        repair(stage, copied)
    assert "packed.safetensors" in caplog.text if damage in ("truncated", "gone") else "done.json" in caplog.text
    assert (folder / "done.json.damaged").exists()
    assert execute(stage, copied) == "done"
    assert results(copied, [stage]) == results(finished, [stage])
    assert is_done(the("timed", "l1_filter"), copied), "what was made of it stays"


def test_a_missing_or_damaged_row_is_restored(copied: Context) -> None:
    stage = the("pruned", "dsp")
    path = records.rows_folder(copied.results) / f"{stage.key}.json"
    whole = path.read_bytes()
    for content in (None, b"{"):
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        before = contents(copied.results)
        assert is_done(stage, copied)
        assert contents(copied.results) == before, "is_done reads only"
        repair(stage, copied)
        assert is_done(stage, copied)
        assert path.read_bytes() == whole


def test_a_row_that_can_not_be_restored_is_done_again(copied: Context) -> None:
    stage = the("pruned", "dsp")
    path = records.rows_folder(copied.results) / f"{stage.key}.json"
    path.unlink()
    done = copied.folder(stage) / "done.json"
    about = json.loads(done.read_text())
    done.write_text(json.dumps({**about, "row": {**about["row"], "schema": 0}}))
    repair(stage, copied)
    assert not is_done(stage, copied)
    assert execute(stage, copied) == "done"
    assert path.exists()


@pytest.mark.parametrize(
    ("kind", "file", "reader"),
    [
        ("learned", "state.pt", "pruned"),
        ("learned", "final.safetensors", "pruned"),
        ("base", "final.safetensors", "pruned"),
        ("pruned", "packed.safetensors", "timed"),
    ],
)
def test_a_file_that_rotted_is_noticed_when_it_is_used(
    copied: Context, finished: Context, kind: str, file: str, reader: str
) -> None:
    """Its size is right: only its checksum tells."""
    damaged, user = the(kind, "dsp" if kind != "base" else ""), the(reader, "dsp")
    shutil.rmtree(copied.folder(user))
    path = copied.folder(damaged) / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert is_done(damaged, copied), "nobody has read it yet"
    assert execute(user, copied) == "failed"
    reason = f"{file} of {damaged.key} is damaged; run the same command again to redo that stage"
    assert (failure(user, copied) or {})["reason"] == reason
    assert row_of(user, copied).status == "done", "the row of the earlier result stays"
    assert not is_done(damaged, copied)
    assert do_all(in_order([user]), copied)[-1] == "done"
    assert results(copied, in_order([user])) == results(finished, in_order([user]))
