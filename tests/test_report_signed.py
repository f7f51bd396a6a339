"""Reports that an author would sign: control, equal training, doses, notes, and what n counts."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_figures import not_rendered
from test_report import CPU, SCHEDULE, pruned_row, timed_row

from suite import methods, records
from suite.contract import Budget, Pruner
from suite.grids import Grid
from suite.report import content, figures, frames, words
from suite.report.figures import learning, pareto, style
from suite.report.page import answer
from suite.report.statistics import cells, fairness, pairs
from suite.report.tables import documents, timings
from suite.schedule import Schedule
from suite.stages import Base, Pruned, Timing

LONGER = dataclasses.replace(SCHEDULE, epochs=9)
LEARN = Schedule(epochs=10, lr=0.1, weight_decay=0.0)


def run_of(method: str, seed: int = 0, budget: float = 0.5, finetune: Schedule = SCHEDULE, **changes: Any) -> Pruned:
    """A run of a method of the suite; its base network has the same seed."""
    settings: Pruner = methods.get(method)(**changes)
    base = Base(data="digits", model="resnet8", schedule=SCHEDULE, seed=seed)
    return Pruned(
        base=base,
        settings=settings,
        learning=LEARN if settings.learns else None,
        budget=Budget(share=budget if settings.removes else 0.0),
        finetune=finetune,
        seed=seed,
    )


def row_of(run: Pruned, top1: float, **changes: Any) -> records.PrunedRow:
    """A row with the epochs of its run and the base weights of its seed."""
    spent = {
        "base_epochs": SCHEDULE.epochs,
        "learning_epochs": run.learning.epochs if run.learned and run.learning else 0,
        "finetune_epochs": run.finetune.epochs,
    }
    made = {"base_sha256": f"seed {run.seed}", **changes.pop("made", {})}
    return pruned_row(run, top1, **{**spent, "made": made, **changes})


def grid_of(runs: list[Pruned], **changes: Any) -> Grid:
    return Grid(**{"title": "Example", "about": "About.", "runs": lambda: runs, "timings": (), **changes})


def load(results: Path, rows: dict[Pruned, float], more: list[records.Row] | None = None, **changes: Any) -> Any:
    """The grid of these runs, with their accuracies, and its frames."""
    for row in [*(row_of(run, top1) for run, top1 in rows.items()), *(more or [])]:
        records.write(row, results)
    grid = grid_of(list(rows), **changes)
    return grid, frames.load(grid, results, smoke=False)


def test_the_drop_to_the_control_is_paired_by_base_network(tmp_path: Path) -> None:
    rows = {run_of("dense_control", seed): 91.0 + seed for seed in range(3)}
    rows |= {run_of("l1_filter", seed): top1 for seed, top1 in enumerate((88.0, 90.0, 89.5))}
    _, found = load(tmp_path, rows)
    line = cells.table(found).set_index("method").loc["l1_filter"]
    assert line["control_drop_mean_pp"] == pytest.approx((3 + 2 + 3.5) / 3)
    assert line["control_drop_sd_pp"] == pytest.approx(pd.Series([3, 2, 3.5]).std())
    assert line["drop_mean_pp"] == pytest.approx(90 - (88 + 90 + 89.5) / 3)
    assert "control: 14 plain epochs" in line["note"], "the control trained longer than the method"


def test_of_several_controls_that_of_the_same_schedule_counts(tmp_path: Path) -> None:
    rows = {run_of("dense_control"): 91.0, run_of("dense_control", finetune=LONGER): 95.0}
    rows |= {run_of("l1_filter", finetune=LONGER): 90.0, run_of("l1_filter"): 90.0}
    _, found = load(tmp_path, rows)
    lines = cells.table(found)
    drops = lines[lines["method"] == "l1_filter"].set_index("finetune_epochs")["control_drop_mean_pp"]
    assert drops.to_dict() == {9: 5.0, 2: 1.0}


def test_a_missing_control_is_said_and_runs_without_fine_tuning_need_none(tmp_path: Path) -> None:
    once = dataclasses.replace(SCHEDULE, epochs=0)
    _, found = load(tmp_path, {run_of("l1_filter"): 90.0, run_of("l2_filter", finetune=once): 89.0})
    notes = cells.table(found).set_index("method")["note"]
    assert "no dense control" in notes["l1_filter"]
    assert "no dense control" not in notes["l2_filter"]


def test_a_pair_has_a_level_of_its_own_in_plain_step_equivalents(tmp_path: Path) -> None:
    """A learning epoch of DSP counts 2.1 plain ones.

    So 10 of them and 2 more are as much as 23.
    """
    equal = dataclasses.replace(SCHEDULE, epochs=23)
    rows = {run_of("dsp", seed): 90.0 + seed for seed in range(3)}
    rows |= {run_of("l1_filter", seed, finetune=equal): 89.0 + 2 * seed for seed in range(3)}
    rows |= {run_of("l2_filter", seed): 88.0 - seed for seed in range(3)}
    _, found = load(tmp_path, rows, family="dsp")
    assert found.runs.set_index("method")["plain_epochs"].to_dict() == {
        "dsp": 25.0,
        "l1_filter": 25.0,
        "l2_filter": 4.0,
    }
    compared = pairs.table(found.runs)
    levels = {
        frozenset(pair): (level, text)
        for *pair, level, text in compared[["a", "b", "fairness_level", "fairness"]].values
    }
    assert levels[frozenset(("dsp", "l1_filter"))] == (3, "25 against 25 plain epochs")
    assert levels[frozenset(("dsp", "l2_filter"))][0] == 1
    assert set(cells.table(found)["fairness"]) == {fairness.LEVELS[1]}, "the set has what all pairs share"


def test_a_method_from_an_abstract_is_marked_and_in_no_headline(tmp_path: Path) -> None:
    rows = {run_of("lapp", seed): 99.0 + 0.1 * seed for seed in range(3)}
    rows |= {run_of("dsp", seed): 90.0 + seed for seed in range(3)}
    rows |= {run_of("l1_filter", seed): 80.0 + seed for seed in range(3)}
    grid, found = load(tmp_path, rows, family="dsp")
    collected = content.collect("example", grid, found, smoke=False)
    texts = documents.texts(collected, [])
    for name in ("table.csv", "table.md", "table_digits_resnet8.tex"):
        assert "lapp (from the abstract)" in texts[name], name
    assert "lapp" in set(collected.compared["a"].str.split().str[0])
    assert not pairs.shown(collected.compared)[["a", "b"]].stack().str.contains("lapp").any()
    assert not any("lapp" in text for text in pairs.warnings(collected.compared))
    sentence = answer.sentences(collected.lines, collected.compared, collected.leaders)[0]
    assert "no method is told apart from dsp, which has the highest mean" in sentence
    assert "lapp" not in sentence
    lines = collected.lines
    front = pareto._front(pareto.points_of(lines, "macs"), pareto.AXES["macs"])
    assert not set(front["cell"]) & set(lines.loc[lines["method"] == "lapp", "cell"])


def test_sources_and_deviations_stand_under_the_tables(tmp_path: Path) -> None:
    grid, found = load(tmp_path, {run_of("dsp"): 90.0, run_of("l1_filter"): 89.0})
    texts = documents.texts(content.collect("example", grid, found, smoke=False), [])
    for name, escape in (("table.md", words.markdown), ("table_digits_resnet8.tex", words.latex)):
        for note in methods.notes(["dsp", "l1_filter"]):
            assert escape(note.source) in texts[name]
            assert escape(note.deviations) in texts[name]
        assert escape(methods.shared_deviations(["l1_filter"])) in texts[name]
    assert methods.shared_deviations(["dsp"]) == ""


def test_fewer_than_five_base_networks_decide_no_headline(tmp_path: Path) -> None:
    rows = {run_of("dsp", seed): 90.0 + seed for seed in range(4)} | {
        run_of("l1_filter", seed): 89.0 for seed in range(4)
    }
    grid, found = load(tmp_path, rows, family="dsp")
    texts = documents.texts(content.collect("example", grid, found, smoke=False), [])
    for name in ("table.md", "table_digits_resnet8.tex"):
        assert "The headline cannot be decided: the grid plans 4 base networks, and a claim takes 5" in texts[name]
    assert pairs.undecidable(found.runs.assign(declared=False)) == ""
    five = {run_of(name, seed): 90.0 for name in ("dsp", "l1_filter") for seed in range(5)}
    assert pairs.undecidable(load(tmp_path, five, family="dsp")[1].runs) == ""


def test_a_base_network_whose_rows_lie_apart_counts_for_no_headline(tmp_path: Path) -> None:
    """Blocks may come from several devices, but one row of a block on another device takes the block away."""
    runs = [run_of(name, seed) for name in ("dsp", "l1_filter", "random_filter") for seed in range(5)]

    def reason(devices: dict[tuple[str, int], str], unfinished: tuple[str, int]) -> str:
        rows = {
            run: row_of(run, 90.0, made={"device": devices.get((run.method, run.seed), "cpu")})
            for run in runs
            if (run.method, run.seed) != unfinished
        }
        results = tmp_path / str(len(list(tmp_path.iterdir())))
        for row in rows.values():
            records.write(row, results)
        return pairs.undecidable(frames.load(grid_of(runs, family="dsp"), results, smoke=False).runs)

    tmp_path.joinpath("0").mkdir()
    whole = {(name, 4): "gpu" for name in ("dsp", "l1_filter", "random_filter")}
    assert reason(whole, ("dsp", 3)) == "", "a block that is not finished can be"
    assert reason({("random_filter", 4): "gpu"}, ("dsp", 3)) == "", "a control is no part of the headline"
    assert reason({("dsp", 4): "gpu"}, ("dsp", 3)).startswith(
        "The headline cannot be decided: the grid plans 5 base networks, of which one comparison can have 4 (rows of the rest "
        "lie apart), and a claim takes 5. A verdict"
    )


@pytest.mark.parametrize(
    ("n", "bases", "text"),
    [(5, 5, "5 base networks"), (1, 1, "1 base network"), (5, 1, "5 fine-tunings of 1 base network"), (0, 0, "")],
)
def test_n_says_what_it_counts(n: int, bases: int, text: str) -> None:
    assert words.counts_of(n, bases) == text


def test_speedups_have_a_column_for_each_device_and_batch(tmp_path: Path) -> None:
    run = run_of("l1_filter")
    kinds = (Timing(batch=1), Timing(batch=32))
    more: list[records.Row] = [
        timed_row(run, (1.5, 1.4, 1.6), kinds[0]),
        timed_row(run, (0.8, 0.7, 0.9), kinds[1]),
    ]
    grid, found = load(tmp_path, {run: 90.0}, more, timings=kinds)
    table = timings.table(cells.latency(found))
    (line,) = table.to_dict("records")
    assert line[f"{CPU}, batch 1, fp32"] == "1.50 [1.40, 1.60] (1), faster"
    assert line[f"{CPU}, batch 32, fp32"] == "0.80 [0.70, 0.90] (1), slower"
    texts = documents.texts(content.collect("example", grid, found, smoke=False), [])
    assert timings.TITLE in texts["table.md"]
    assert "batch 32, fp32" in texts["timings_digits_resnet8.tex"].replace("\\\\", " ").replace("\n", " ")
    assert timings.table(cells.latency(load(tmp_path, {run: 90.0}, timings=kinds[:1])[1])).empty


def test_a_timing_that_has_fewer_runs_is_on_the_same_line(tmp_path: Path) -> None:
    """The theoretical speed-up is a mean over the runs that were timed."""
    runs, kinds = [run_of("l1_filter", seed) for seed in range(2)], (Timing(batch=1), Timing(batch=32))
    timed = [(runs[0], kinds[0], 2.0), (runs[0], kinds[1], 2.0), (runs[1], kinds[1], 2.1)]
    more: list[records.Row] = [timed_row(run, (1.5, 1.4, 1.6), kind, theoretical_x=x) for run, kind, x in timed]
    _, found = load(tmp_path, dict.fromkeys(runs, 90.0), more, timings=kinds)
    (line,) = timings.table(cells.latency(found)).to_dict("records")
    assert "" not in {line[f"{CPU}, batch {batch}, fp32"] for batch in (1, 32)}


# ---- dose ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> style.Picture:
    """The figure of three doses: groups are learned at the last, and a quarter of its kernels is sparse."""
    monkeypatch.setattr(style, "save", not_rendered)
    doses = {
        run_of("dsp", lam=lam): facts
        for lam, facts in ((0.1, (0.3, math.log(2))), (1.0, (3.0, 0.69)), (10.0, (30.0, 0.2)))
    }
    rows: list[records.Row] = []
    for run, (each, entropy) in doses.items():
        made = {"learned": {"dose": each, "group_entropy_nats": entropy, "sparse_share": 0.25 * (each == 30)}}
        rows.append(row_of(run, 80.0 + each / 10, made=made))
    for row in [*rows, row_of(run_of("dense_control"), 91.0)]:
        records.write(row, tmp_path)
    runs = [*doses, run_of("dense_control")]
    found = frames.load(grid_of(runs), tmp_path, smoke=False)
    settings = {run.key: run.settings for run in runs}
    pictures = figures.draw_all(
        found, cells.table(found), cells.latency(found), pairs.table(found.runs), settings, tmp_path / "out"
    )
    (picture,) = (picture for picture in pictures if picture.name.startswith("dose"))
    return picture


def test_the_dose_figure_says_where_groups_were_learned(scanned: style.Picture) -> None:
    assert scanned.name == "dose_digits_resnet8_dsp_lam"
    assert "No groups were learned at ×1, ×10: the entropy stays at ln G" in scanned.caption
    assert "×1 is a dose of 0.3" in scanned.caption
    assert "Sparse: kernels that learning brings below 1 %" in scanned.caption


def test_dose_and_entropy_are_columns_and_unlearned_groups_a_note(scanned: style.Picture, tmp_path: Path) -> None:
    runs = [run_of("dsp", lam=lam) for lam in (0.1, 10.0)]
    lines = cells.table(frames.load(grid_of(runs), tmp_path, smoke=False))
    assert lines["dose"].tolist() == [0.3, 30]
    assert lines["sparse_share"].tolist() == [0, 0.25]
    assert [words.entropy(line) for line in lines.to_dict("records")] == ["0.693 (ln G)", "0.200"]
    assert ["no groups learned" in note for note in lines["note"]] == [True, False]


def test_the_learning_figure_says_that_nothing_was_learned(tmp_path: Path) -> None:
    for name, last in (("flat", math.log(2)), ("falling", 0.1)):
        log = [{"epoch": 1, "loss": 1.0, "group_entropy_nats": math.log(2), "dose": 0.1}]
        log += [{"epoch": 2, "loss": 0.9, "group_entropy_nats": last, "dose": 0.25}]
        (tmp_path / name).mkdir()
        (tmp_path / name / "history.jsonl").write_text("\n".join(map(json.dumps, log)))
    about: dict[str, Any] = {"data": "d", "model": "m", "method": "x", "line": "x", "groups": 2}
    logs = {name: learning._log(tmp_path / name).assign(**about, run=name) for name in ("flat", "falling")}
    logs["both"] = pd.concat(logs.values(), ignore_index=True)
    titles = {}
    for name, shown in logs.items():
        with style.new_figure(entries=0) as figure:
            learning.draw(figure, shown)
            titles[name] = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles["flat"] == ["dose", "loss"], "what is constant has no panel"
    assert titles["both"][0] == "group entropy (nats): nothing learned in 1 of 2"
    assert "Constant, without a panel: group entropy (nats) at 0.69." in learning._caption(logs["flat"])
    assert "Dotted line" not in learning._caption(logs["flat"])
    assert "Constant" not in learning._caption(logs["both"])
    assert "Nothing was learned in 1 of 1 runs" in learning.unlearned(logs["flat"])
    assert "Dose at the end: 0.25" in learning.unlearned(logs["flat"])
    assert "Nothing was learned" not in learning.unlearned(logs["falling"])


def test_an_axis_does_not_magnify_a_change_that_is_no_course() -> None:
    about = {"data": "d", "model": "m", "method": "x", "line": "x", "groups": 2, "run": "a"}
    logs = pd.DataFrame(
        [
            {**about, "epoch": i, "loss": 2.0 + 0.01 * i, "train_top1_pct": 99 + 0.2 * i, "penalty": 5 - i}
            for i in range(3)
        ]
    )
    with style.new_figure(entries=0) as figure:
        learning.draw(figure, logs)
        spans = {axes.get_title(loc="left"): axes.get_ylim()[1] - axes.get_ylim()[0] for axes in figure.axes}
    assert spans == pytest.approx({"penalty": 2.2, "loss": 0.101, "train top-1 (%)": 1.0})


def test_notes_in_a_terminal_are_numbers_with_their_meanings() -> None:
    notes = pd.Series(["coarse; not timed", "not timed", "no groups learned; coarse; not timed"])
    texts, meanings = words.numbered(notes)
    assert texts.tolist() == ["1", "", "2, 1"]
    assert meanings == ["all: not timed", "1: coarse", "2: no groups learned"]
    assert words.numbered(pd.Series(["", ""]))[1] == []


def test_a_learning_stage_of_no_epochs_has_an_empty_log_and_no_curve(tmp_path: Path) -> None:
    run = run_of("dense_control")
    assert run.learning is not None
    run = dataclasses.replace(run, learning=dataclasses.replace(run.learning, epochs=0))
    assert run.learned is not None
    records.write(row_of(run, 80.0), tmp_path)
    folder = tmp_path / "work" / run.learned.key
    folder.mkdir(parents=True)
    (folder / "done.json").write_text("{}")
    (folder / "history.jsonl").write_text("")
    found = frames.load(grid_of([run]), tmp_path, smoke=False).runs
    assert learning.draw_all([run], found, tmp_path, tmp_path / "out") == []


@pytest.mark.parametrize(("a", "b", "equal"), [(10.3, 10, True), (2, 3, False), (652, 650, True), (100, 102, False)])
def test_training_is_equal_to_a_hundredth_or_to_the_rounding_of_epochs(a: float, b: float, equal: bool) -> None:
    assert (abs(a - b) <= fairness.tolerance(max(a, b))) == equal
