"""The examples in the README work as they stand."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def example(name: str) -> str:
    """The code block that follows the marker `<!-- tested: name -->`."""
    found = re.search(rf"<!-- tested: {name} -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found, f"the README has no example marked {name}"
    return found[1]


def run(folder: Path, *command: str) -> str:
    """What the command printed; it must succeed."""
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the packages and tests, to which files may be added."""
    for name in ("dsp", "baselines", "suite", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_method_is_registered_by_its_presence_and_passes_the_common_checks(copy: Path) -> None:
    (copy / "baselines" / "largest_weight.py").write_text(example("method"))
    assert "largest_weight" in run(copy, "-m", "suite.methods")
    assert "passed" in run(
        copy, "-m", "pytest", "-q", "-k", "largest_weight", "tests/test_methods.py", "-p", "no:cacheprovider"
    )


def test_template_is_a_method_once_it_is_copied(copy: Path) -> None:
    shutil.copy(copy / "baselines" / "_template.py", copy / "baselines" / "copied.py")
    assert "copied" in run(copy, "-m", "suite.methods")


def test_grid_of_ones_own_runs(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(example("grid"))
    printed = run(tmp_path, "-m", "suite.launch", "--grid", "mine.py", "--smoke", "--results", "out")
    assert "0 failed" not in printed
    table = (tmp_path / "out" / "smoke" / "mine" / "table.md").read_text()
    assert "l1_filter" in table
    assert "groups=3" in table


def test_files_that_the_readme_names_are_there() -> None:
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"`((?:suite|baselines|dsp|tests)/[\w./]+?\.py)`", text):
        if "NAME" not in path:
            assert (ROOT / path).is_file(), path
    for path in re.findall(r"\]\((results/[\w./-]+)\)", text):
        assert (ROOT / path).is_file(), path
