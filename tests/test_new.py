"""A method written from a template runs in a smoke grid, outside the checkout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_grid import call

from suite import methods, new, registry
from suite.launch import __main__ as launch

GRID = """
from suite.grids import Grid, cross
from suite.schedule import Schedule
from suite.stages import Base

SHORT = Schedule(epochs=1, lr=0.05, weight_decay=5e-4)
BASE = Base(data="digits", model="vgg6", schedule=SHORT, seed=0)
GRID = Grid(title="Mine", about="Both templates.", timings=(),
            runs=lambda: [run for method in ("large_weights", "taught")
                          for run in cross(bases=[BASE], method=method, budgets=[0.5], learning=SHORT, finetune=SHORT)])
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(registry.VARIABLE, "")
    before = set(sys.modules)
    registry.set_folders([])
    yield tmp_path / "own"
    registry.set_folders([])
    for name in [name for name in sys.modules if name not in before and name.startswith(registry.OUTSIDE)]:
        del sys.modules[name]


def test_both_templates_run_in_a_smoke_grid(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(new.main, "method", "large_weights", "--plugins", folder) == 0
    assert call(new.main, "method", "taught", "--learning", "--plugins", folder) == 0
    shown = capsys.readouterr().out
    assert f"wrote {folder / 'taught.py'}" in shown
    (folder / "both.py").write_text(GRID)
    arguments = ["--plugins", folder, "--grid", "both", "--smoke", "--cluster", "debug", "--threads", 1]
    assert call(launch.main, *arguments, "--results", tmp_path / "results") == 0
    rows = [json.loads(path.read_text()) for path in (tmp_path / "results" / "smoke" / "rows").glob("pruned-*")]
    assert {row["method"] for row in rows} == {"large_weights", "taught"}
    assert all(row["macs_cut_pct"] >= 50 for row in rows)
    for name, kind in (("large_weights", "LargeWeights"), ("taught", "Taught")):
        text = (folder / f"{name}.py").read_text()
        assert f"class {kind}(" in text
        assert "emplate" not in text
        assert methods.get(name).learns == (name == "taught")


@pytest.mark.parametrize(
    ("name", "message"),
    [("l1_filter", "there is a method l1_filter already"), ("My-Own", "'My-Own' is no name of a method")],
)
def test_names_that_do_not_fit_are_refused(
    folder: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(new.main, "method", name, "--plugins", folder) == 2
    assert capsys.readouterr().err.startswith(f"suite.new: {message}")
    assert not folder.exists()


@pytest.mark.parametrize(("name", "learns"), [("none", False), ("importance", True)])
def test_names_that_break_the_template_are_refused(tmp_path: Path, name: str, learns: bool) -> None:
    with pytest.raises(ValueError, match="a name that the template uses"):
        new.method(name, tmp_path, learns=learns)
    assert not list(tmp_path.iterdir())
