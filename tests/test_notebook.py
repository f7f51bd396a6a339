"""The notebook runs, cell by cell, in a process without the checkout as working folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import suite

NOTEBOOK = Path(suite.__file__).parent / "examples" / "prune_your_own.ipynb"


def cells(kind: str) -> list[str]:
    content: dict[str, Any] = json.loads(NOTEBOOK.read_text())
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == kind]


@pytest.mark.slow
def test_the_notebook_runs_from_the_first_cell_to_the_last(tmp_path: Path) -> None:
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join(cells("code")))
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "l1_filter: MACs" in done.stdout
    assert "times as fast; in theory" in done.stdout
    assert "second.0: " in done.stdout
    assert "['mine.onnx', 'mine.safetensors']" in done.stdout


def test_the_notebook_is_stored_without_outputs() -> None:
    content = json.loads(NOTEBOOK.read_text())
    assert all(not cell.get("outputs") for cell in content["cells"])
    assert len(cells("markdown")) >= 6
