"""Tracked rows beside one's own: marked, and in none of one's own numbers; remarks on code and learning."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_report import pruned_row, run_of
from test_report_tables import grid_of

from suite import grids, records
from suite.report import build, figures
from suite.report.figures import learning
from suite.stages import Pruned


def save(runs: list[Pruned], accuracy: float, folder: Path, **made: str) -> None:
    for run in runs:
        records.write(pruned_row(run, accuracy, made=made), folder)


def test_reference_rows_stand_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [run_of(seed) for seed in range(3)]
    monkeypatch.setattr(grids, "load", lambda _: grid_of(runs))
    monkeypatch.setattr(importlib.import_module("suite.report.build"), "REFERENCE", tmp_path / "reference")
    seen: list[pd.DataFrame] = []

    def draw(*arguments: Any) -> list[Any]:
        seen.append(arguments[-1])
        return []

    monkeypatch.setattr(figures, "draw_all", draw)
    save(runs[:2], 80, tmp_path / "own")
    save(runs, 90, tmp_path / "reference", code="of another day")
    without = build("example", tmp_path / "own").lines
    table = (tmp_path / "own" / "example" / "table.csv").read_text()
    assert not (tmp_path / "own" / "example" / "reference.csv").exists()
    report = build("example", tmp_path / "own", beside="reference")
    folder = tmp_path / "own" / "example"
    assert (folder / "table.csv").read_text() == table
    pd.testing.assert_frame_equal(report.lines, without)
    reference = pd.read_csv(folder / "reference.csv")
    assert (reference["n"].item(), reference["top1_mean_pct"].item()) == (3, 90)
    assert seen[-1]["n"].tolist() == [3]
    for name in ("table.md", "index.html"):
        text = (folder / name).read_text()
        assert "Reference rows" in text
        assert "Marked †: made with other code" in text
        assert "90.00 ± 0.00 (3) †" in text
        assert "were made with other code" not in text
    build("example", tmp_path / "own")
    assert not (folder / "reference.csv").exists()


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_groups_that_stay_uniform_are_named(rate: float) -> None:
    about = {"data": "d", "model": "m", "method": "dsp", "line": "dsp", "groups": 4, "loss": 1.0}
    entropy = [math.log(4), rate * math.log(4)]
    logs = pd.DataFrame([{**about, "run": "a", "epoch": i, learning.ENTROPY: value} for i, value in enumerate(entropy)])
    assert ("Nothing was learned in 1 of 1 runs" in learning.unlearned(logs)) == (rate == 1)
    assert learning.unlearned(logs.drop(columns=learning.ENTROPY)) == ""


@pytest.mark.parametrize("second", ["1", "2"])
def test_a_cell_of_two_versions_of_a_method_has_a_remark(
    second: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [run_of(seed) for seed in range(2)]
    monkeypatch.setattr(grids, "load", lambda _: grid_of(runs))
    monkeypatch.setattr(figures, "draw_all", lambda *_: [])
    for run, sha256 in zip(runs, ["1", second], strict=True):
        row = pruned_row(run, 80)
        files = {"files": {"baselines/mine.py": sha256}}
        records.write(type(row)(**{**vars(row), "provenance": {**row.provenance, **files}}), tmp_path)
    note = build("example", tmp_path).lines["note"].item()
    assert ("2 versions of baselines/mine.py" in note) == (second == "2")
