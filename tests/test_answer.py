"""Two sentences at the top of a page."""

from __future__ import annotations

import pandas as pd

from suite.report import answer, table_columns
from suite.report.pairs import SAME, TOO_FEW

LINE = {
    **{"data": "digits", "model": "vgg6", "budget": 0.5, "budget_scope": "network", "n": 3, "speedup_untrusted": 0},
    **{"base_top1_mean_pct": 95.0, "base_top1_sd_pp": 0.1, "top1_sd_pp": 0.2, "theoretical_x": 2.0},
    **{"split": "all", "commit": "c", "dirty": "no", "device": "cpu", "tf32": "no", "data_sha256": "d"},
    **{"timed_device": "cpu", "speedup_x": float("nan"), "verdict": ""},
}


def lines(**accuracies: float) -> pd.DataFrame:
    return pd.DataFrame([{**LINE, "settings": name, "top1_mean_pct": value} for name, value in accuracies.items()])


def pairs(**verdicts: str) -> pd.DataFrame:
    """Return pairs such as ab; a pair of other conditions and one without b are told apart, too."""
    every = [{**LINE, "a": pair[0], "b": pair[1], "verdict": verdict} for pair, verdict in verdicts.items()]
    others = [
        {**LINE, "a": "a", "b": "c", "verdict": "a"},
        {**LINE, "a": "a", "b": "b", "verdict": "b", "device": "gpu"},
    ]
    return pd.DataFrame([*every, *others])


def test_the_best_method_is_named_with_the_pairs_that_are_told_apart() -> None:
    three = lines(a=90.0, b=91.0, c=80.0)
    first, second = answer.sentences(three, pairs(ba=SAME, bc="b is better"))
    assert first == (
        "At a budget of 50 %, digits/vgg6 keeps most accuracy with b: 91.00 ± 0.20 of 95.00 ± 0.10 %, told apart from 1 of 2 "
        "other methods; the order of the rest is open."
    )
    assert second == "Speed has not been measured."
    assert answer.sentences(three, pairs(ba=SAME, bc=TOO_FEW))[0] == (
        "At a budget of 50 %, digits/vgg6: no method is told apart from b, which has the highest mean: "
        "91.00 ± 0.20 of 95.00 ± 0.10 %."
    )
    assert answer.sentences(three, pairs(ba="b is better", bc="b is better"))[0].endswith(
        "told apart from all 2 other methods."
    )
    two = answer.sentences(lines(a=90.0, b=91.0), pairs(ba="b is better"))
    assert two[0].endswith("told apart from the other method.")
    assert answer.sentences(three.assign(speedup_untrusted=1), pairs())[1] == "No measurement of speed can be trusted."


def test_speed_is_claimed_by_verdict_only() -> None:
    two = lines(a=90.0, b=91.0).assign(speedup_x=[1.5, 1.9], verdict=["faster", "no difference"])
    assert (
        "1 of 2 measured packed networks are faster than their dense network, at most 1.50 times (a, 50 %, on cpu"
        in (answer.sentences(two, pairs())[1])
    )
    none = answer.sentences(two.assign(verdict="slower"), pairs())[1]
    assert none == "None of the 2 measured packed networks is faster than its dense network."


def test_nothing_is_claimed_without_a_run() -> None:
    assert answer.sentences(lines(a=1.0).assign(n=0), pairs()) == ["No pruned network of this grid is done yet."]


def test_the_first_columns_of_the_page_are_the_answer() -> None:
    headings = [column.heading for column in table_columns.page(median=False) if column.heading]
    assert headings[:4] == ["method", "budget", "pruned top-1 %", "speed-up x"]
