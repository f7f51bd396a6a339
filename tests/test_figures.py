"""Figures: what is drawn is what the rows say, nothing is drawn from nothing, and many methods stay readable."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from test_report import COMMIT, HOSTILE, SCHEDULE, pruned_row, run_of, timed_row

from suite import records
from suite.contract import Pruner
from suite.grids import Grid
from suite.methods import get
from suite.report import figures, frames
from suite.report.figures import ablation, comparison, learning, looks, pareto, style
from suite.report.statistics import cells, fairness, pairs
from suite.stages import Pruned, Timing

SAVE = style.save
Drawn = Callable[..., dict[str, style.Picture]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knobs(Pruner):
    """A method with settings to vary; only named, never run."""

    granularity = "filter"
    source = "none"
    lam: float = 1.0
    mode: str = "a"


def not_rendered(figure: Figure, path: Path) -> list[Path]:
    """Empty files instead of a figure's: rendering takes most of the time."""
    paths = [path.with_name(f"{path.name}{suffix}") for suffix in (".png", ".pdf")]
    path.parent.mkdir(exist_ok=True)
    for each in paths:
        each.touch()
    return paths


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Draws every figure of these rows; by name. Only with `render` are the files more than names."""

    def make(
        runs: Iterable[Pruned], rows: Iterable[records.Row], *, render: bool = False, **more: Any
    ) -> dict[str, style.Picture]:
        runs = list(runs)
        if not render and style.save is SAVE:
            monkeypatch.setattr(style, "save", not_rendered)
            monkeypatch.setattr(style, "fit", lambda *_: None)
        for row in rows:
            records.write(row, tmp_path)
        grid = Grid(title="Example", about="An example.", runs=lambda: runs, timings=(Timing(),))
        found = frames.load(grid, tmp_path, smoke=False)
        settings = {run.key: run.settings for run in runs}
        lines = cells.table(found)
        made = figures.draw_all(
            found, lines, cells.latency(found), pairs.table(found.runs), settings, tmp_path / "out", **more
        )
        return {picture.name: picture for picture in made}

    return make


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Return the texts of each figure by name: axis labels, names of lines, keys."""
    found: dict[str, list[str]] = {}

    def spy(figure: Figure, path: Path) -> list[Path]:
        found[path.name] = [text.get_text() for text in figure.findobj(Text)]
        return not_rendered(figure, path)

    monkeypatch.setattr(style, "save", spy)
    return found


def many(
    methods: int, budgets: Iterable[float], seeds: int, device: str = "NVIDIA Example"
) -> tuple[list[Pruned], list[records.Row]]:
    """Runs and rows in which method 0 is the best everywhere, and each next one a little worse."""
    runs = [run_of(s, b, f"m{m:02}") for m in range(methods) for b in budgets for s in range(seeds)]
    rows: list[records.Row] = []
    for run in runs:
        worse = int(run.settings.name[1:])  # type: ignore[attr-defined]
        top1 = 90 - (1 + worse) * run.budget.share + 0.01 * (run.seed * (1 + worse) % 3)
        rows.append(pruned_row(run, top1, macs_cut_pct=100 * run.budget.share))
        rows.append(timed_row(run, (1 + run.budget.share, 1.01, 2.0), device=device))
    return runs, rows


# ---- which there are -------------------------------------------------------------------------------------------------


def test_every_kind_of_figure_is_written_with_n_device_and_commit_in_its_caption(drawn: Drawn) -> None:
    made = drawn(*many(3, (0.3, 0.5), 3), render=True)
    kinds = {name.removesuffix("_digits_resnet8") for name in made}
    assert kinds >= {*(f"pareto_{over}" for over in pareto.AXES), "speed", "intervals", "ranks"}
    for picture in made.values():
        assert "n = 3 base networks" in picture.caption
        device = "NVIDIA Example" if picture.name.startswith("speed") else "cpu: Example, 2 cores"
        assert device in picture.caption
        assert COMMIT[:8] in picture.caption
        assert [path.suffix for path in picture.paths] == [".png", ".pdf"]
        pdf = picture.paths[1].read_bytes()
        assert b"/Type3" not in pdf
        assert b"/FontFile2" in pdf


def test_figures_with_nothing_to_show_are_not_written(drawn: Drawn, tmp_path: Path) -> None:
    runs = [run_of(), run_of(1)]
    assert drawn(runs, []) == {}
    assert list(tmp_path.glob("out/*")) == []
    one = drawn(runs, [pruned_row(runs[0], 80)])
    assert set(one) == {"intervals_digits_resnet8"}, "one method and one budget: an axis of cuts shows nothing"


def test_one_budget_has_intervals_and_a_pareto_axis_only_over_what_differs(drawn: Drawn, tmp_path: Path) -> None:
    runs = [run_of(seed, 0.5, name) for name in ("a", "b") for seed in (0, 1)]
    rows = [pruned_row(run, 80 - run.seed, macs_cut_pct=50.0 + 4 * run.seed, params_cut_pct=40.0) for run in runs]
    kinds = {name.split("_")[0] for name in drawn(runs, rows)}
    assert kinds == {"intervals", "ablation"}
    apart = [dataclasses.replace(row, params_cut_pct=20.0) if "=a" in row.settings else row for row in rows]
    assert "pareto_params_digits_resnet8" in drawn(runs, apart)
    for cut, shown in ((53, False), (80, True)):
        (tmp_path / "published.csv").write_text(
            f"dataset,model,method,top1_pct,flops_cut_pct,source,seen\ndigits,resnet8,x,80,{cut},page,primary\n"
        )
        assert ("pareto_macs_digits_resnet8" in drawn(runs, rows, home=tmp_path)) == shown


def test_a_method_alone_is_called_neither_best_nor_ordered(drawn: Drawn) -> None:
    runs = [run_of(seed, 0.5) for seed in range(3)]
    caption = drawn(runs, [pruned_row(run, 80 - run.seed) for run in runs])["intervals_digits_resnet8"].caption
    assert "Dotted line: no drop." in caption
    assert "order" not in caption


def test_a_figure_that_has_nothing_to_show_any_more_is_deleted(drawn: Drawn, tmp_path: Path) -> None:
    runs, rows = many(2, (0.3, 0.5), 2)
    drawn(runs, rows)
    for path in tmp_path.glob("rows/timed-*.json"):
        path.unlink()
    made = drawn(runs, [])
    left = {path.stem for path in (tmp_path / "out").iterdir()}
    assert left == set(made)
    assert not any("speed" in name for name in left)


def test_no_figure_shows_the_dense_control_alone(drawn: Drawn) -> None:
    control = [
        dataclasses.replace(run_of(seed, 0.0), settings=get("dense_control")(), learning=SCHEDULE) for seed in range(2)
    ]
    rows: list[records.Row] = [pruned_row(run, 80, macs_cut_pct=0, params_cut_pct=0) for run in control]
    rows += [timed_row(run, (0.99, 1.0, 1.01)) for run in control]
    assert not [name for name in drawn(control, rows) if name.startswith(("pareto", "speed"))]


def test_numbers_that_are_no_numbers_are_left_out(drawn: Drawn) -> None:
    runs, rows = many(2, (0.3, 0.5), 2)
    nothing: dict[str, Any] = {"status": "failed", "reason": "nan", "pruned_top1_pct": None, "drop_pp": None}
    rows[0] = pruned_row(runs[0], 0, **nothing)
    rows[1] = timed_row(runs[0], (1.0, 1.0, 1.0), status="failed", reason="nan")
    rows[2] = pruned_row(runs[1], 80, params_cut_pct=None)
    assert "n = 1 to 2 base networks" in drawn(runs, rows)["pareto_macs_digits_resnet8"].caption


def test_a_hostile_name_is_drawn_as_it_is(drawn: Drawn, texts: dict[str, list[str]]) -> None:
    runs = [run_of(seed, budget, name) for seed in (0, 1) for budget in (0.3, 0.5) for name in (HOSTILE, "_b$")]
    made = drawn(runs, [*(pruned_row(run, 80) for run in runs), *(timed_row(run, (1.2, 1.1, 1.3)) for run in runs)])
    assert len(made) == 6
    for name in made:
        shown = "".join(texts[name]).replace("\n", "").replace("\u200b", "").replace(" ", "")
        assert HOSTILE.replace(" ", "") in shown, name


def test_a_method_looks_the_same_in_all_figures(drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where an earlier one is absent: it was not timed."""
    asked: list[int] = []
    of_look = looks.Look.style

    def spy(look: looks.Look) -> dict[str, Any]:
        asked.append(look.variant)
        return of_look(look)

    monkeypatch.setattr(looks.Look, "style", spy)
    runs, rows = many(2, (0.3, 0.5), 1)
    timed = [row for row in rows if not (isinstance(row, records.TimedRow) and "m00" in row.settings)]
    made = drawn(runs, timed, home=Path("none"))
    assert "pareto_speedup_digits_resnet8" in made
    assert asked[0] == 1  # measured over theoretical speed-up
    assert asked[1:5] == [0, 1, 0, 1]  # accuracy over MACs and over parameters
    assert asked[5:7] == [1, 1]  # over measured speed-up and over latency


def test_the_look_of_a_variant_does_not_depend_on_what_is_missing(tmp_path: Path) -> None:
    """Nor on the conditions of others: what is made at another commit comes after all variants."""
    runs = [run_of(0, budget, name) for name in ("a", "b", "c") for budget in (0.3, 0.5)]
    grid = Grid(title="Example", about="An example.", runs=lambda: runs, timings=(Timing(),))

    def variants() -> list[int]:
        found = frames.load(grid, tmp_path, smoke=False)
        of_lines = [look.variant for look in looks.of_lines(cells.table(found))]
        assert [look.variant for look in looks.of_runs(found.runs)] == of_lines
        return of_lines

    for run in (runs[0], runs[2]):
        records.write(pruned_row(run, 80), tmp_path)
    records.write(timed_row(runs[0], (1.2, 1.1, 1.3)), tmp_path)
    assert variants() == [0, 0, 1, 1, 2, 2]
    records.write(pruned_row(runs[1], 80, made={"commit": "f" * 40}), tmp_path)
    assert variants() == [0, 3, 1, 1, 2, 2]
    for run in runs:
        records.write(pruned_row(run, 80), tmp_path)
    assert variants() == [0, 0, 1, 1, 2, 2]


def test_an_absolute_time_is_drawn_for_a_gpu_only(drawn: Drawn) -> None:
    made = drawn(*many(2, (0.3,), 1, device="cpu: Example, 2 cores"))
    assert "pareto_speedup_digits_resnet8" in made
    assert not any("latency" in name for name in made)


# ---- Pareto ----------------------------------------------------------------------------------------------------------


def front_of(x: list[float], y: list[float], *, less: bool, coarse: int = -1) -> list[tuple[float, float]]:
    over: pareto.Over = "latency" if less else "macs"
    column = pareto.AXES[over].column
    points = pd.DataFrame({column: x, "top1_mean_pct": y, "cell": range(len(x)), "base_top1_mean_pct": 90.0})
    points = points.assign(dense_ms=10.0, evidence="paper", coarse=(points["cell"] == coarse).astype(int))
    return list(pareto._front(points, pareto.AXES[over])[["x", "y"]].itertuples(index=False, name=None))


def test_the_front_is_what_nothing_beats_on_both_axes() -> None:
    assert front_of([30, 50, 50, 70, 60], [88, 87, 80, 70, 60], less=False) == [(0, 90), (30, 88), (50, 87), (70, 70)]
    assert front_of([9, 8, 7, 6], [80, 85, 84, 84], less=True) == [(10, 90), (8, 85), (6, 84)]
    assert front_of([30, 50], [91, 92], less=False) == [(50, 92)]
    assert front_of([30, 50], [88, 87], less=False, coarse=1) == [(0, 90), (30, 88)]
    assert front_of([30, 50], [88, 89], less=False, coarse=1) == [(0, 90)]


def test_the_front_agrees_with_its_definition_on_random_points() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        x, y = rng.integers(1, 9, 12).astype(float), rng.integers(70, 95, 12).astype(float)
        every = {(0.0, 90.0), *zip(x, y, strict=True)}
        best = {(a, b) for a, b in every if not any((c >= a and d >= b) and (c, d) != (a, b) for c, d in every)}
        assert set(front_of(list(x), list(y), less=False)) == best


def test_no_front_is_drawn_across_conditions(drawn: Drawn, texts: dict[str, list[str]]) -> None:
    runs = [run_of(0, budget) for budget in (0.3, 0.5)]
    rows = [pruned_row(runs[0], 80), pruned_row(runs[1], 70, made={"commit": "f" * 40})]
    made = drawn(runs, rows)["pareto_macs_digits_resnet8"]
    assert "No front is drawn" in made.caption
    assert not any(text.startswith("Pareto front") for text in texts[made.name])
    assert "[A] commit 01234567; [B] commit ffffffff" in made.caption


def test_published_numbers_are_marked_with_their_source(
    drawn: Drawn, texts: dict[str, list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    head = "dataset,model,method,top1_pct,flops_cut_pct,flops_scope,selection,source,seen\n"
    (folder / "some.csv").write_text(
        head + "digits,resnet8,theirs,89,55,prunable convs,best epoch on test,their page,primary\n"
        "digits,resnet8,nothing,,55,,,a page without an accuracy,primary\n"
        "digits,vgg6,other,89,55,,,another model,primary\n"
    )
    runs = [run_of(), run_of(budget=0.3)]
    made = drawn(runs, [pruned_row(run, 80) for run in runs], home=folder)
    shown = " ".join(texts["pareto_macs_digits_resnet8"])
    assert "published, their page: 1 theirs" in shown
    assert "another model" not in shown
    assert "without an accuracy" not in shown
    caption = made["pareto_macs_digits_resnet8"].caption
    assert (
        "cuts of their page count the prunable convolutions only, and its epoch is the best on the test set" in caption
    )
    assert "published" not in " ".join(texts["pareto_params_digits_resnet8"])


def test_a_collapsed_method_does_not_squeeze_the_others(drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[float, float]] = []
    name_ends = style.name_ends

    def spy(figure: Any, axes: Axes, *rest: Any) -> None:
        limits.append(axes.get_ylim())
        name_ends(figure, axes, *rest)

    monkeypatch.setattr(style, "name_ends", spy)
    runs = [*(run_of(0, 0.5, f"m{i}") for i in range(8)), run_of(0, 0.3, "m0")]
    made = drawn(runs, [pruned_row(run, 10 if i == 7 else 89 - 0.1 * i) for i, run in enumerate(runs)])
    assert limits[0][0] > 85
    assert "Arrows at the lower edge: points below" in made["pareto_params_digits_resnet8"].caption


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_labels_keep_their_order_and_do_not_overlap() -> None:
    wanted = np.array([0.5, 0.5, 0.52, 0.1, 0.99])
    heights = np.array([0.1, 0.1, 0.2, 0.1, 0.1])
    placed = style.spread(wanted, heights, 0.0, 1.0)
    order = np.argsort(wanted, kind="stable")
    assert (np.diff(placed[order]) >= (heights[order][1:] + heights[order][:-1]) / 2 - 1e-12).all()
    assert placed[3] == pytest.approx(0.1)
    assert placed.min() >= 0
    assert placed.max() <= 1


def test_twenty_names_at_five_budgets_lie_apart(drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: list[list[Any]] = []

    def spy(figure: Figure, path: Path) -> list[Path]:
        names = [
            text for axes in figure.axes for text in axes.texts if "m" in text.get_text() and "=" in text.get_text()
        ]
        figure.draw_without_rendering()
        boxes.append([text.get_window_extent() for text in names])
        return not_rendered(figure, path)

    monkeypatch.setattr(style, "save", spy)
    drawn(*many(20, (0.1, 0.3, 0.5, 0.7, 0.9), 3))
    assert max(map(len, boxes)) == 20
    for found in boxes:
        in_order = sorted(found, key=lambda box: box.y0)
        assert all(low.y1 <= high.y0 + 3 for low, high in itertools.pairwise(in_order))


# ---- methods against each other --------------------------------------------------------------------------------------


def test_agreement_is_one_for_the_same_order_and_less_when_it_turns(drawn: Drawn) -> None:
    runs, rows = many(4, (0.3, 0.5), 3)
    same = drawn(runs, rows)["ranks_digits_resnet8"].caption
    assert "Kendall's tau, on average: 1.00" in same
    turned = [
        dataclasses.replace(row, pruned_top1_pct=180 - row.pruned_top1_pct)
        if isinstance(row, records.PrunedRow) and row.budget == 0.5 and row.pruned_top1_pct is not None
        else row
        for row in rows
    ]
    assert "Kendall's tau, on average: -1.00" in drawn(runs, turned)["ranks_digits_resnet8"].caption


def test_budgets_of_one_method_are_not_compared(drawn: Drawn) -> None:
    runs = [run_of(0, 0.3, "a"), run_of(0, 0.5, "b")]
    assert not any(name.startswith(("intervals", "ranks")) for name in drawn(runs, [pruned_row(r, 80) for r in runs]))


def near_chance(worst: float) -> tuple[list[Pruned], list[records.Row]]:
    """Return runs of four methods.

    At 30 % two of them, at 90 % all keep at most `worst`, at 50 % none does.
    """
    runs = [run_of(s, b, f"m{m}") for m in range(4) for b in (0.3, 0.5, 0.9) for s in range(3)]
    rows: list[records.Row] = []
    for number, run in enumerate(runs):
        method = int(run.settings.name[1:])  # type: ignore[attr-defined]
        low = run.budget.share == 0.9 or (run.budget.share == 0.3 and method > 1)
        rows.append(pruned_row(run, worst - number % 5 if low else 80 - method - 0.1 * (run.seed * (1 + method) % 3)))
    return runs, rows


def test_there_is_no_order_near_chance_level(drawn: Drawn, texts: dict[str, list[str]]) -> None:
    """Base networks have 90 % of ten classes: near chance is below 18 %."""
    made = drawn(*near_chance(17.0))["ranks_digits_resnet8"]
    assert "Ranks mean nothing near chance level (10 %)" in made.caption
    assert "no method has more at 90 %, which are left out" in made.caption
    shown = texts[made.name]
    assert shown.count("near chance") == 1
    assert {"30 %", "50 %"} <= set(shown)
    assert "90 %" not in shown


def test_a_base_network_near_chance_level_gives_no_order(drawn: Drawn) -> None:
    """There are ten classes, so near chance is below 19 %."""
    runs = [run_of(seed, budget, f"m{m}") for m in range(3) for budget in (0.3, 0.5) for seed in range(3)]
    for base, ordered in ((18.0, False), (20.0, True)):
        rows = [pruned_row(run, base - number - number**2 % 3, base_top1_pct=base) for number, run in enumerate(runs)]
        made = drawn(runs, rows)
        assert ("ranks_digits_resnet8" in made) is ordered
        caption = made["intervals_digits_resnet8"].caption
        reason = "no order and no ranks: the base network, with 18.0 %, is near chance level (10 %): less than 10 % of the way"
        assert (reason in caption) is not ordered
        assert ("in the order of their mean rank" in caption) is ordered


def frame_of(runs: Sequence[Pruned], drops_pp: Sequence[float]) -> pd.DataFrame:
    """Return runs with these drops, as `comparison.described` does."""
    frame = pd.DataFrame(
        {
            **{"name": [run.settings.name for run in runs], "at": [f"{run.budget.share:.0%}" for run in runs]},  # type: ignore[attr-defined]
            **{"seed": [run.seed for run in runs], "split": "all", "lost_pp": 72.0},
            **{"drop_pp": drops_pp, "evidence": ""},
            **dict.fromkeys(frames.CONDITIONS, ""),
            **{"data": "digits", "model": "resnet8", "budget_scope": "network"},
            **{"budget": [run.budget.share for run in runs]},
        }
    )
    return frame.assign(settings=frame["name"], base_weights=frame["seed"])


def apart(runs: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """Return a pair of methods that is told apart in the comparison sets of the runs."""
    pair = runs.drop_duplicates(fairness.SET).assign(a=a, b=b, verdict=f"{a} is better")
    return pair[[*fairness.SET, "a", "b", "verdict"]]


def test_ranks_near_chance_level_are_shared() -> None:
    runs, rows = near_chance(17.0)
    frame = frame_of(runs, [90 - row.pruned_top1_pct for row in rows])  # type: ignore[attr-defined]
    told_apart = apart(frame[frame["budget"] == 0.5], "m0", "m3")
    assert comparison.ranked(frame, told_apart.assign(verdict=pairs.SAME)).empty
    ranked = comparison.ranked(frame, told_apart)
    ranks = ranked.groupby(["at", "name"])["rank"].first()
    assert ranks.loc["30%"].tolist() == [1, 2, 3.5, 3.5]
    assert ranks.loc["50%"].tolist() == [1, 2, 3, 4]
    assert "90%" not in ranks
    assert comparison.near_chance(frame) == ["90%"]


def test_ranks_are_those_on_blocks_that_all_methods_have() -> None:
    """A method that has an easy base network more is not better for it."""
    runs = [run_of(s, b, f"m{m}") for m in range(2) for b in (0.3, 0.5) for s in range(2 + m)]
    frame = frame_of(runs, [3.0 + run.settings.name.endswith("1") - 4 * (run.seed == 2) for run in runs])  # type: ignore[attr-defined]
    ranks = comparison.ranked(frame, apart(frame, "m0", "m1")).groupby(["at", "name"])["rank"].first()
    assert ranks.loc["30%"].to_dict() == ranks.loc["50%"].to_dict() == {"m0": 1, "m1": 2}
    strangers = frame[(frame["seed"] == 2) | (frame["name"] == "m0")]
    assert comparison.ranked(strangers, apart(frame, "m0", "m1")).empty


def test_above_chance_level_all_ranks_are_drawn(drawn: Drawn, texts: dict[str, list[str]]) -> None:
    made = drawn(*near_chance(60.0))["ranks_digits_resnet8"]
    assert "chance" not in made.caption
    assert "near chance" not in texts[made.name]
    assert {"30 %", "50 %", "90 %"} <= set(texts[made.name])


def test_coarse_runs_take_no_part(drawn: Drawn, texts: dict[str, list[str]]) -> None:
    runs, rows = many(3, (0.3, 0.5), 2)
    coarse = [
        dataclasses.replace(row, coarse=True) if isinstance(row, records.PrunedRow) and "m02" in row.settings else row
        for row in rows
    ]
    made = drawn(runs, coarse)
    assert "4 coarse runs are left out" in made["intervals_digits_resnet8"].caption
    assert not any("m02" in text for text in texts["intervals_digits_resnet8"])


def test_there_are_no_ranks_across_conditions(drawn: Drawn, texts: dict[str, list[str]]) -> None:
    runs, rows = many(2, (0.3, 0.5), 3)
    assert "ranks_digits_resnet8" in drawn(runs, rows)
    other = {"commit": "f" * 40}
    moved = [
        dataclasses.replace(row, provenance={**row.provenance, **other}) if row.budget == 0.5 else row for row in rows
    ]
    made = drawn(runs, moved)
    assert "ranks_digits_resnet8" not in made
    assert {"MACs cut: 30 % [A]", "MACs cut: 50 % [B]"} <= set(texts["intervals_digits_resnet8"])
    assert "[A] commit 01234567; [B] commit ffffffff" in made["intervals_digits_resnet8"].caption


def test_methods_that_are_not_told_apart_share_a_bar() -> None:
    apart = {frozenset(pair) for pair in ("ac", "ad", "bd", "ae", "be", "ce", "de")}
    assert comparison.groups("abcde", apart) == [(0, 1), (1, 2), (2, 3)]
    assert comparison.groups("abcde", set()) == [(0, 4)]
    assert comparison.groups("ab", {frozenset("ab")}) == []


def test_ranks_that_nothing_tells_apart_are_not_drawn(drawn: Drawn) -> None:
    assert not any(name.startswith("ranks") for name in drawn(*many(3, (0.3, 0.5), 2)))


def test_networks_that_were_never_trained_have_no_figure_of_accuracy(drawn: Drawn) -> None:
    runs, rows = many(2, (0.3, 0.5), 1)
    equal = [
        dataclasses.replace(row, pruned_top1_pct=0.0, base_top1_pct=0.0) if isinstance(row, records.PrunedRow) else row
        for row in rows
    ]
    assert {name.split("_")[0] for name in drawn(runs, equal)} == {"speed"}


def test_error_bars_that_leave_the_axes_are_marked() -> None:
    with style.new_figure(entries=0) as figure:
        axes = figure.add_subplot()
        axes.errorbar([1, 2], [5, 5], yerr=[[1, 9], [1, 9]], xerr=[[0, 0], [0, 9]], fmt="none", ecolor="red")
        axes.errorbar([3], [50], yerr=[1], fmt="none")
        axes.set(xlim=(0, 4), ylim=(0, 10))
        assert style.mark_cut_bars(axes)
        marks = sorted(np.asarray(line.get_xydata())[0].tolist() for line in axes.lines if line.get_marker() != "None")
        np.testing.assert_allclose(marks, [(0.5, 0), (0.5, 1), (1, 0.5)])
        axes.set(xlim=(0, 20), ylim=(-10, 60))
        axes.lines[-1].remove()
        assert not style.mark_cut_bars(axes)


def test_a_bar_inside_limits_that_are_not_computed_yet_is_not_marked() -> None:
    with style.new_figure(entries=0) as figure:
        axes = figure.add_subplot()
        axes.errorbar([0.1, 0.2], [0.5, 1.4], yerr=[0.5, 0.5], fmt="none")
        assert not style.mark_cut_bars(axes)


def test_a_cut_bar_is_in_the_caption(drawn: Drawn) -> None:
    runs = [run_of(seed, budget) for budget in (0.3, 0.5) for seed in range(3)]
    for spread, marked in ((0.01, False), (5, True)):
        made = drawn(runs, [pruned_row(run, 80 + spread * run.seed) for run in runs])["pareto_macs_digits_resnet8"]
        assert ("Hollow arrows at an edge: bars that go on." in made.caption) is marked


def test_ranks_need_every_budget() -> None:
    budgets = [f"{share} %" for share in range(10, 90, 10)]
    assert comparison._chosen(budgets, 5)[0] == "10 %"
    assert comparison._chosen(budgets, 5)[-1] == "80 %"
    assert comparison._chosen(budgets[:2], 5) == budgets[:2]


# ---- ablations -------------------------------------------------------------------------------------------------------


def knob_run(seed: int = 0, **settings: Any) -> Pruned:
    return dataclasses.replace(run_of(seed), settings=Knobs(**settings), finetune=SCHEDULE)


def test_a_setting_is_drawn_over_its_values_with_all_else_equal(drawn: Drawn, texts: dict[str, list[str]]) -> None:
    settings: list[dict[str, Any]] = [{"lam": lam} for lam in (0.1, 1.0, 10.0)] + [{"mode": "b"}]
    runs = [knob_run(seed, **changes) for changes in settings for seed in range(3)]
    made = drawn(runs, [pruned_row(run, 80 + run.seed) for run in runs])
    over = {name: picture for name, picture in made.items() if name.startswith("ablation")}
    assert set(over) == {f"ablation_digits_resnet8_test_figures_{name}" for name in ("lam", "mode")}
    assert {"0.1", "1", "10"} <= set(texts["ablation_digits_resnet8_test_figures_lam"])
    assert {"a", "b"} <= set(texts["ablation_digits_resnet8_test_figures_mode"])
    assert "n = 3 base networks" in over["ablation_digits_resnet8_test_figures_lam"].caption


def test_settings_that_never_vary_alone_have_no_figure() -> None:
    runs = [knob_run(lam=1.0, mode="a"), knob_run(lam=2.0, mode="b")]
    lines = pd.DataFrame({"method": "m", "series": [0, 1], "cell": [0, 1], "top1_mean_pct": 80.0, "budget": 0.5})
    lines[["budget_scope", *frames.CONDITIONS, *frames.SCHEDULES]] = "network"
    table = pd.DataFrame({"series": [0, 1], "key": [run.key for run in runs]})
    assert list(ablation.find(lines, table, {run.key: run.settings for run in runs})) == []


# ---- curves ----------------------------------------------------------------------------------------------------------


def test_finetuning_curves_are_drawn_where_the_logs_are(
    tmp_path: Path, texts: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style, "fit", lambda *_: None)
    runs = [run_of(seed, 0.5, name) for name in ("a", "b") for seed in (0, 1)]
    for run in runs:
        records.write(pruned_row(run, 80), tmp_path)
    grid = Grid(title="Example", about="An example.", runs=lambda: runs)
    found = frames.load(grid, tmp_path, smoke=False).runs
    assert learning.draw_all(runs, found, tmp_path, tmp_path / "out") == []
    for run in runs[:3]:
        folder = tmp_path / "work" / run.key
        folder.mkdir(parents=True)
        (folder / "done.json").write_text("{}")
        (folder / "history.jsonl").write_text('{"epoch": 1, "loss": 2.0}\n{"epoch": 2, "loss": 1.0}\n')
    (made,) = learning.draw_all(runs, found, tmp_path, tmp_path / "out")
    assert made.name == "finetuning_digits_resnet8_50"
    assert "n = 1 to 2 seeds" in made.caption
    assert COMMIT[:8] in made.caption
    assert {"test_report(name=a)", "test_report(name=b)"} <= set(texts[made.name])


def test_a_run_without_fine_tuning_and_a_damaged_log_have_no_curve(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for run, text in ((run_of(0), ""), (run_of(1), "{")):
        records.write(pruned_row(run, 80), tmp_path)
        folder = tmp_path / "work" / run.key
        folder.mkdir(parents=True)
        (folder / "done.json").write_text("{}")
        (folder / "history.jsonl").write_text(text)
    grid = Grid(title="Example", about="An example.", runs=lambda: [run_of(0), run_of(1)])
    found = frames.load(grid, tmp_path, smoke=False).runs
    assert learning.of_finetuning(found, tmp_path).empty
    assert f"{run_of(1).key}/history.jsonl cannot be read" in caplog.text


def test_curves_of_other_schedules_and_commits_are_lines_of_their_own(
    tmp_path: Path, texts: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style, "fit", lambda *_: None)
    longer = dataclasses.replace(SCHEDULE, epochs=9)
    runs = [run_of(0), dataclasses.replace(run_of(0), finetune=longer), run_of(1)]
    for run, commit in zip(runs, (COMMIT, COMMIT, "f" * 40), strict=True):
        records.write(pruned_row(run, 80, made={"commit": commit}), tmp_path)
        folder = tmp_path / "work" / run.key
        folder.mkdir(parents=True)
        (folder / "done.json").write_text("{}")
        (folder / "history.jsonl").write_text('{"epoch": 1, "loss": 2.0}\n{"epoch": 2, "loss": 1.0}\n')
    found = frames.load(Grid(title="Example", about="An example.", runs=lambda: runs), tmp_path, smoke=False).runs
    (made,) = learning.draw_all(runs, found, tmp_path, tmp_path / "out")
    assert "n = 1 run" in made.caption
    assert "[A] commit 01234567; [B] commit ffffffff" in made.caption
    names = [f"test_report [{epochs} epochs] [{letter}]" for epochs, letter in ((2, "A"), (9, "A"), (2, "B"))]
    assert set(names) <= {" ".join(text.split()) for text in texts[made.name]}


def test_axes_keep_their_height_above_a_long_caption() -> None:
    with style.new_figure(entries=0) as figure:
        figure.set_size_inches(5.5, 1.5)
        axes = figure.subplots()
        style.caption(figure, "a word of the caption " * 60)
        style.fit(figure, axes, 0.42)
        figure.draw_without_rendering()
        assert axes.get_position().height * figure.get_figheight() == pytest.approx(0.42, abs=0.02)


def test_rows_of_other_code_name_the_whole_release_of_an_installed_package() -> None:
    rows = [
        pruned_row(run_of(seed), 90.0, made={"commit": commit, "code": code})
        for seed, commit, code in ((0, "package 0.1.0", "aaaa"), (1, COMMIT, "bbbb"))
    ]
    marked = [row.provenance["commit"] for row in frames._marked(rows, [0, 0])]
    assert marked == ["package 0.1.0 code aaaa", f"{COMMIT[:8]} code bbbb"]
