"""The leaderboard: cells of all grids, and places as ranges."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from test_report import timed_row
from test_report_signed import grid_of, row_of, run_of

from suite import grids, records
from suite.report import build, leaderboard
from suite.stages import Timing

TOP1 = {"l1_filter": (90.0, 90.2, 90.1), "fpgm_once": (90.1, 90.2, 90.3), "l2_filter": (80.0, 80.1, 80.2)}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows of a grid with two equal methods, a worse one, a single run and a dense control."""
    rows = [
        row_of(run_of(method, seed=seed), top1)
        for method, every in {**TOP1, "dense_control": (91.0, 91.1, 91.2), "random_filter": (70.0,)}.items()
        for seed, top1 in enumerate(every)
    ]
    runs = [
        run_of(method, seed=seed)
        for method in (*TOP1, "dense_control", "random_filter")
        for seed in range(3 if method != "random_filter" else 1)
    ]
    for row in rows:
        records.write(row, tmp_path)
    monkeypatch.setattr(grids, "names", lambda: ["example", "empty"])
    monkeypatch.setattr(grids, "load", lambda name: grid_of(runs if name == "example" else [run_of("sfp")]))
    return tmp_path


def test_places_are_ranges_of_overlapping_intervals(results: Path) -> None:
    lines = leaderboard.table(results)
    places = dict(zip(lines["method"], map(leaderboard.place, lines.to_dict("records")), strict=True))
    assert places == {
        "dense_control": "",
        "fpgm_once": "1-2 of 3",
        "l1_filter": "1-2 of 3",
        "l2_filter": "3 of 3",
        "random_filter": "",
    }
    assert lines["method"].tolist()[0] == "dense_control", "budgets are in order, best accuracy first"
    assert set(lines["grid"]) == {"example"}


def test_an_accuracy_with_two_timings_counts_once(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runs were timed under different conditions, which are lines of their own."""
    runs = [run_of(name, seed=seed) for name in TOP1 for seed in range(3)]
    for seed, device in enumerate(("cpu", "gpu")):
        records.write(timed_row(run_of("l2_filter", seed=seed), (1.5, 1.4, 1.6), device=device), results)
    monkeypatch.setattr(
        grids, "load", lambda name: grid_of(runs if name == "example" else [run_of("sfp")], timings=(Timing(),))
    )
    lines = leaderboard.table(results)
    places = list(zip(lines["method"], map(leaderboard.place, lines.to_dict("records")), strict=True))
    assert sorted(places) == [
        ("fpgm_once", "1-2 of 3"),
        ("l1_filter", "1-2 of 3"),
        *[("l2_filter", "3 of 3")] * 2,
    ]
    assert "3 cells of 1 grids, 9 runs" in leaderboard.write(results)[2].read_text()


def test_methods_with_different_base_networks_have_no_place(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst method loses a run; at another budget two methods have the same base networks."""
    rest = [run_of(name, seed=seed, budget=0.3) for name in ("l1_filter", "l2_filter") for seed in range(2)]
    for run in rest:
        records.write(row_of(run, TOP1[run.method][run.seed]), results)
    runs = [run_of(name, seed=seed) for name in TOP1 for seed in range(3) if (name, seed) != ("l2_filter", 2)]
    monkeypatch.setattr(grids, "load", lambda name: grid_of([*runs, *rest] if name == "example" else [run_of("sfp")]))
    lines = leaderboard.table(results)
    placed = {budget: part["place"].notna().tolist() for budget, part in lines.groupby("budget")}
    assert placed == {0.3: [True, True], 0.5: [False, False, False]}


def test_files_have_a_line_for_each_cell_and_link_to_the_grid(results: Path) -> None:
    page, table, text = leaderboard.write(results)
    assert 'href="../example/index.html"' in page.read_text()
    assert "1-2 of 3" in text.read_text()
    assert "5 cells of 1 grids, 13 runs" in text.read_text()
    with table.open() as file:
        assert [line["n"] for line in csv.DictReader(file)] == ["3", "3", "3", "3", "1"]


def test_a_grid_that_cannot_be_read_is_left_out_with_its_reason(
    results: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load = grids.load

    def broken(name: str) -> grids.Grid:
        if name == "empty":
            raise ValueError("no such method")
        return load(name)

    monkeypatch.setattr(grids, "load", broken)
    assert set(leaderboard.table(results)["grid"]) == {"example"}
    assert "the grid empty is left out: no such method" in caplog.text


def test_a_grid_given_by_path_is_found_by_what_its_folder_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    results, file = tmp_path / "results", tmp_path / "mine.py"
    file.write_text(
        "from test_report_signed import run_of\nfrom suite.grids import Grid\n"
        "GRID = Grid(title='Mine', about='', runs=lambda: [run_of('l1_filter'), run_of('fpgm_once')])\n"
    )
    for method, top1 in (("l1_filter", 90.0), ("fpgm_once", 80.0)):
        records.write(row_of(run_of(method), top1), results)
    monkeypatch.setattr(grids, "names", lambda: [])
    build(str(file), results)
    lines = leaderboard.table(results)
    assert (set(lines["grid"]), len(lines)) == ({"mine"}, 2)
    monkeypatch.setattr("suite.lease.host", lambda: "elsewhere")
    assert leaderboard.table(results).empty
    assert f"the grid mine is left out: its file {file} is on " in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr(grids, "names", lambda: ["mine"])
    monkeypatch.setattr(grids, "load", lambda name: grid_of([run_of("sfp")]))
    assert leaderboard.table(results).empty
    assert f"the file in {results / 'mine' / 'grid.json'} is left out: another grid has its name" in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr(grids, "names", lambda: [])
    file.unlink()
    assert leaderboard.table(results).empty
    assert f"the grid mine is left out: its file {file} does not exist" in caplog.text
    (results / "mine" / "grid.json").unlink()
    assert leaderboard.table(results).empty
    assert f"the grid mine is left out: no grid has this name, and {results / 'mine'} has no path" in caplog.text


def test_a_folder_without_rows_has_no_leaderboard(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no grid has a finished run in .*; launch one, such as quickstart"):
        leaderboard.write(tmp_path)
