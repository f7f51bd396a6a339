"""Claims of tables: fairness, methods told apart; valid LaTeX."""

from __future__ import annotations

import dataclasses
import math
import re
import runpy
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from test_report import CPU, HOSTILE, SCHEDULE, pruned_row, run_of

from suite import records
from suite.grids import Grid
from suite.report import columns, content, frames, words
from suite.report.columns import further_columns
from suite.report.statistics import cells, fairness, inference, pairs, published
from suite.report.tables import documents
from suite.stages import Pruned

TOP1 = {"a": (80.0, 81.0, 82.0), "b": (79.0, 80.5, 80.0)}


def load(runs: list[Pruned], rows: list[records.PrunedRow], results: Path) -> frames.Frames:
    for row in rows:
        records.write(row, results)
    return frames.load(grid_of(runs), results, smoke=False)


def grid_of(runs: list[Pruned]) -> Grid:
    return Grid(title="Example", about="An example.", runs=lambda: list(runs), timings=())


def row_of(run: Pruned, top1: float, weights: str = "", **changes: Any) -> records.PrunedRow:
    """A finished row; its base weights are those of the seed unless given."""
    spent = {"base_epochs": 2, "learning_epochs": 0, "finetune_epochs": run.finetune.epochs}
    made = {"base_sha256": weights or f"seed {run.seed}", **changes.pop("made", {})}
    return pruned_row(run, top1, **{**spent, "made": made, **changes})


def others(**changes: Any) -> pd.DataFrame:
    """A published row of the example method that is beside `run_of()`."""
    texts = dict.fromkeys(published.TEXTS, "")
    row = {
        **texts,
        **dict.fromkeys(published.NUMBERS, math.nan),
        **{"data": "digits", "model": "resnet8", "method": "theirs", "ours": "test_report", "source": "a paper"},
        **{"seen": "primary", "scope": "network", "top1_pct": 80.0, "flops_cut_pct": 52.5, "groups": 1.0, "needs": ""},
        **changes,
    }
    return pd.DataFrame([row])


def two_methods(results: Path, **changes: Any) -> frames.Frames:
    """Methods a and b with the seeds of `TOP1`; `changes` go over the rows of b."""
    runs = [run_of(seed, name=name) for name in TOP1 for seed in range(3)]
    rows = [
        row_of(run, TOP1[run.settings.name][run.seed], **(changes if run.settings.name == "b" else {}))  # type: ignore[attr-defined]
        for run in runs
    ]
    return load(runs, rows, results)


# ---- fairness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, 4),
        ({"learning_epochs": 9}, 1),
        ({"base_epochs": 9}, 1),
        ({"finetune_epochs": 9}, 1),
        ({"weights": "others"}, 0),
        ({"made": {"base_sha256": ""}}, 0),
    ],
)
def test_fairness_is_what_the_rows_share(tmp_path: Path, changes: dict[str, Any], level: int) -> None:
    lines = cells.accuracy_lines(two_methods(tmp_path, **changes).runs)
    assert lines["fairness_level"].tolist() == [level, level]
    assert set(lines["fairness"]) == {fairness.LEVELS[level]}


def test_another_learning_rate_is_level_two(tmp_path: Path) -> None:
    runs = [run_of(seed, name=name) for name in ("a", "b") for seed in (0, 1)]
    faster = dataclasses.replace(SCHEDULE, lr=0.5)
    runs[2:] = [dataclasses.replace(run, finetune=faster) for run in runs[2:]]
    lines = cells.accuracy_lines(load(runs, [row_of(run, 80) for run in runs], tmp_path).runs)
    assert set(lines["fairness_level"]) == {2}


def test_methods_without_a_seed_in_common_are_not_said_to_share_their_base(tmp_path: Path) -> None:
    runs = [run_of(0, name="a"), run_of(1, name="b")]
    lines = cells.accuracy_lines(load(runs, [row_of(run, 80) for run in runs], tmp_path).runs)
    assert set(lines["fairness_level"]) == {0}


def test_a_method_from_scratch_has_a_word_of_its_own_and_decides_no_level(tmp_path: Path) -> None:
    found = two_methods(tmp_path)
    runs = found.runs.assign(start=found.runs["series"].map({0: "base", 1: "init"}))
    lines = cells.accuracy_lines(runs)
    assert lines["fairness"].tolist() == [fairness.ALONE, fairness.OWN_START]
    assert lines["fairness_level"].isna().all()


def test_one_method_is_alone_and_a_coarse_one_is_out_of_the_comparison(tmp_path: Path) -> None:
    runs = [run_of(seed, name=name) for name in ("a", "b") for seed in (0, 1)]
    rows = [row_of(run, 80, coarse=run.settings.name == "b") for run in runs]  # type: ignore[attr-defined]
    found = load(runs, rows, tmp_path)
    lines = cells.accuracy_lines(found.runs)
    assert lines["fairness"].tolist() == [fairness.ALONE, fairness.COARSE]
    assert lines["fairness_level"].isna().all()
    assert pairs.table(found.runs).empty


# ---- methods told apart ----------------------------------------------------------------------------------------------


def test_a_pair_is_the_paired_t_test_of_its_seeds(tmp_path: Path) -> None:
    line = pairs.table(two_methods(tmp_path).runs).iloc[0]
    a, b = np.array(TOP1["a"]), np.array(TOP1["b"])
    expected = stats.ttest_rel(a, b)
    assert (line["a"], line["b"]) == ("test_report(name=a)", "test_report(name=b)")
    assert (line["n"], line["paired"]) == (3, True)
    assert line["difference_pp"] == pytest.approx((a - b).mean())
    assert line["p"] == line["p_holm"] == pytest.approx(expected.pvalue)
    half = 4.302652730 * (a - b).std(ddof=1) / math.sqrt(3)
    assert line["difference_low_pp"] == pytest.approx((a - b).mean() - half)
    assert line["probability_of_improvement"] == 1, "in each block a is above b"
    assert line["verdict"] == pairs.SAME


def test_other_base_weights_are_not_paired(tmp_path: Path) -> None:
    line = pairs.table(two_methods(tmp_path, weights="others").runs).iloc[0]
    assert not line["paired"]
    assert line["p"] == pytest.approx(stats.ttest_ind(TOP1["a"], TOP1["b"], equal_var=False).pvalue)
    above = sum((x > y) + 0.5 * (x == y) for x in TOP1["a"] for y in TOP1["b"]) / 9
    assert line["probability_of_improvement"] == pytest.approx(above)


def test_the_order_of_seeds_does_not_matter_and_pairs_are_by_seed(tmp_path: Path) -> None:
    runs = [*(run_of(s, name="a") for s in (2, 0, 1)), *(run_of(s, name="b") for s in (1, 2, 0))]
    rows = [row_of(run, TOP1[run.settings.name][run.seed]) for run in runs]  # type: ignore[attr-defined]
    mixed = pairs.table(load(runs, rows, tmp_path / "1").runs)
    straight = pairs.table(two_methods(tmp_path / "2").runs)
    pd.testing.assert_frame_equal(mixed, straight)


def test_rows_of_different_commits_are_never_compared(tmp_path: Path) -> None:
    assert pairs.table(two_methods(tmp_path, made={"commit": "f" * 40}).runs).empty


def test_the_letters_of_pairs_have_meanings_below_them(tmp_path: Path) -> None:
    runs = [run_of(seed, name=name) for name in ("a", "b", "c", "d") for seed in range(3)]
    rows = [
        row_of(run, 80.0 + index % 3 + index // 3, made={"commit": ("e" if index < 6 else "f") * 40})
        for index, run in enumerate(runs)
    ]
    text = texts(load(runs, rows, tmp_path), runs)["table.md"]
    below = text[text.index("### Methods told apart") :]
    assert r"\[A\]" in below
    assert "- \\[A\\] commit eeeeeeee\n- \\[B\\] commit ffffffff\n" in below


def test_methods_without_a_common_block_are_compared_on_one_device_only(tmp_path: Path) -> None:
    runs = [run_of(seed, name="a" if seed < 3 else "b") for seed in range(6)]
    for device, expected in (("cpu", 1), ("NVIDIA H100", 0)):
        rows = [row_of(run, 80 + run.seed, made={"device": "cpu" if run.seed < 3 else device}) for run in runs]
        assert len(pairs.table(load(runs, rows, tmp_path / device).runs)) == expected


def test_a_clear_difference_has_a_verdict_and_no_warning(tmp_path: Path) -> None:
    runs = [run_of(seed, name=name) for name in ("a", "b") for seed in range(5)]
    noise = (0.1, -0.1, 0.05, 0.0, -0.05)
    rows = [row_of(r, (80 if r.settings.name == "a" else 85) + noise[r.seed] * (r.seed + 1)) for r in runs]  # type: ignore[attr-defined]
    rows[0] = dataclasses.replace(rows[0], pruned_top1_pct=80.3)
    compared = pairs.table(load(runs, rows, tmp_path).runs)
    assert compared["verdict"].tolist() == ["test_report(name=b) is better"]
    assert compared["seeds_needed"].tolist() == [3]
    assert pairs.warnings(compared) == []


def test_what_n_does_not_carry_is_said(tmp_path: Path) -> None:
    compared = pairs.table(two_methods(tmp_path).runs)
    few, leader = pairs.warnings(compared)
    assert "have 3 runs" in few
    assert "a claim 5" in few
    needed = int(compared["seeds_needed"][0])
    assert f"do not tell it apart from test_report(name=b) (1.17 points apart: {needed} seeds each would)" in leader
    runs = [run_of(seed, name=name) for name in ("a", "b") for seed in (0, 1)]
    two = pairs.table(load(runs, [row_of(run, 80 + run.seed) for run in runs], tmp_path / "two").runs)
    assert "1 of 1 pairs of methods have fewer than 3 runs" in pairs.warnings(two)[0]
    assert two["verdict"].tolist() == [pairs.TOO_FEW]


def test_p_values_are_corrected_over_all_pairs_of_a_budget(tmp_path: Path) -> None:
    top1 = {"a": (80, 81, 82), "b": (79, 80.5, 80), "c": (70, 70.5, 72)}
    runs = [run_of(seed, name=name) for name in top1 for seed in range(3)]
    rows = [row_of(run, top1[run.settings.name][run.seed]) for run in runs]  # type: ignore[attr-defined]
    compared = pairs.table(load(runs, rows, tmp_path).runs)
    p = sorted(compared["p"])
    assert compared.sort_values("p")["p_holm"].tolist() == pytest.approx(
        [min(1, 3 * p[0]), min(1, max(3 * p[0], 2 * p[1])), min(1, max(3 * p[0], 2 * p[1], p[2]))]
    )


def family(tmp_path: Path, top1: Mapping[str, tuple[float, ...]], main: str, **changes: Any) -> pd.DataFrame:
    """Pairs of methods that are told apart by name; the runs' `method` is that name."""
    runs = [run_of(seed, name=name) for name, values in top1.items() for seed in range(len(values))]
    rows = [row_of(run, top1[run.settings.name][run.seed], **changes) for run in runs]  # type: ignore[attr-defined]
    frame = load(runs, rows, tmp_path).runs
    named = frame["settings"].str.extract(r"name=(\w+)")[0]
    return pairs.table(frame.assign(method=named, declared=named == main))


def test_the_declared_family_is_the_two_way_analysis_of_variance(tmp_path: Path) -> None:
    top1 = {"mine": (91.0, 92.1, 90.2), "x": (90.5, 91.2, 89.9), "y": (89.0, 90.4, 88.6)}
    compared = family(tmp_path, top1, "mine")
    declared = compared[compared["family"] == "declared"].set_index("b")
    assert declared.index.tolist() == ["test_report(name=x)", "test_report(name=y)"]
    long = pd.DataFrame(
        [(m, s, v) for m, values in top1.items() for s, v in enumerate(values)], columns=["m", "s", "v"]
    )
    fitted = smf.ols("v ~ C(m, Treatment('mine')) + C(s)", long).fit()
    for name in ("x", "y"):
        term = f"C(m, Treatment('mine'))[T.{name}]"
        line = declared.loc[f"test_report(name={name})"]
        assert line["difference_pp"] == pytest.approx(-fitted.params[term])
        assert line["p"] == pytest.approx(fitted.pvalues[term])
    smallest = str(declared["p"].idxmin())
    term = f"C(m, Treatment('mine'))[T.{smallest[-2]}]"
    low, high = fitted.conf_int(0.05 / 2).loc[term].tolist()
    line = declared.loc[smallest]
    assert (line["difference_low_pp"], line["difference_high_pp"]) == pytest.approx((-high, -low))
    assert compared.loc[compared["family"] == "secondary", "p_holm"].notna().all()


def test_controls_are_no_rivals_and_share_no_error(tmp_path: Path) -> None:
    top1 = {"mine": (91.0, 92.1, 90.2), "fpgm": (90.5, 91.2, 89.9), "random_filter": (40.0, 90.4, 60.6)}
    compared = family(tmp_path, top1, "mine").set_index("b")
    assert compared["family"].tolist().count("declared") == 1
    alone = family(tmp_path / "alone", {name: top1[name] for name in ("mine", "fpgm")}, "mine").iloc[0]
    assert compared.loc["test_report(name=fpgm)", "p"] == pytest.approx(alone["p"])


@given(st.lists(st.floats(1e-6, 1).filter(lambda p: all(abs(p * k - 0.05) > 1e-9 for k in range(1, 9))), max_size=8))
@example([0.034, 0.0374])
def test_an_interval_leaves_out_zero_just_where_holm_rejects(p: list[float]) -> None:
    p_P = np.array([*p, math.nan])
    level_P = inference.holm_levels(p_P)
    tested = inference.Differences(
        mean_P=stats.norm.isf(p_P / 2), error_P=np.ones(len(p_P)), df_P=np.full(len(p_P), 1e9), p_P=p_P, effect_P=p_P
    )
    assert (tested.interval(level_P)[0] > 0).tolist() == (inference.holm(p_P) < inference.ALPHA).tolist()


def test_equal_p_values_have_one_level_whatever_their_last_digit() -> None:
    p_P = np.array([0.001, 0.012, 0.012, math.nan, 0.3])
    other_P = p_P * np.array([1, 1 + 1e-14, 1, 1, 1])
    expected = [0.05 / 4, 0.05 / 3, 0.05 / 3, math.nan, 0.05]
    np.testing.assert_allclose(inference.holm_levels(p_P), expected)
    np.testing.assert_allclose(inference.holm_levels(other_P), expected)


def test_the_table_names_the_method_that_keeps_its_own_variance(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (5, 5))
    top1 = {name: tuple((90 + noise[index]).tolist()) for index, name in enumerate(("mine", "x", "y", "z"))}
    compared = family(tmp_path, {**top1, "wild": (88.0, 92.0, 85.0, 91.0, 87.0)}, "mine")
    declared = compared[compared["family"] == "declared"]
    wild = (declared["a"] + declared["b"]).str.contains("name=wild")
    assert declared.loc[wild, "error"].tolist() == ["own variance of test_report(name=wild)"]
    assert set(declared.loc[~wild, "error"]) == {"pooled"}
    shown = columns.text(pairs.shown(compared), further_columns.PAIRS).frame["test"]
    assert all(re.fullmatch(r"declared, (pooled|own variance of .*)|secondary, paired", text) for text in shown)


def test_variants_of_the_main_method_are_secondary(tmp_path: Path) -> None:
    top1 = {"mine": (91.0, 92.1, 90.2), "other": (90.5, 91.2, 89.9), "y": (89.0, 90.4, 88.6)}
    runs = [run_of(seed, name=name) for name in top1 for seed in range(3)]
    frame = load(runs, [row_of(run, top1[run.settings.name][run.seed]) for run in runs], tmp_path).runs  # type: ignore[attr-defined]
    named = frame["settings"].str.extract(r"name=(\w+)")[0]
    compared = pairs.table(frame.assign(method=named.replace("other", "mine"), declared=named == "mine"))
    assert compared.loc[compared["family"] == "declared", ["a", "b"]].values.tolist() == [
        ["test_report(name=mine)", "test_report(name=y)"]
    ]


def test_pairs_that_no_block_connects_are_secondary_and_welchs(tmp_path: Path) -> None:
    """Two methods on base networks of their own, and a method whose base weights are unknown."""
    top1 = {"mine": (90.0, 90.2, 90.1), "x": (89.0, 89.3, 89.1), "y": (80.0, 80.2, 80.3), "z": (79.9, 80.2, 80.1)}
    runs = [run_of(seed, name=name) for name in top1 for seed in range(3)]
    for weights in ({"y": "others", "z": "others"}, {"y": "unknown", "z": "unknown"}):
        rows = [
            row_of(run, top1[name][run.seed], f"{weights[name]} {run.seed}" if name in weights else "")
            for run in runs
            for name in [run.settings.name]  # type: ignore[attr-defined]
        ]
        rows = [
            dataclasses.replace(row, provenance={**row.provenance, "base_sha256": ""})
            if row.provenance["base_sha256"].startswith("unknown")
            else row
            for row in rows
        ]
        frame = load(runs, rows, tmp_path / weights["y"]).runs
        named = frame["settings"].str.extract(r"name=(\w+)")[0]
        compared = pairs.table(frame.assign(method=named, declared=named == "mine"))
        mine = compared[compared["a"] == "test_report(name=mine)"].set_index("b")
        assert mine["family"].tolist() == ["declared", "secondary", "secondary"]
        assert mine["error"].tolist() == ["pooled", "Welch", "Welch"]
        line = mine.loc["test_report(name=y)"]
        assert line["difference_pp"] == pytest.approx(np.mean(top1["mine"]) - np.mean(top1["y"]))
        assert line["p"] == pytest.approx(stats.ttest_ind(top1["mine"], top1["y"], equal_var=False).pvalue)


def test_what_no_block_connects_has_no_difference() -> None:
    """Methods 0 and 1 share blocks, so do 2 and 3; method 4 has blocks of its own."""
    draw = np.random.default_rng(0)
    method_R = [0, 1] * 3 + [2, 3] * 3 + [4] * 3
    block_R = [block for start in (0, 3) for block in range(start, start + 3) for _ in range(2)] + [6, 7, 8]
    fitted = inference.TwoWay.fit(draw.normal(90, 1, 15).tolist(), method_R, block_R)
    pairs_of_five = [(a, b) for a in range(5) for b in range(a)]
    first, second = zip(*pairs_of_five, strict=True)
    estimable = [pair in ((1, 0), (3, 2)) for pair in pairs_of_five]
    assert fitted.estimable(first, second).tolist() == estimable
    tested = fitted.differences(first, second)
    for values in (tested.mean_P, tested.error_P, tested.p_P, tested.effect_P):
        assert np.isfinite(values).tolist() == estimable


def test_a_method_with_a_larger_variance_keeps_its_own() -> None:
    """Grubbs' estimates and Satterthwaite's degrees of freedom, on complete blocks."""
    methods, bases = 6, 5
    top1_MB = np.random.default_rng(2).normal(90, 0.2, (methods, bases))
    top1_MB[0] = 90 + np.array([-2.0, 1.0, 2.0, -1.0, 0.5])
    method_R, block_R = (axis.ravel().tolist() for axis in np.indices(top1_MB.shape))
    fitted = inference.TwoWay.fit(top1_MB.ravel().tolist(), method_R, block_R)
    residual_MB = top1_MB - top1_MB.mean(axis=1, keepdims=True) - top1_MB.mean(axis=0) + top1_MB.mean()
    pooled = (residual_MB**2).sum() / ((methods - 1) * (bases - 1))
    own = ((residual_MB[0] ** 2).sum() / (bases - 1) - pooled / methods) / (1 - 2 / methods)
    assert fitted.own_M.tolist() == [True] + [False] * 5
    assert (fitted.pooled, fitted.variance_M[0], fitted.df_M[0]) == pytest.approx((pooled, own, bases - 1))
    tested = fitted.differences([0, 1], [1, 2])
    df = (own + pooled) ** 2 / (own**2 / 4 + pooled**2 / 20)
    assert tested.error_P == pytest.approx(np.sqrt([(own + pooled) / bases, 2 * pooled / bases]))
    assert tested.df_P == pytest.approx([df, 20])


def test_fine_tunings_of_one_base_network_are_not_taken_for_base_networks(tmp_path: Path) -> None:
    top1 = {"a": (90.0, 90.2, 90.1), "b": (89.0, 89.2, 89.3)}
    compared = family(tmp_path, top1, "a")
    one = compared.assign(bases=1)
    assert "n counts fine-tunings of 1 base network" in " ".join(pairs.warnings(one))
    assert "fine-tunings" not in " ".join(pairs.warnings(compared))
    assert columns.text(pairs.shown(one), further_columns.PAIRS).frame["n"].tolist() == [
        "3 fine-tunings of 1 base network, paired"
    ]


def test_the_declared_family_holds_its_size_and_has_power() -> None:
    """At most 5 % of studies have a false claim, also with unequal variances.

    Three quarters of gaps of 0.5 are found, at sd 0.2 and n = 5.
    """
    power = runpy.run_path(str(Path(__file__).parent / "benchmarks" / "power.py"))
    cases = {name: sds for name, sds in power["SIZE"].items() if max(sds) >= 0.6}
    assert len(cases) == 6
    size = {name: float((power["claims"](300, sds) > 0).mean()) for name, sds in cases.items()}
    assert max(size.values()) <= 0.05, size
    alone = power["claims"](300, cases["main of 8 at 0.6"], pooled=True)
    assert (alone > 0).mean() > 0.1, "the case is one that the pooled variance alone does not hold"
    assert power["claims"](200, [0.2] * 9, 0.5).mean() / 8 > 0.75, "0.79 in 8,000 studies"
    assert power["claims"](200, [0.2] * 9, 0.5, bases=7).mean() / 8 > 0.9, "0.96 in 6,000 studies"


# ---- LaTeX -----------------------------------------------------------------------------------------------------------


def texts(found: frames.Frames, runs: list[Pruned], *, smoke: bool = False) -> dict[str, str]:
    return documents.texts(content.collect("example", grid_of(runs), found, smoke=smoke), ())


def hostile(results: Path) -> dict[str, str]:
    runs = [run_of(seed, name=name) for name in (HOSTILE, "}\\end{table}\"'^λ") for seed in (0, 1)]
    made = {"device": f"{CPU} {HOSTILE}"}
    return texts(load(runs, [row_of(run, 80 + run.seed, made=made) for run in runs], results), runs)


def test_every_special_character_is_escaped(tmp_path: Path) -> None:
    text = hostile(tmp_path)["table_digits_resnet8.tex"]
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    columns = {len(re.findall(r"(?<!\\)&", row)) for row in rows}
    assert len(columns) == 1, "the table is rectangular"
    assert text.count(r"\end{table}") + text.count(r"\end{sidewaystable}") == 1
    assert "[U+03BB]" in text
    assert words.latex("a_b & 5 % {x}") == r"a\_b \& 5 \% \{x\}"
    assert words.latex("a\\b\n\tc") == r"a\textbackslash{}b c"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_takes_it(tmp_path: Path) -> None:
    text = hostile(tmp_path)["table_digits_resnet8.tex"]
    page = (
        r"\documentclass{article}\usepackage{array,booktabs,graphicx,rotating}\begin{document}"
        + text
        + r"\end{document}"
    )
    (tmp_path / "page.tex").write_text(page, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "page.pdf").stat().st_size > 10_000


def test_numbers_are_the_same_in_all_three_forms(tmp_path: Path) -> None:
    runs = [run_of(seed, name=name) for name in TOP1 for seed in range(3)]
    found = two_methods(tmp_path)
    made = texts(found, runs)
    for name in TOP1:
        mean, sd = np.mean(TOP1[name]), np.std(TOP1[name], ddof=1)
        assert f"{mean:.2f} ± {sd:.2f} (3)" in made["table.md"]
        assert rf"{mean:.2f} $\pm$ {sd:.2f} (3)" in made["table_digits_resnet8.tex"]
        assert f"{mean:.10g},{sd:.10g}" in made["table.csv"]


def test_smoke_rows_stand_beside_no_published_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "load", others)
    runs = [run_of(seed) for seed in range(3)]
    found = load(runs, [row_of(run, 80) for run in runs], tmp_path)
    assert "reproduction.csv" in texts(found, runs)
    smoke = texts(found, runs, smoke=True)
    assert "reproduction.csv" not in smoke
    assert "numbers are no results" in smoke["table_digits_resnet8.tex"]


def test_tables_of_an_earlier_report_are_deleted(tmp_path: Path) -> None:
    documents.write({"table.csv": "1", "table_old.tex": "2", "reproduction.csv": "3"}, tmp_path)
    documents.write({"table.csv": "1"}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
