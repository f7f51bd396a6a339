"""The report: numbers by hand, nothing averaged that does not belong together, nothing left out without a word."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from rich.console import Console

from suite import grids, records
from suite.contract import Budget, Pruner
from suite.grids import Grid
from suite.measure import claim
from suite.report import Report, __main__, build, figures, show, words
from suite.report.figures import looks
from suite.schedule import Compute, Schedule
from suite.stages import Base, Pruned, Timed, Timing, identity

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SCHEDULE = Schedule(epochs=2, lr=0.1, weight_decay=0.0)
BF16 = dataclasses.replace(SCHEDULE, compute=Compute(precision="bf16"))
CPU = "cpu: Example, 2 cores"
HOSTILE = "|_$x^2$<b>*`#[a](b)&~\\"
GRID = "example"


@dataclass(frozen=True, kw_only=True)
class Example(Pruner):
    """A method that is only named, never run."""

    granularity = "filter"
    source = "none"
    name: str = "plain"


def run_of(seed: int = 0, budget: float = 0.5, name: str = "plain", *, smoke: bool = False, **base: Any) -> Pruned:
    """A run; its base network has the same seed unless it is given."""
    about = {"data": "digits", "model": "resnet8", "schedule": SCHEDULE, "seed": seed, **base}
    return Pruned(
        base=Base(**about),
        settings=Example(name=name),
        learning=None,
        budget=Budget(share=budget),
        finetune=SCHEDULE,
        seed=seed,
        smoke=smoke,
    )


def _about(stage: Pruned | Timed, provenance: dict[str, Any]) -> dict[str, Any]:
    run = stage if isinstance(stage, Pruned) else stage.pruned
    known = {"commit": COMMIT, "dirty": False, "device": CPU, "data_sha256": "d" * 64, "threads": 2, "tf32": False}
    return {
        "key": stage.key,
        "label": stage.label,
        "status": "done",
        "stage": identity(stage),
        "data": run.base.data,
        "model": run.base.model,
        "method": run.method,
        "settings": run.described,
        "granularity": run.settings.granularity,
        "groups": run.settings.groups,
        "budget": run.budget.share,
        "budget_scope": run.budget.scope,
        "seed": run.seed,
        "split": run.base.split,
        "smoke": run.smoke,
        "provenance": {**known, **provenance},
    }


def pruned_row(
    run: Pruned, top1: float, base: float = 90.0, *, made: dict[str, Any] | None = None, **changes: Any
) -> records.PrunedRow:
    """The row of a finished run; `made` goes over its provenance."""
    numbers = {
        "base_top1_pct": base,
        "pruned_top1_pct": top1,
        "drop_pp": base - top1,
        "dense_macs": 1000,
        "macs": 480,
        "macs_cut_pct": 52.0,
        "prunable_macs_cut_pct": 54.0,
        "dense_params": 100,
        "params": 60,
        "params_cut_pct": 40.0,
        "coarse": False,
    }
    return records.PrunedRow(**{**_about(run, made or {}), **numbers, **changes})


def timed_row(
    run: Pruned,
    speedup: tuple[float, float, float],
    timing: Timing | None = None,
    *,
    made: dict[str, Any] | None = None,
    **changes: Any,
) -> records.TimedRow:
    """The latency row of a run: median, lower and upper end."""
    stage = Timed(pruned=run, timing=timing or Timing())
    asked = {name: getattr(stage.timing, name) for name in ("batch", "precision", "layout", "protocol")}
    numbers: dict[str, Any] = dict(zip(("speedup_x", "speedup_low_x", "speedup_high_x"), speedup, strict=True))
    null = {"null_x": 1.0, "null_low_x": 0.99, "null_high_x": 1.01}
    more = {"leg": "eager", "theoretical_x": 1000 / 480, "deployed": "groups", "dense_ms": 2.0, "packed_ms": 1.0}
    about = {**_about(stage, made or {}), "pruned_key": run.key, "device": CPU}
    return records.TimedRow(**{**about, **asked, **numbers, **null, **more, **changes})


def failed_row(run: Pruned, status: str, reason: str) -> records.PrunedRow:
    """The row of a run that gave nothing."""
    return records.PrunedRow(**{**_about(run, {}), "status": status, "reason": reason})


Reporter = Callable[..., Report]


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reporter:
    """Writes rows and reports a grid of these runs."""

    def make(
        runs: Iterable[Pruned],
        rows: Iterable[records.Row],
        timings: tuple[Timing, ...] = (Timing(),),
        *,
        smoke: bool = False,
        draw: bool = False,
    ) -> Report:
        grid = Grid(title="Example", about="An example.", runs=lambda: list(runs), timings=timings)
        monkeypatch.setattr(grids, "load", lambda name: grid)
        if not draw:  # most tests need no figures, which take most of the time
            monkeypatch.setattr(figures, "draw_all", lambda *_: [])
        for row in rows:
            records.write(row, tmp_path)
        return build(GRID, tmp_path, smoke)

    return make


def csv(made: Report, name: str = "table.csv") -> pd.DataFrame:
    """A written table, as text where it is text."""
    return pd.read_csv(file(made, name), dtype={"rows": "str", "commit": "str"})


def file(made: Report, name: str) -> Path:
    return next(path for path in made.paths if path.name == name)


def markdown(made: Report) -> str:
    return file(made, "table.md").read_text()


def cells_of(text: str) -> list[dict[str, str]]:
    """The first table of a Markdown text: a dict for every line. A table that is not rectangular is refused."""
    lines = text[text.index("\n|") + 1 :].split("\n\n", 1)[0].splitlines()
    split = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [dict(zip(split[0], cells, strict=True)) for cells in split[2:]]


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_mean_sd_and_n_are_those_worked_out_by_hand(report: Reporter) -> None:
    runs = [run_of(seed) for seed in range(3)]
    made = report(
        runs, [pruned_row(r, top1, base) for r, top1, base in zip(runs, (80, 82, 87), (90, 91, 92), strict=True)]
    )
    line = csv(made).iloc[0]
    assert (line["n"], line["runs"], line["missing"], line["base_n"]) == (3, 3, 0, 3)
    assert line["top1_mean_pct"] == 83
    assert line["top1_sd_pp"] == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert line["top1_t95_pp"] == pytest.approx(4.302652730 * math.sqrt(13) / math.sqrt(3))
    assert (line["base_top1_mean_pct"], line["base_top1_sd_pp"]) == (91, 1)
    assert (line["drop_mean_pp"], line["drop_sd_pp"]) == (8, pytest.approx(math.sqrt((4 + 1 + 9) / 2)))
    assert (line["macs_cut_pct"], line["prunable_macs_cut_pct"], line["params_cut_pct"]) == (52, 54, 40)
    assert line["rows"].split() == [run.key for run in runs]
    shown = cells_of(markdown(made))[0]
    assert shown["pruned top-1 %"] == "83.00 ± 3.61 (3)"
    assert shown["base top-1 %"] == "91.00 ± 1.00"
    assert shown["drop pp"] == "8.00 ± 2.65"


def test_one_run_has_no_spread(report: Reporter) -> None:
    run = run_of()
    made = report([run], [pruned_row(run, 80)])
    assert pd.isna(csv(made)["top1_sd_pp"][0])
    assert cells_of(markdown(made))[0]["pruned top-1 %"] == "80.00 (1)"


def test_one_public_base_network_has_no_spread_however_many_runs_start_from_it(report: Reporter) -> None:
    runs = [
        dataclasses.replace(
            run_of(), base=Base(data="digits", model="resnet8", schedule=None, weights="w", seed=0), seed=seed
        )
        for seed in range(3)
    ]
    line = csv(report(runs, [pruned_row(run, 80 + run.seed) for run in runs])).iloc[0]
    assert (line["n"], line["base_n"]) == (3, 1)
    assert pd.isna(line["base_top1_sd_pp"])


@pytest.mark.parametrize(
    ("intervals", "nulls", "expected"),
    [
        ([(1.2, 1.1, 1.3), (1.4, 1.3, 1.5)], [1.01, 1.01], (2, 1.3, 1.1, 1.5, "faster")),
        ([(1.2, 1.1, 1.3), (1.0, 0.9, 1.1)], [1.01, 1.01], (2, 1.1, 0.9, 1.3, "no difference")),
        ([(0.8, 0.7, 0.9)], [1.01], (1, 0.8, 0.7, 0.9, "slower")),
        ([(1.2, 1.1, 1.3), (9.0, 8.0, 9.5)], [1.01, 0.995], (1, 1.2, 1.1, 1.3, "faster")),
        ([(1.2, 1.1, 1.3)], [0.995], (0, None, None, None, "not trusted")),
    ],
)
def test_speedups_combine_to_the_range_that_covers_every_run(
    report: Reporter, intervals: list[tuple[float, float, float]], nulls: list[float], expected: tuple[Any, ...]
) -> None:
    runs = [run_of(seed) for seed in range(len(intervals))]
    rows: list[records.Row] = [pruned_row(run, 80) for run in runs]
    rows += [timed_row(r, x, null_high_x=null) for r, x, null in zip(runs, intervals, nulls, strict=True)]
    made = report(runs, rows)
    line = csv(made).iloc[0]
    found = [line[name] for name in ("speedup_n", "speedup_x", "speedup_low_x", "speedup_high_x", "verdict")]
    assert [None if pd.isna(value) else value for value in found] == pytest.approx(list(expected))
    assert line["speedup_untrusted"] == sum(null < 1 for null in nulls)
    shown = cells_of(markdown(made))[0]
    assert (expected[4] in shown["speed-up x"]) == (expected[4] in ("no difference", "not trusted"))
    assert ("not trusted" in shown["note"]) == any(null < 1 for null in nulls)


def test_every_timing_is_in_latency_csv_and_the_first_in_the_table(report: Reporter) -> None:
    run, timings = run_of(), (Timing(batch=1), Timing(batch=128))
    rows = [timed_row(run, (x, x - 0.1, x + 0.1), timing) for x, timing in zip((1.5, 2.5), timings, strict=True)]
    made = report([run], [pruned_row(run, 80), *rows], timings)
    assert csv(made)[["batch", "speedup_x"]].values.tolist() == [[1, 1.5]]
    assert csv(made, "latency.csv")[["batch", "speedup_x"]].values.tolist() == [[1, 1.5], [128, 2.5]]


def test_deployed_tells_runs_that_fell_back_to_dense(report: Reporter) -> None:
    runs = [run_of(0), run_of(1)]
    rows = [timed_row(runs[0], (0.8, 0.7, 0.9), deployed="dense"), timed_row(runs[1], (1.2, 1.1, 1.3))]
    made = report(runs, [*(pruned_row(run, 80) for run in runs), *rows])
    assert csv(made)["deployed"][0] == "dense x1, groups x1"


# ---- what is never averaged ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "other", "heading", "shown"),
    [
        ("commit", "f" * 40, "commit", ["01234567", "ffffffff"]),
        ("dirty", True, "commit", ["01234567", "01234567+dirty"]),
        ("data_sha256", "e" * 64, "data", ["dddddddd", "eeeeeeee"]),
        ("tf32", True, "TF32", ["no", "yes"]),
    ],
)
def test_rows_of_different_conditions_are_shown_apart(
    report: Reporter, name: str, other: object, heading: str, shown: list[str]
) -> None:
    runs = [run_of(seed) for seed in range(3)]
    made = report(runs, [pruned_row(runs[0], 80), pruned_row(runs[1], 82), pruned_row(runs[2], 50, made={name: other})])
    assert csv(made)[["n", "top1_mean_pct"]].values.tolist() == [[2, 81], [1, 50]]
    table = cells_of(markdown(made))
    assert [line[heading] for line in table] == shown
    assert ("dirty" in table[1]["note"]) == (name == "dirty")
    assert (made.done, made.missing, made.failed) == (3, 0, 0)


def test_blocks_of_different_devices_are_pooled(report: Reporter) -> None:
    runs = [run_of(seed, name=name) for name in ("a", "b") for seed in range(3)]
    made = [{"base_sha256": f"{run.seed}", "device": "NVIDIA H100" if run.seed == 2 else CPU} for run in runs]
    written = report(runs, [pruned_row(run, 80 + run.seed, made=on) for run, on in zip(runs, made, strict=True)])
    assert csv(written)[["n", "top1_mean_pct"]].values.tolist() == [[3, 81], [3, 81]]
    assert csv(written, "comparisons.csv")["n"].tolist() == [3]
    assert f"trained on one device a block: NVIDIA H100 / {CPU}" in markdown(written)


def test_a_run_on_another_device_than_its_block_is_shown_apart(report: Reporter) -> None:
    runs = [run_of(seed, name=name) for name in ("a", "b", "c") for seed in range(3)]
    on = ["NVIDIA A100", CPU, "NVIDIA H100", *[CPU, CPU, "NVIDIA H100"] * 2]
    rows = [
        pruned_row(run, 80 + run.seed, made={"base_sha256": f"{run.seed}", "device": device})
        for run, device in zip(runs, on, strict=True)
    ]
    written = report(runs, rows)
    pooled = f"one device a block: NVIDIA H100 / {CPU}"
    assert csv(written)[["settings", "n", "device"]].values.tolist() == [
        ["test_report(name=a)", 1, "NVIDIA A100"],
        ["test_report(name=a)", 2, pooled],
        ["test_report(name=b)", 3, pooled],
        ["test_report(name=c)", 3, pooled],
    ]
    assert csv(written, "comparisons.csv")["n"].tolist() == [2, 2, 3]


def test_an_emulated_precision_is_another_device(report: Reporter) -> None:
    runs = [dataclasses.replace(run_of(0, name=name), finetune=BF16) for name in ("a", "b")]
    emulated = {"emulated": ["bf16", "fp16"]}
    rows = [pruned_row(runs[0], 80), pruned_row(runs[1], 81, made=emulated)]
    assert csv(report(runs, rows))["device"].tolist() == [CPU, f"{CPU}, bf16 emulated"]
    assert csv(report([run_of(0)], [pruned_row(run_of(0), 80, made=emulated)]))["device"].tolist() == [CPU]


def test_conditions_that_are_the_same_everywhere_take_no_column(report: Reporter) -> None:
    run = run_of()
    text = markdown(report([run], [pruned_row(run, 80), timed_row(run, (1.2, 1.1, 1.3))]))
    assert not {"commit", "trained on", "timed on", "data", "threads"} & cells_of(text)[0].keys()
    assert f"trained on {CPU}, commit 01234567, data dddddddd" in text
    assert f"measured on {CPU}, batch 32, fp32, contiguous, eager, full protocol, 2 threads, commit 01234567" in text


@pytest.mark.parametrize(
    "changes", [{"device": "NVIDIA H100"}, {"made": {"threads": 4}}, {"made": {"commit": "f" * 40}}]
)
def test_latencies_of_different_conditions_are_shown_apart(report: Reporter, changes: dict[str, Any]) -> None:
    runs = [run_of(0), run_of(1)]
    rows = [timed_row(runs[0], (1.2, 1.1, 1.3)), timed_row(runs[1], (3.0, 2.9, 3.1), **changes)]
    made = report(runs, [*(pruned_row(run, 80) for run in runs), *rows])
    assert csv(made)[["n", "speedup_n", "speedup_x"]].values.tolist() == [[2, 1, 1.2], [2, 1, 3.0]]


def test_rows_of_the_earlier_reference_are_marked_and_never_averaged_with_new_ones(report: Reporter) -> None:
    runs = [run_of(seed) for seed in range(3)]
    old, *new = (timed_row(run, (x, x - 0.1, x + 0.1)) for run, x in zip(runs, (3.0, 1.2, 1.4), strict=True))
    new = [dataclasses.replace(row, reference=("onnxruntime", "torch")) for row in new]
    made = report(runs, [*(pruned_row(run, 80) for run in runs), old, *new])
    found = csv(made, "latency.csv")[["reference", "speedup_n", "speedup_x"]].values.tolist()
    assert found == [["tuned only (earlier rule)", 1, 3.0], ["onnxruntime, torch", 2, 1.3]]
    assert [line["dense runtimes"] for line in cells_of(markdown(made))] == [line[0] for line in found]
    page = (made.paths[0]).read_text()
    assert "<dd>3 of 3</dd><dt>runs done" in page, "two lines of the table are one accuracy"
    assert all(f"] dense network in {line[0]}" in page for line in found)


def test_speedups_of_the_quick_protocol_are_marked_as_not_comparable(report: Reporter) -> None:
    run, timings = run_of(), (Timing(protocol="quick"), Timing(protocol="full"))
    rows = [timed_row(run, (1.5, 1.4, 1.6), timing, reference=("torch",)) for timing in timings]
    for count in (1, 2):
        made = report([run], [pruned_row(run, 80), *rows], timings[-count:])
        assert (claim.UNTUNED in markdown(made)) == (count == 2)
    assert csv(made, "latency.csv")["reference"].tolist() == ["torch, untuned", "torch"]


def test_runs_with_other_schedules_are_not_the_same_cell(report: Reporter) -> None:
    longer = dataclasses.replace(run_of(1), finetune=dataclasses.replace(SCHEDULE, epochs=9))
    made = report([run_of(0), longer], [pruned_row(run_of(0), 80), pruned_row(longer, 90)])
    assert csv(made)["top1_mean_pct"].tolist() == [80, 90]
    assert csv(made)["settings"].tolist() == ["test_report [2 epochs]", "test_report [9 epochs]"]
    faster = dataclasses.replace(run_of(1), finetune=dataclasses.replace(SCHEDULE, lr=0.5))
    made = report([run_of(0), faster], [pruned_row(run_of(0), 80), pruned_row(faster, 90)])
    assert csv(made)["settings"].tolist() == ["test_report [schedule 1]", "test_report [schedule 2]"]


@pytest.mark.parametrize("smoke", [False, True])
def test_smoke_rows_are_refused_among_real_ones(report: Reporter, smoke: bool) -> None:
    run = run_of(smoke=smoke)
    wrong = dataclasses.replace(pruned_row(run, 80), smoke=not smoke)
    expected = grids.runs_of(Grid(title="", about="", runs=lambda: [run]), smoke=smoke)[0]
    with pytest.raises(ValueError, match="never mixed"):
        report([run], [dataclasses.replace(wrong, key=expected.key)], smoke=smoke)


# ---- what is not there -----------------------------------------------------------------------------------------------


def test_a_missing_cell_is_empty_with_its_reason_and_never_zero(report: Reporter) -> None:
    there, missing, half = run_of(0, 0.3), run_of(0, 0.5), run_of(1, 0.3)
    made = report([there, missing, half], [pruned_row(there, 80)])
    table = cells_of(markdown(made))
    assert table[1]["note"] == "not run"
    numbers = [
        value for name, value in table[1].items() if name not in ("method", "granularity", "groups", "budget", "note")
    ]
    assert set(numbers) == {""}
    assert table[0]["note"] == "not run (1 of 2); not timed"
    frame = csv(made)
    measures = frame.columns[frame.columns.str.contains("_pct|_pp|_x$|^macs$|^params$")]
    assert frame[measures].iloc[1].isna().all()
    assert (made.done, made.missing, made.rows) == (1, 2, 1)


def test_failures_are_listed_with_their_reasons(report: Reporter) -> None:
    runs = [run_of(seed) for seed in range(4)]
    rows = [
        pruned_row(runs[0], 80),
        failed_row(runs[1], "diverged", "the loss is nan | in epoch 3"),
        failed_row(runs[2], "failed", "no room on the disk"),
    ]
    made = report(runs, rows)
    text = markdown(made)
    assert "- diverged (1): the loss is nan \\| in epoch 3 — digits/resnet8 test_report 50.00% seed 1" in text
    assert "- failed (1): no room on the disk — digits/resnet8 test_report 50.00% seed 2" in text
    assert cells_of(text)[0]["note"].startswith("not run (1 of 4); failed (1 of 4); diverged (1 of 4)")
    assert csv(made)["n"][0] == 1
    assert (made.done, made.failed, made.missing) == (1, 2, 1)


def test_a_failed_timing_is_listed_and_leaves_its_cell_empty(report: Reporter) -> None:
    run = run_of()
    nothing: dict[str, Any] = {"status": "failed", "reason": "no CUDA device", "speedup_x": None, "null_low_x": None}
    text = markdown(report([run], [pruned_row(run, 80), timed_row(run, (1, 1, 1), **nothing)]))
    assert cells_of(text)[0]["speed-up x"] == ""
    assert cells_of(text)[0]["note"] == "timing failed"
    assert "- timing failed (1): no CUDA device" in text


def test_a_timing_without_its_run_is_left_out_and_said(report: Reporter) -> None:
    made = report([run_of()], [timed_row(run_of(), (1.2, 1.1, 1.3))])
    assert csv(made, "latency.csv").empty
    assert any("1 latency rows are left out" in remark for remark in made.remarks)


def test_no_rows_at_all(report: Reporter) -> None:
    made = report([run_of(0), run_of(1)], [])
    assert (made.rows, made.done, made.missing) == (0, 0, 2)
    names = [
        "index.html",
        "runs.html",
        "table.csv",
        "latency.csv",
        "comparisons.csv",
        "table.md",
        "table_digits_resnet8.tex",
    ]
    assert [path.name for path in made.paths] == names
    assert made.remarks[0].startswith("no row of example")
    assert "No run is done." in markdown(made)


def test_a_table_of_earlier_rows_is_kept_without_a_row_of_the_grid(report: Reporter) -> None:
    earlier = file(report([run_of(0)], [pruned_row(run_of(0), 80)]), "table.md")
    text = earlier.read_text()
    made = report([run_of(1)], [])
    shown = io.StringIO()
    show(made, Console(file=shown))
    assert earlier.read_text() == text
    assert (made.paths, made.missing) == ((), 1)
    assert shown.getvalue().splitlines() == [
        f"no row of example is in {earlier.parents[1] / 'rows'}; the table in {earlier.parent} was made from earlier rows and "
        "is kept"
    ]


def test_a_table_without_results_is_written_again(report: Reporter) -> None:
    report([run_of(0)], [])
    made = report([run_of(0), run_of(1)], [])
    assert "2 runs: 0 done, 2 not run." in markdown(made)


def test_only_failed_rows(report: Reporter) -> None:
    made = report([run_of()], [failed_row(run_of(), "diverged", "nan")])
    assert (made.done, made.failed) == (0, 1)
    assert cells_of(markdown(made))[0]["note"] == "diverged"


@pytest.mark.parametrize("value", [math.nan, math.inf, "many"])
def test_a_row_whose_number_is_none_is_set_aside(report: Reporter, tmp_path: Path, value: object) -> None:
    run = run_of()
    path = tmp_path / "rows" / f"{run.key}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**records.to_dict(pruned_row(run, 80)), "pruned_top1_pct": value}))
    made = report([run], [])
    assert (made.done, made.failed, made.missing) == (0, 0, 1)
    assert path.with_suffix(".json.damaged").exists()


def test_a_done_row_without_its_numbers_counts_as_failed(report: Reporter, tmp_path: Path) -> None:
    run = run_of()
    path = tmp_path / "rows" / f"{run.key}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**records.to_dict(pruned_row(run, 80)), "pruned_top1_pct": None}))
    made = report([run], [])
    assert (made.done, made.failed) == (0, 1)
    assert "its row has status done but lacks a finite" in markdown(made)


def test_a_damaged_row_is_set_aside_and_the_others_count(report: Reporter, tmp_path: Path) -> None:
    runs = [run_of(0), run_of(1)]
    records.write(pruned_row(runs[0], 80), tmp_path)
    damaged = tmp_path / "rows" / f"{runs[1].key}.json"
    damaged.write_text('{"schema": 1, "ki')
    made = report(runs, [])
    assert (made.done, made.missing) == (1, 1)
    assert damaged.with_suffix(".json.damaged").exists()


def test_a_row_of_a_later_version_is_left_alone_and_said(report: Reporter, tmp_path: Path) -> None:
    run = run_of()
    path = tmp_path / "rows" / f"{run.key}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**records.to_dict(pruned_row(run, 80)), "schema": records.SCHEMA + 1}))
    made = report([run], [])
    assert (made.done, made.missing) == (0, 1)
    assert path.exists()
    assert f"1 row files cannot be read and count as not run: {path.name}" in made.remarks


@pytest.mark.parametrize(
    ("keep", "note"),
    [("best_test", "best epoch on test"), ("best_validation", "best epoch on validation"), ("last", "")],
)
def test_which_epoch_was_kept_is_said(report: Reporter, keep: str, note: str) -> None:
    run = run_of()
    made = report([run], [pruned_row(run, 80, selection=keep)], ())
    assert cells_of(markdown(made))[0]["note"].replace("not timed", "").strip("; ") == note
    assert csv(made)["selection"][0] == keep


# ---- names, files, figures -------------------------------------------------------------------------------------------


def test_a_hostile_name_stays_in_its_cell(report: Reporter) -> None:
    runs = [run_of(0, name=HOSTILE), run_of(0, name="_b")]
    made = report(runs, [pruned_row(run, 80) for run in runs])
    shown = cells_of(markdown(made))[0]["method"]
    assert re.sub(r"\\(.)", r"\1", shown).replace("&amp;", "&") == f"test_report(name={HOSTILE})"
    assert not re.search(r"(?<!\\)[<$*`\[]", shown)
    assert csv(made)["settings"][0] == f"test_report(name={HOSTILE})"


def test_an_underscore_inside_a_word_is_not_escaped() -> None:
    assert words.markdown("l1_filter _x_") == "l1_filter \\_x\\_"


def test_figures_are_drawn_with_embedded_fonts_and_the_methods_colour(report: Reporter) -> None:
    runs = [run_of(seed, budget, name) for seed in (0, 1) for budget in (0.3, 0.5) for name in ("a", "$b_")]
    rows: list[records.Row] = [
        pruned_row(r, 80 - 9 * r.budget.share + r.seed, macs_cut_pct=100 * r.budget.share) for r in runs
    ]
    rows += [timed_row(run, (1 + run.budget.share, 1.1, 1.9)) for run in runs]
    before = dict(matplotlib.rcParams)
    made = report(runs, rows, draw=True)
    assert dict(matplotlib.rcParams) == before
    for name in ("pareto_macs_digits_resnet8", "pareto_speedup_digits_resnet8"):
        pixels = imread(file(made, f"{name}.png"))[..., :3]
        assert min(pixels.shape[:2]) > 600
        colour = to_rgb(looks.Look("test_report", 0).style()["color"])
        assert (np.abs(pixels - np.array(colour)).max(-1) < 0.02).sum() > 100
        pdf = file(made, f"{name}.pdf").read_bytes()
        assert b"/Type42" in pdf or b"/CIDFontType2" in pdf
        assert b"/Type3" not in pdf
        assert f"]({name}.png)" in markdown(made)


def test_a_figure_that_has_no_point_any_more_is_deleted(report: Reporter) -> None:
    run = run_of()
    first = report([run], [pruned_row(run, 80)], draw=True)
    assert file(first, "intervals_digits_resnet8.png").exists()
    report([run], [failed_row(run, "failed", "redone and failed")], draw=True)
    assert not file(first, "intervals_digits_resnet8.png").exists()


def test_figures_of_work_stay_in_the_table_where_there_is_no_work(report: Reporter) -> None:
    run = run_of()
    folder = file(report([run], [pruned_row(run, 80)]), "table.md").parent
    for name in ("learning_digits_resnet8_dsp", "structure_digits_resnet8", "structure_digits_resnet80"):
        (folder / f"{name}.png").touch()
    images = re.findall(r"\]\((.*)\.png\)", markdown(report([run], [pruned_row(run, 80)])))
    assert images[-2:] == ["learning_digits_resnet8_dsp", "structure_digits_resnet8"]
    (folder.parent / "work").mkdir()
    assert "_digits_resnet8" not in markdown(report([run], [pruned_row(run, 80)]))


def test_the_same_rows_give_the_same_bytes(report: Reporter) -> None:
    runs = [run_of(seed, budget) for seed in (1, 0) for budget in (0.5, 0.3)]
    rows: list[records.Row] = [pruned_row(run, 80 + run.seed) for run in runs]
    rows += [timed_row(run, (1.2, 1.1, 1.3)) for run in runs]
    first = {path: path.read_bytes() for path in report(runs, rows, draw=True).paths}
    assert len(first) == 15
    assert {path: path.read_bytes() for path in report(runs, [], draw=True).paths} == first


def test_show_prints_the_cells_and_the_page_to_open(report: Reporter) -> None:
    run = run_of()
    made = report([run], [pruned_row(run, 80), timed_row(run, (1.2, 1.1, 1.3))])
    out = io.StringIO()
    show(made, Console(file=out, width=80))
    assert "80.00 (1)" in out.getvalue()
    assert "1.20 x" in out.getvalue()
    assert out.getvalue().splitlines()[-1].startswith(f"open {made.paths[0]} (")
    assert made.paths[0].name == "index.html"


def test_bad_arguments_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for arguments in (["--grid", "nope"], ["--grid", "quickstart", "--results", str(tmp_path / "nowhere")]):
        monkeypatch.setattr("sys.argv", ["suite.report", *arguments])
        assert __main__.main() == 2
        error = capsys.readouterr().err
        assert error.startswith("suite.report: ")
        assert error.count("\n") == 1


def test_the_quickstart_grid_is_reported_before_it_has_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "smoke").mkdir()
    monkeypatch.setattr("sys.argv", ["suite.report", "--grid", "quickstart", "--results", str(tmp_path), "--smoke"])
    assert __main__.main() == 0
    assert "no row of quickstart" in capsys.readouterr().out
    assert (tmp_path / "smoke" / "quickstart" / "table.md").exists()
