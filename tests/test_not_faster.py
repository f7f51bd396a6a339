"""The lie detector: networks with fewer MACs that are not faster where they were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_report import pruned_row, run_of, timed_row

from suite import records
from suite.grids import Grid
from suite.report import columns, content, frames
from suite.report.columns import further_columns
from suite.report.statistics import not_faster
from suite.report.tables import documents
from suite.stages import Timing

NULL_FAILS = {"null_x": 1.1, "null_low_x": 1.05, "null_high_x": 1.15}


@pytest.mark.parametrize(
    ("speedup", "changes", "verdict"),
    [
        ((1.3, 1.2, 1.4), {}, None),
        ((1.3, 1.02, 1.4), {}, None),
        ((1.1, 1.0, 1.2), {}, "no difference"),
        ((1.1, 0.9, 1.2), {}, "no difference"),
        ((0.8, 0.7, 0.9), {}, "slower"),
        ((0.8, 0.7, 0.9), {"theoretical_x": 1.0}, None),
        ((1.1, 0.9, 1.2), NULL_FAILS, "not trusted"),
        ((1.3, 1.2, 1.4), NULL_FAILS, "not trusted"),
        ((1.3, 1.2, 1.4), {"flags": ("other processes used 1.0 of 2 cores",)}, "not trusted"),
    ],
)
def test_what_is_listed(
    speedup: tuple[float, float, float], changes: dict[str, Any], verdict: str | None, tmp_path: Path
) -> None:
    run = run_of(0)
    grid = Grid(title="Example", about="", runs=lambda: [run], timings=(Timing(),))
    flagged: dict[str, Any] = {"flags": ("GPU throttled: power cap",), "losses": {"text": "60% copies"}, **changes}
    for row in (pruned_row(run, 80.0), timed_row(run, speedup, **flagged)):
        records.write(row, tmp_path)
    said = content.collect("example", grid, frames.load(grid, tmp_path, smoke=False), smoke=False)
    found, texts = said.not_faster, documents.texts(said, [])
    if verdict is None:
        assert found.empty
        assert not_faster.TITLE not in texts["table.md"]
        assert said.not_faster_counts.startswith("0 of ")
        return
    (line,) = found.to_dict("records")
    assert (line["verdict"], line["seed"]) == (verdict, 0)
    printed = columns.text(found, further_columns.NOT_FASTER).frame["speed-up x"].iloc[0]
    assert printed == ("" if verdict == "not trusted" else "{:.2f} [{:.2f}, {:.2f}]".format(*speedup))
    assert said.not_faster_counts == f"1 of 1 measurements of networks with fewer MACs: 1 {verdict}"
    assert not_faster.TITLE in texts["table.md"]
    assert flagged["flags"][0] in texts["table.md"]
    assert flagged["flags"][0] in texts["latency.csv"]
    assert texts["not_faster.csv"].count("\n") == 2
    assert all("60% copies" in texts[name] for name in ("not_faster.csv", "table.md"))
