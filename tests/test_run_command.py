"""The command line of a single stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_grid
import torch
from tiny_grid import call, log_of, results, the

from suite.files import write_text
from suite.progress import Watch
from suite.run import Context, execute, failure
from suite.run.__main__ import main
from suite.stages import in_order


def command(results_folder: Path, key: str, *more: object) -> int:
    return call(
        main,
        "--grid",
        tiny_grid.FILE,
        "--results",
        results_folder,
        "--threads",
        1,
        "--device",
        "cpu",
        "--stage",
        key,
        *more,
    )


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1, shown.err
    assert shown.err.startswith("suite.run: ")
    return shown.err


@pytest.mark.parametrize(("key", "fits"), [("pruned", 3), ("pruned-zzz", 0), ("", 9)])
def test_a_stage_that_is_not_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, fits: int
) -> None:
    assert command(tmp_path, key) == 2
    message = one_line(capsys)
    assert f"fits {fits} of the 9 stages" in message
    assert "--dry-run" in message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--device", "cuda"), "no CUDA device"),
        (("--threads", -1), "--threads -1"),
        (("--max-minutes", -1), "--max-minutes -1"),
        (("--max-minutes", "nan"), "--max-minutes nan"),
        (("--grid", "nonsense"), "unknown grid 'nonsense'"),
        (("--only", "nothing like it"), "fits none of the 3 runs"),
    ],
    ids=str,
)
def test_bad_arguments_are_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    said: str,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert command(tmp_path, the("base").key, *arguments) == 2
    assert said in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_stage_is_done_with_what_it_needs(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    finished: Context,
) -> None:
    stage = the("pruned", "slimming")
    assert command(tmp_path, stage.key[:12]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["done", needed.key] for needed in in_order([stage])
    ]
    mine = results(Context(results=tmp_path), in_order([stage]))
    assert mine == results(finished, in_order([stage]))
    assert command(tmp_path, stage.key) == 0


def test_at_its_time_limit_it_stops_and_goes_on_with_the_same_bits(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    finished: Context,
) -> None:
    stage = the("pruned", "dsp")
    stops = 0
    while (code := command(tmp_path, stage.key, "--max-minutes", 0)) == 75:
        stops += 1
        assert stops < 100
        assert "interrupted" in capsys.readouterr().out
    assert code == 0
    assert stops == 7 + 7 + 3 + 3, "after every step but the last of each of the four trainings"
    context = Context(results=tmp_path)
    assert results(context, in_order([stage])) == results(finished, in_order([stage]))
    assert "stopped in epoch" in log_of(stage, context)


def test_a_failure_is_status_one_and_names_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = tmp_path / "mine.py"
    write_text(
        grid,
        "from suite.grids import Grid, cross\nfrom suite.schedule import Schedule\nfrom suite.stages import Base\n"
        "S = Schedule(epochs=1, lr=1e30, weight_decay=0.0, batch=64, epoch_images=128)\n"
        "B = [Base(data='digits', model='vgg6', schedule=S, seed=0)]\n"
        "GRID = Grid(title='t', about='a', runs=lambda: cross(bases=B, method='l1_filter', budgets=[0.5], finetune=S))\n",
    )
    assert (
        call(main, "--grid", grid, "--results", tmp_path, "--stage", "pruned", "--device", "cpu", "--threads", 1) == 1
    )
    assert "diverged" in capsys.readouterr().out


def test_a_stage_keeps_the_number_of_threads_that_it_was_started_with(tmp_path: Path) -> None:
    stage = tiny_grid.base()

    class Now(Watch):
        must_stop = True

    assert execute(stage, Context(results=tmp_path, threads=1), Now()) == "interrupted"
    assert execute(stage, Context(results=tmp_path, threads=2)) == "done"
    assert torch.get_num_threads() == 1
    done = json.loads((tmp_path / "work" / stage.key / "done.json").read_text())
    assert done["result"]["provenance"]["threads"] == 1


def test_refused_threads_do_not_stick_to_the_stage(tmp_path: Path) -> None:
    stage = tiny_grid.base()
    for threads in (3_000_000_000, 10**20):
        context = Context(results=tmp_path, threads=threads)
        assert execute(stage, context) == "failed"
        why = failure(stage, context)
        assert why is not None
        assert why["reason"].startswith(f"--threads {threads}: torch refuses")
    started = tmp_path / "work" / stage.key / "started.json"
    assert not started.exists()
    started.write_text('{"threads": 3000000000}')
    assert execute(stage, Context(results=tmp_path, threads=1)) == "done"
    assert json.loads(started.read_text())["threads"] == 1


def test_help_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(main, "--help") == 0
    assert "--max-minutes" in capsys.readouterr().out
