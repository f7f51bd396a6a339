"""The two orders of methods: at equal MACs and at equal time."""

from __future__ import annotations

import dataclasses

import pytest
from test_figures import Drawn, drawn, texts
from test_report import pruned_row, run_of

from suite import records
from suite.plan import Budget, Timing
from suite.stages import Pruned

__all__ = ["drawn", "texts"]
TIMING = Timing(protocol="quick")


def both_sides(share_of_time: float = 0.5) -> tuple[list[Pruned], list[records.Row]]:
    """Return methods of three seeds, in reverse order at equal time.

    At equal MACs m0 > m1 > m2; m3 has budgets of MACs only.
    """
    runs, rows = [], list[records.Row]()
    for number in range(4):
        for seed in range(3):
            counted = run_of(seed, 0.5, f"m{number}")
            runs.append(counted)
            rows.append(pruned_row(counted, 85 - number + 0.01 * seed))
            if number < 3:
                timed = dataclasses.replace(counted, budget=Budget(share=share_of_time, scope="latency", timing=TIMING))
                runs.append(timed)
                rows.append(pruned_row(timed, 80 + number + 0.01 * seed, time_cut_pct=49.0 + seed))
    return runs, rows


def test_the_figure_has_the_methods_of_both_sides_and_the_agreement(drawn: Drawn, texts: dict[str, list[str]]) -> None:
    picture = drawn(*both_sides())["orders_digits_resnet8"]
    shown = [" ".join(text.split()) for text in texts[picture.name]]
    assert {"50 % of the MACs cut", "50 % of the time cut", "agreement of both orders -1.00 (3 methods)"} <= set(shown)
    assert [sum(f"m{number}" in text for text in shown) for number in range(4)] == [1, 1, 1, 0]
    assert "measured shares of time from 49.0 to 51.0 %" in picture.caption
    assert "n = 3 base networks" in picture.caption
    assert {"cut: 50 % of the time", "MACs cut: 50 %"} <= set(texts["intervals_digits_resnet8"])
    assert "share of MACs or time to cut" in texts["ranks_digits_resnet8"]


@pytest.mark.parametrize(
    ("missing", "agreement"), [(["m1"], ["agreement of both orders -1.00 (2 methods)"]), (["m1", "m2"], [])]
)
def test_methods_that_miss_a_budget_are_hollow_and_do_not_count(
    missing: list[str], agreement: list[str], drawn: Drawn, texts: dict[str, list[str]]
) -> None:
    runs, rows = both_sides()
    coarse = [
        dataclasses.replace(row, coarse=True)
        if isinstance(row, records.PrunedRow)
        and row.budget_scope == "latency"
        and any(name in row.settings for name in missing)
        else row
        for row in rows
    ]
    picture = drawn(runs, coarse)["orders_digits_resnet8"]
    shown = [" ".join(text.split()) for text in texts[picture.name]]
    assert [text for text in shown if "agreement" in text] == agreement
    assert [sum(f"m{number}" in text for text in shown) for number in range(4)] == [1, 1, 1, 0]
    assert "Hollow: a run of the cell misses its budget" in picture.caption


def test_a_single_method_makes_no_figure(drawn: Drawn) -> None:
    runs, rows = both_sides()
    keep = [run.key for run in runs if run.budget.scope != "latency" or "m0" in run.label]
    assert "orders_digits_resnet8" not in drawn(
        [run for run in runs if run.key in keep], [row for row in rows if row.key in keep]
    )


@pytest.mark.parametrize("share", [0.4, 0.7])
def test_the_nearest_budget_of_macs_stands_beside_a_share_of_time(
    share: float, drawn: Drawn, texts: dict[str, list[str]]
) -> None:
    runs, rows = both_sides(share)
    more = [run_of(seed, 0.8, f"m{number}") for number in range(3) for seed in range(3)]
    picture = drawn([*runs, *more], [*rows, *(pruned_row(run, 70) for run in more)])["orders_digits_resnet8"]
    shown = [" ".join(text.split()) for text in texts[picture.name]]
    assert {f"{50 if share < 0.6 else 80} % of the MACs cut", f"{100 * share:.0f} % of the time cut"} <= set(shown)
