"""Two sentences at the top of a page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from test_report_signed import load, run_of

from suite.report.columns import table_columns
from suite.report.page import answer
from suite.report.statistics import cells, pairs
from suite.report.statistics.fairness import SET
from suite.report.statistics.leader import Leader, leaders
from suite.report.statistics.pairs import SAME, TOO_FEW

LINE = {
    **{"data": "digits", "model": "vgg6", "budget": 0.5, "budget_scope": "network", "n": 3, "speedup_untrusted": 0},
    **{"theoretical_x": 2.0},
    **{"split": "all", "commit": "c", "dirty": "no", "device": "cpu", "tf32": "no", "data_sha256": "d"},
    **{"timed_device": "cpu", "speedup_x": float("nan"), "verdict": ""},
}


def lines(**accuracies: float) -> pd.DataFrame:
    return pd.DataFrame([{**LINE, "settings": name, "top1_mean_pct": value} for name, value in accuracies.items()])


def leads(name: str, rivals: int) -> list[Leader]:
    """Return a leader with 91.00 ± 0.20 of 95.00 ± 0.10 %."""
    about = {"settings": name, "base_weights": [1, 2, 3], "base_top1_pct": [94.9, 95.0, 95.1]}
    runs = pd.DataFrame({**about, "pruned_top1_pct": [90.8, 91.0, 91.2]})
    return [Leader(at=pd.Series({column: LINE[column] for column in SET}), rivals=rivals, runs=runs, unequal=False)]


def compared(**verdicts: str) -> pd.DataFrame:
    """Return pairs such as ba; a pair of other conditions and one without b are told apart, too."""
    every = [{**LINE, "a": pair[0], "b": pair[1], "verdict": verdict} for pair, verdict in verdicts.items()]
    apart = [
        {**LINE, "a": "a", "b": "c", "verdict": "a is better"},
        {**LINE, "a": "a", "b": "b", "verdict": "a is better", "device": "gpu"},
    ]
    return pd.DataFrame([*every, *apart])


def test_the_best_method_is_named_with_the_pairs_that_are_told_apart() -> None:
    three, of_three = lines(a=90.0, b=91.0, c=80.0), leads("b", rivals=2)
    first, second = answer.sentences(three, compared(ba=SAME, bc="b is better"), of_three)
    assert first == (
        "At a budget of 50 %, digits/vgg6 keeps most accuracy with b: 91.00 ± 0.20 of 95.00 ± 0.10 %, told apart from 1 of 2 "
        "other methods; the order of the rest is open."
    )
    assert second == "Speed has not been measured."
    assert answer.sentences(three, compared(ba=SAME, bc=TOO_FEW), of_three)[0] == (
        "At a budget of 50 %, digits/vgg6: no method is told apart from b, which has the highest mean: "
        "91.00 ± 0.20 of 95.00 ± 0.10 %."
    )
    assert answer.sentences(three, compared(ba="b is better", bc="b is better"), of_three)[0].endswith(
        "told apart from all 2 other methods."
    )
    assert answer.sentences(three, compared(ab="a is better", bc="b is better"), of_three)[0] == (
        "At a budget of 50 %, digits/vgg6: b has the highest mean: 91.00 ± 0.20 of 95.00 ± 0.10 %; "
        "by the tests over all blocks a is better."
    )
    two = answer.sentences(lines(a=90.0, b=91.0), compared(ba="b is better"), leads("b", rivals=1))
    assert two[0].endswith("told apart from the other method.")
    untrusted = answer.sentences(three.assign(speedup_untrusted=1), compared(), of_three)
    assert untrusted[1] == "No measurement of speed can be trusted."


def half_finished(results: Path, seeds: dict[str, range], noise: float = 0.0) -> tuple[str, list[str], pd.DataFrame]:
    """Return sentence, warnings and pairs of methods on three strong and two weak base networks.

    `dsp` is one point above the other methods on each base network.
    """
    draw = np.random.default_rng(0)
    rows = {
        run_of(name, seed): 90.0 + (name == "dsp") - 10 * (seed > 2) + draw.normal(0, noise)
        for name, own in seeds.items()
        for seed in own
    }
    _, found = load(results, rows, family="dsp")
    of_pairs = pairs.table(found.runs)
    sentence = answer.sentences(cells.table(found), of_pairs, leaders(found.runs))[0]
    return sentence, pairs.warnings(of_pairs), of_pairs


def test_half_finished_blocks_do_not_reverse_the_order(tmp_path: Path) -> None:
    seeds = {"dsp": range(5), "l1_filter": range(3), "l2_filter": range(3)}
    sentence, _, of_pairs = half_finished(tmp_path / "clear", seeds, noise=0.01)
    assert "resnet8 keeps most accuracy with dsp on the 3 base networks that all methods have: 91.0" in sentence
    assert sentence.endswith("told apart from all 2 other methods.")
    assert of_pairs.loc[of_pairs["family"] == "declared", "a"].tolist() == ["dsp", "dsp"]
    assert (of_pairs["difference_pp"] >= 0).all()
    assert sorted(pairs.shown(of_pairs)["b"]) == ["l1_filter", "l2_filter"]
    _, warnings, of_pairs = half_finished(tmp_path / "unclear", seeds, noise=1.0)
    assert (of_pairs["difference_pp"] >= 0).all()
    (leader,) = (text for text in warnings if "highest mean" in text)
    assert "dsp has the highest mean on the 3 base networks that all methods have, and these runs do not" in leader
    assert "(-" not in leader


def test_methods_without_a_common_base_network_have_no_order(tmp_path: Path) -> None:
    sentence, warnings, _ = half_finished(tmp_path, {"dsp": range(3, 5), "l1_filter": range(3), "l2_filter": range(5)})
    assert sentence == (
        "At a budget of 50 %, the methods of digits/resnet8 have no base network in common: no order yet."
    )
    assert "Sizing: at 50 % the methods have no base network in common: no order yet." in warnings


def test_speed_is_claimed_by_verdict_only() -> None:
    two = lines(a=90.0, b=91.0).assign(speedup_x=[1.5, 1.9], verdict=["faster", "no difference"])
    assert (
        "1 of 2 measured packed networks are faster than their dense network, at most 1.50 times (a, 50 %, on cpu"
        in (answer.sentences(two, compared(), leads("b", rivals=1))[1])
    )
    none = answer.sentences(two.assign(verdict="slower"), compared(), [])[1]
    assert none == "None of the 2 measured packed networks is faster than its dense network."


def test_nothing_is_claimed_without_a_run() -> None:
    assert answer.sentences(lines(a=1.0).assign(n=0), compared(), []) == ["No pruned network of this grid is done yet."]


def test_the_first_columns_of_the_page_are_the_answer() -> None:
    headings = [column.heading for column in table_columns.page(median=False) if column.heading]
    assert headings[:4] == ["method", "budget", "pruned top-1 %", "speed-up x"]
