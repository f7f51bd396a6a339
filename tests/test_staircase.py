"""The staircase of one layer: what is written, and what rounding up costs, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from tiny_grid import call

from suite.measure import staircase
from suite.report import staircase as drawing


def steps(width: int, channels: int = 16) -> pd.DataFrame:
    """Time in steps of `width` channels."""
    kept = range(1, channels + 1)
    about = {"layout": "contiguous", "precision": "fp32"}
    return pd.DataFrame([{**about, "channels": n, "ms": float(-(-n // width))} for n in kept])


def test_rounding_up_to_the_width_of_a_step_is_free() -> None:
    costs = staircase.rounding(steps(8)).set_index("round_to")
    assert list(costs.index) == [2, 4, 8, 16]
    assert list(costs["time_x"]) == [1, 1, 1, pytest.approx(16 * 2 / (8 * 1 + 8 * 2))]
    assert costs.loc[2, "macs_x"] == pytest.approx(2 * sum(range(2, 17, 2)) / sum(range(1, 17)))


def test_without_steps_rounding_costs_what_the_macs_say() -> None:
    costs = staircase.rounding(steps(1))
    assert list(costs["time_x"]) == pytest.approx(list(costs["macs_x"]))


def test_the_commands_write_numbers_conditions_and_a_plot(tmp_path: Path) -> None:
    sizes = ("--filters", 4, "--channels", 8, "--size", 4, "--batch", 1, "--step", 2, "--rounds", 1, "--threads", 1)
    assert call(staircase.main, *sizes, "--results", tmp_path) == 0
    name = "cpu_4x8x3x3_4px_stride1_batch1"
    found = pd.read_csv(tmp_path / "staircase" / f"{name}.csv")
    assert sorted(found["channels"].unique()) == [1, 2, 4, 6, 8]
    assert sorted(found["layout"].unique()) == ["channels_last", "contiguous"]
    assert (found["ms"] > 0).all()
    about = json.loads((tmp_path / "staircase" / f"{name}.json").read_text())
    assert about["provenance"]["threads"] == 1
    assert about["conditions"]["other_cores"] >= 0
    assert call(drawing.main, "--results", tmp_path) == 0
    assert (tmp_path / "staircase" / f"{name}.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--channels", 0), "--channels 0: it takes 1 or more"),
        (("--step", -1), "--step -1: it takes 1 or more"),
        (("--threads", -1), "--threads -1: it takes 1 or more; leave it out"),
        (("--threads", 0), "--threads 0: it takes 1 or more; leave it out"),
        (("--device", "cuda"), "no CUDA device that torch can use"),
    ],
)
def test_bad_arguments_get_one_line(
    arguments: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert call(staircase.main, *arguments) == 2
    assert message in capsys.readouterr().err
