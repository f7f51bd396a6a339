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
    assert {"50 % of the MACs cut", "50 % of the time cut", "agreement of both orders -1.00"} <= set(shown)
    assert [sum(f"m{number}" in text for text in shown) for number in range(4)] == [1, 1, 1, 0]
    assert "measured shares of time from 49.0 to 51.0 %" in picture.caption
    assert "n = 3 base networks" in picture.caption


def test_coarse_runs_and_single_methods_make_no_figure(drawn: Drawn) -> None:
    runs, rows = both_sides()
    coarse = [
        dataclasses.replace(row, coarse=True)
        if isinstance(row, records.PrunedRow) and row.budget_scope == "latency" and "m0" not in row.settings
        else row
        for row in rows
    ]
    assert "orders_digits_resnet8" not in drawn(runs, coarse)


@pytest.mark.parametrize("share", [0.4, 0.7])
def test_the_nearest_budget_of_macs_stands_beside_a_share_of_time(
    share: float, drawn: Drawn, texts: dict[str, list[str]]
) -> None:
    runs, rows = both_sides(share)
    more = [run_of(seed, 0.8, f"m{number}") for number in range(3) for seed in range(3)]
    picture = drawn([*runs, *more], [*rows, *(pruned_row(run, 70) for run in more)])["orders_digits_resnet8"]
    shown = [" ".join(text.split()) for text in texts[picture.name]]
    assert {f"{50 if share < 0.6 else 80} % of the MACs cut", f"{100 * share:.0f} % of the time cut"} <= set(shown)
