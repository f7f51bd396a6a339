"""The paper's counterparts by name, its claims, and the report of every grid."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_report import pruned_row, run_of, timed_row
from test_report_tables import grid_of, others
from tiny_grid import call

from suite import grids, records
from suite.report import __main__, paper
from suite.report.statistics import claims, published
from suite.stages import Pruned, Timing

GPU = "NVIDIA Example"
WHOLE, GROUPED = "whole", "grouped"


def with_grid(monkeypatch: pytest.MonkeyPatch, runs: list[Pruned], timings: tuple[Timing, ...] = ()) -> None:
    """One grid, `example`, instead of all."""
    grid = dataclasses.replace(grid_of(runs), timings=timings)
    monkeypatch.setattr(grids, "names", lambda: ["example"])
    monkeypatch.setattr(grids, "load", lambda name: grid)


def claimed(**changes: Any) -> pd.DataFrame:
    """A paper that claims 52 % removed without loss, and 90 % with 52.5 % removed."""
    abstract = others(top1_pct=math.nan, source="abstract of a paper", groups=math.nan, flops_cut_pct=52.0)
    return pd.concat([abstract, others(top1_pct=90.0, **changes)], ignore_index=True)


def verdicts(results: Path, monkeypatch: pytest.MonkeyPatch, rows: list[records.Row], **changes: Any) -> pd.DataFrame:
    for row in rows:
        records.write(row, results)
    monkeypatch.setattr(published, "load", lambda: claimed(**changes))
    return claims.table(results).set_index(pd.Index(["no loss", "acceleration", "released"]))


@pytest.mark.parametrize(
    ("drops", "expected"),
    [
        ((0.0, 0.1, -0.1, 0.05, -0.05), "supported"),
        ((-2.0, -2.1, -1.9, -2.0, -2.05), "supported"),
        ((2.0, 2.1, 1.9, 2.0, 2.05), "contradicted"),
        ((0.0, 0.9, 0.5, 0.48, 0.52), "open"),
        ((0.1, 0.2, 0.15, 0.3, 0.05), "supported"),
        ((3.0, -3.0, 1.0, -1.0, 0.5), "open"),
        ((2.0, 2.1, 1.9), "open"),
        ((), "not run"),
    ],
)
def test_a_cut_without_loss_follows_from_the_interval_of_the_drop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drops: tuple[float, ...], expected: str
) -> None:
    runs = [run_of(seed) for seed in range(5)]
    with_grid(monkeypatch, runs)
    rows: list[records.Row] = [pruned_row(run, 90 - drop) for run, drop in zip(runs, drops, strict=False)]
    line = verdicts(tmp_path, monkeypatch, rows).loc["no loss"]
    assert (line["verdict"], line["n"]) == (expected, len(drops))
    assert f"drop {sum(drops) / len(drops):.2f} points" in line["evidence"] if drops else "no run" in line["evidence"]


@pytest.mark.parametrize(
    ("cut", "coarse", "expected"),
    [
        (52.0, False, "supported"),
        (51.96, False, "supported"),
        (51.9, False, "not run"),
        (52.9, False, "supported"),
        (53.1, False, "not run"),
        (52.0, True, "not run"),
    ],
)
def test_a_smaller_cut_and_a_coarse_one_are_no_evidence_of_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: float, coarse: bool, expected: str
) -> None:
    runs = [run_of(seed) for seed in range(5)]
    with_grid(monkeypatch, runs)
    rows: list[records.Row] = [
        pruned_row(run, 90 + run.seed / 20, macs_cut_pct=cut, coarse=coarse and run.seed == 0) for run in runs
    ]
    assert verdicts(tmp_path, monkeypatch, rows).loc["no loss", "verdict"] == expected


@pytest.mark.parametrize(("selection", "expected"), [("last", "supported"), ("best_test", "not run")])
def test_epochs_that_the_test_set_chose_are_no_evidence_of_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selection: str, expected: str
) -> None:
    runs = [run_of(seed) for seed in range(5)]
    with_grid(monkeypatch, runs)
    monkeypatch.setattr(grids, "names", lambda: ["example", "again"])  # two grids share the runs, which count once
    rows: list[records.Row] = [pruned_row(run, 90 + run.seed / 20, selection=selection) for run in runs]
    line = verdicts(tmp_path, monkeypatch, rows).loc["no loss"]
    assert line["verdict"] == expected
    assert str(line["evidence"]).count("drop -0.10 points") == (expected == "supported")


def test_a_released_row_has_the_verdict_of_its_reproduction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [run_of(seed) for seed in range(5)]
    with_grid(monkeypatch, runs)
    rows: list[records.Row] = [pruned_row(run, 90 + (run.seed - 2) / 20) for run in runs]
    stated = verdicts(tmp_path, monkeypatch, rows, base_top1_pct=90.0)
    assert stated.loc["released", "verdict"] == "reproduced"
    without = verdicts(tmp_path, monkeypatch, rows).loc["released"]
    assert without["verdict"] == "not judged"
    assert "states no base accuracy" in without["evidence"]
    epochs = " + ".join(
        f"{getattr(rows[0], name) or 0:g}" for name in ("base_epochs", "learning_epochs", "finetune_epochs")
    )
    assert verdicts(tmp_path, monkeypatch, rows, epochs=epochs).loc["released", "verdict"] == "reproduced"
    other = verdicts(tmp_path, monkeypatch, [], selection="best epoch on test").loc["released"]
    assert other["verdict"] == "not judged"
    assert other["n"] == 5
    assert "best epoch on test" in other["evidence"]


@pytest.mark.parametrize(
    ("device", "ours", "theirs", "expected"),
    [
        (GPU, 1.5, 1.2, "supported"),
        (GPU, 1.2, 1.5, "contradicted"),
        (GPU, 1.5, 1.49, "open"),
        ("cpu: Example, 2 cores", 1.5, 1.2, "not run"),
    ],
)
def test_acceleration_is_judged_on_a_gpu_against_whole_channels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, ours: float, theirs: float, expected: str
) -> None:
    runs = [run_of(seed, name=name) for name in (GROUPED, WHOLE) for seed in range(5)]
    with_grid(monkeypatch, runs, (Timing(),))
    monkeypatch.setattr(Pruned, "method", property(lambda run: run.settings.name))  # two methods of one class
    rows: list[records.Row] = [pruned_row(run, 90) for run in runs]
    for run in runs:
        x = ours if run.method == GROUPED else theirs
        rows.append(timed_row(run, (x, x - 0.05, x + 0.05), device=device))
    for row in rows:
        records.write(row, tmp_path)
    monkeypatch.setattr(published, "load", lambda: claimed().assign(ours=GROUPED))
    line = claims.table(tmp_path).iloc[1]
    assert line["verdict"] == expected
    assert ("nothing timed on a GPU" in line["evidence"]) == (expected == "not run")


def test_smoke_rows_are_evidence_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "load", claimed)
    assert set(claims.table(tmp_path, smoke=True)["verdict"]) == {"not run"}


# ---- counterparts ----------------------------------------------------------------------------------------------------


def test_every_counterpart_names_grids_that_there_are() -> None:
    found = paper.entries()
    assert {"table1", "table2", "fig_structure", "fig_pareto", "fig_speed", "claims"} <= set(found)
    assert {name for name in grids.names() if name.startswith("ablation_")} <= set(found)
    assert {"paper_table1", "dsp_best_test", "dsp_best_validation"} == set(found["table1"].grids)
    assert "dsp_best_test" in found["claims"].grids
    for name, entry in found.items():
        assert set(entry.grids) <= set(grids.names()), name
        assert bool(entry.files) != (entry.make is not None), name


def test_a_counterpart_says_what_it_shows_and_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "paper" / "table1" / "old.tex"
    old.parent.mkdir(parents=True)
    old.touch()
    assert call(__main__.main, "--paper", "table1", "--results", tmp_path) == 0
    assert not old.exists()
    about = (old.parent / "about.md").read_text()
    shown = capsys.readouterr().out
    for name in ("paper_table1", "dsp_best_test", "dsp_best_validation"):
        runs = len(grids.runs_of(grids.load(name)))
        assert f"{name}: no run of {runs} done" in shown
        assert f"no run of {runs} done" in about
        assert f"`{name}`" in about
    assert [path.name for path in old.parent.iterdir()] == ["about.md"]


def test_a_counterpart_that_cannot_be_made_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "paper" / "table2" / "about.md"
    old.parent.mkdir(parents=True)
    old.touch()
    known, broken = grids.load("quickstart"), {"paper_table2", "ablation_digits"}

    def load(name: str) -> grids.Grid:
        if name in broken:
            raise ValueError(f"{name} is broken")
        return known

    monkeypatch.setattr(grids, "load", load)
    assert paper.entries()["ablation_digits"].shows == "ablation_digits is broken"
    with pytest.raises(ValueError, match="paper_table2 is broken"):
        paper.write("table2", tmp_path)
    assert list((tmp_path / "paper").rglob("*")) == [old.parent, old]


def test_the_claims_are_written_in_three_forms(tmp_path: Path) -> None:
    assert call(__main__.main, "--paper", "claims", "--results", tmp_path) == 0
    folder = tmp_path / "paper" / "claims"
    rows = pd.read_csv(folder / "claims.csv")
    released = published.load()["top1_pct"].notna() & (published.load()["flops_scope"] == "prunable convs")
    assert len(rows) == 2 + released.sum()
    assert set(rows["verdict"]) == {"not run"}
    assert (folder / "claims.md").read_text().count("| not run") == len(rows)
    assert r"71.85 \%" in (folder / "claims.tex").read_text()


def test_a_structure_without_its_packed_network_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of()
    with_grid(monkeypatch, [run])
    monkeypatch.setattr(type(run.settings), "granularity", "intra_channel")
    records.write(pruned_row(run, 80), tmp_path)
    paths, remarks = paper.write("fig_structure", tmp_path)
    assert [path.name for path in paths] == ["about.md"]
    assert any(f"{run.key} has no packed network" in remark for remark in remarks)


@pytest.mark.parametrize(("name", "expected"), [("list", 0), ("nope", 2)])
def test_names_are_listed_and_an_unknown_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, expected: int
) -> None:
    assert call(__main__.main, "--paper", name, "--results", tmp_path) == expected
    shown = capsys.readouterr()
    assert ("fig_pareto" in shown.out) == (name == "list")
    assert ("choose from: table1" in shown.err) == (name == "nope")


def test_all_reports_grids_with_rows_and_goes_on_after_a_broken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of()
    known = {"empty": grid_of([run_of(7)]), "full": grid_of([run])}
    records.write(pruned_row(run, 80), tmp_path)

    def load(name: str) -> grids.Grid:
        if name not in known:
            raise ValueError("it is broken")
        return known[name]

    monkeypatch.setattr(grids, "names", lambda: ["broken", "empty", "full"])
    monkeypatch.setattr(grids, "load", load)
    assert call(__main__.main, "--all", "--results", tmp_path) == 2
    shown = capsys.readouterr()
    assert "suite.report: broken: it is broken" in shown.err
    assert "empty: no rows" in shown.out
    assert (tmp_path / "full" / "table.md").exists()
    assert not (tmp_path / "empty").exists()
