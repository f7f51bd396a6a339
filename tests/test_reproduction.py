"""Published numbers beside ours."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_report import COMMIT, run_of
from test_report_tables import TOP1, load, others, row_of, two_methods

from suite.report.statistics import cells, inference, reproduction


def beside(results: Path, top1: tuple[float, ...], published_rows: pd.DataFrame, **changes: Any) -> dict[str, Any]:
    split = changes.pop("split", "all")
    runs = [run_of(seed, split=split) for seed in range(len(top1))]
    found = load(runs, [row_of(run, value, **changes) for run, value in zip(runs, top1, strict=True)], results)
    table = reproduction.table(found.runs, cells.accuracy_lines(found.runs), published_rows)
    assert len(table) == 1
    return {str(name): value for name, value in table.iloc[0].to_dict().items()}


@pytest.mark.parametrize(
    ("top1", "expected"),
    [
        ((80.0, 80.1, 79.9, 80.05, 79.95), "reproduced"),
        ((79.0, 79.1, 78.9), "below"),
        ((81.0, 81.1, 80.9), "above"),
        ((80.02, 80.03, 80.04), "reproduced"),  # the interval misses 80, and by less than the margin
        ((80.4, 80.5, 80.6), "open"),
        ((79.0, 81.0, 80.5), "open"),
        ((80.0,), "open"),
    ],
)
def test_the_verdict_follows_from_the_interval(tmp_path: Path, top1: tuple[float, ...], expected: str) -> None:
    line = beside(tmp_path, top1, others(base_top1_pct=90.0))
    assert line["verdict"] == expected
    assert line["ours"] == pytest.approx(90 - np.mean(top1))
    assert line["difference_pp"] == pytest.approx(np.mean(top1) - 80)
    assert (line["n"], line["statistic"], line["quantity"]) == (len(top1), "mean", "drop pp")
    assert ("no interval" in line["reason"]) == (len(top1) == 1)


@pytest.mark.parametrize("top1", [(80.0, 80.1, 79.9), (70.0, 70.1, 69.9), (80.0,)])
def test_an_accuracy_without_a_stated_base_gets_no_verdict(tmp_path: Path, top1: tuple[float, ...]) -> None:
    line = beside(tmp_path, top1, others())
    assert (line["verdict"], line["reason"]) == (reproduction.NOT_JUDGED, reproduction.NO_BASE)
    assert (line["quantity"], line["ours"]) == ("top-1 %", pytest.approx(np.mean(top1)))
    assert line["difference_pp"] == pytest.approx(np.mean(top1) - 80)


def test_a_drop_is_compared_where_the_base_accuracy_is_known(tmp_path: Path) -> None:
    line = beside(tmp_path, (88.9, 89.0, 89.1), others(base_top1_pct=82.0))
    assert (line["quantity"], line["published"]) == ("drop pp", 2)
    assert line["ours"] == pytest.approx(1)
    assert line["difference_pp"] == pytest.approx(1)
    assert line["verdict"] == "above", "ours loses less"


def test_a_median_stands_beside_a_median(tmp_path: Path) -> None:
    line = beside(tmp_path, (80.0, 80.1, 80.2, 79.9, 50.0), others(base_top1_pct=90.0, runs="median of 5"))
    assert (line["statistic"], line["ours"]) == ("median", 10.0)
    assert (line["ours_low"], line["ours_high"]) == pytest.approx((9.8, 40.0))
    assert line["verdict"] == "open"


def test_a_published_median_brings_its_own_error(tmp_path: Path) -> None:
    """The same five accuracies reproduce an exact number, but not the median of five runs."""
    top1 = (80.0, 80.3, 79.7, 80.2, 79.8)
    lines = [
        beside(tmp_path / name, top1, others(base_top1_pct=90.0, runs=runs))
        for name, runs in (("mean", ""), ("median", "median of 5"))
    ]
    exact, median = lines
    half = 2.776445105 * np.std(top1, ddof=1)
    assert exact["difference_high_pp"] == pytest.approx(half / math.sqrt(5))
    assert median["difference_high_pp"] == pytest.approx(half * 0.5356 * math.sqrt(2), rel=1e-3)
    assert (exact["verdict"], median["verdict"]) == ("reproduced", "open")


@pytest.mark.parametrize("n", [3, 4, 5, 9])
def test_the_error_of_a_median_is_that_of_many_medians(n: int) -> None:
    medians = np.median(np.random.default_rng(n).normal(size=(200_000, n)), axis=1)
    assert inference.median_sd(n) == pytest.approx(medians.std(), rel=0.01)


@pytest.mark.parametrize(
    ("theirs", "ours", "reason"),
    [
        ({}, {"selection": "best_test"}, "ours, 80.00 % \\(n = 3\\), is of the best on test"),
        ({"flops_cut_pct": 60.0}, {}, "no cut within 1 point; the nearest is 52.00 %"),
        ({"flops_cut_pct": 52.0, "scope": "prunable"}, {}, "the nearest is 54.00 %"),
        ({"flops_cut_pct": math.nan}, {}, "does not state its cut"),
        ({"needs": "none"}, {}, "another variant: the suite has the method, but not this form"),
        ({"needs": "name=z"}, {}, "another variant: the published one takes name=z"),
        ({}, {"split": "tuning"}, "validation part"),
        ({"variant": "mix 40 % from scratch"}, {}, "the source trains from scratch"),
        ({}, {"status": "failed", "reason": "no"}, "no run is done"),
    ],
)
def test_what_is_not_comparable_is_not_compared(
    tmp_path: Path, theirs: dict[str, Any], ours: dict[str, Any], reason: str
) -> None:
    line = beside(tmp_path, (79.9, 80.0, 80.1), others(**theirs), **ours)
    assert line["verdict"] == "not run"
    assert re.search(reason, line["reason"])
    assert pd.isna(line["ours"])
    assert pd.isna(line["difference_pp"])


@pytest.mark.parametrize(
    "other", [{"groups": 4.0}, {"model": "vgg6"}, {"data": "cifar10"}, {"ours": "another"}, {"top1_pct": math.nan}]
)
def test_rows_of_other_networks_and_methods_are_not_this_grids(tmp_path: Path, other: dict[str, Any]) -> None:
    found = load([run_of()], [row_of(run_of(), 80)], tmp_path)
    assert reproduction.table(found.runs, cells.accuracy_lines(found.runs), others(**other)).empty


def test_best_on_test_stands_beside_best_on_test_and_else_gets_a_mark(tmp_path: Path) -> None:
    theirs = others(base_top1_pct=90.0, selection="best epoch on test")
    top1 = (79.9, 80.0, 80.1)
    assert beside(tmp_path / "same", top1, theirs, selection="best_test")["verdict"] == "reproduced"
    line = beside(tmp_path / "last", top1, theirs)
    assert line["verdict"] == "reproduced (published is best on test)"
    assert (line["n"], line["ours"]) == (3, pytest.approx(10))
    assert "best epoch on test; ours, 80.00 % (n = 3), is of the last epoch" in line["reason"]


def test_a_published_variant_stands_beside_runs_with_its_settings_only(tmp_path: Path) -> None:
    runs = [run_of(seed, name=name) for name in TOP1 for seed in range(3)]
    found = two_methods(tmp_path)
    assert len(runs) == len(found.runs)
    lines = cells.accuracy_lines(found.runs)
    table = reproduction.table(found.runs, lines, others(needs="name=b"))
    assert table["settings"].tolist() == ["test_report(name=b)"]
    both = reproduction.table(found.runs, lines, others())
    assert len(both) == 2


def test_lines_of_other_commits_stand_apart(tmp_path: Path) -> None:
    runs = [run_of(seed) for seed in range(4)]
    rows = [row_of(run, 80 + run.seed, made={"commit": COMMIT if run.seed < 2 else "f" * 40}) for run in runs]
    found = load(runs, rows, tmp_path)
    table = reproduction.table(found.runs, cells.accuracy_lines(found.runs), others())
    assert table[["n", "ours"]].values.tolist() == [[2, 80.5], [2, 82.5]]
    shown, meanings = reproduction.shown(table)
    assert [letter.strip() for letter in shown["letter"]] == [text[:3] for text in meanings] == ["[A]", "[B]"]
    theirs = others(selection="best epoch on test")
    reasons = reproduction.table(found.runs, cells.accuracy_lines(found.runs), theirs)["reason"]
    assert ["80.50 %" in reasons[0], "82.50 %" in reasons[1]] == [True, True]
