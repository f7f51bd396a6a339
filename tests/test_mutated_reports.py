"""Reports of mutated rows and histories: always built, never a traceback, and no valid row is changed."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_mutations import HISTORY, HOSTILE, ROWS, mutated, places

from suite import grids, records, report
from suite.records import PrunedRow, Row, TimedRow
from suite.run import Context
from suite.run.workspace import Workspace
from suite.stages import Pruned, Stage, Timed

GRID = "quickstart"
ALL = 2000
KEPT = ("key", "kind", "schema", "smoke")
"""Names whose change makes another row; smoke rows among real ones are refused in one line."""
NUMBERS: tuple[Any, ...] = (0, -1, 1, 10**15, 2**62, 1e-300, 1e300, -1e300, 99.99)
IDENTITY = {"key", "label", "stage", "data", "model", "method", "settings", "provenance", "pruned_key"}


def columns(template: Row) -> dict[str, Any]:
    """Return the measured columns of a row."""
    skipped = {
        *IDENTITY,
        "status",
        "granularity",
        "groups",
        "budget",
        "budget_scope",
        "seed",
        "split",
        "smoke",
        "schema",
    }
    skipped |= {"selection", "device", "batch", "precision", "layout", "protocol"}
    skipped |= {"base_epochs", "learning_epochs", "finetune_epochs", "reason"}
    return {name: value for name, value in vars(template).items() if name not in skipped}


def valid_rows(results: Path) -> dict[str, str]:
    """Return file name -> text of a valid row of each run and measurement of the grid."""
    templates = [row for path in ROWS if (row := records.from_dict(json.loads(path.read_text()))).status == "done"]
    pruned = next(row for row in templates if isinstance(row, PrunedRow))
    timed = next(row for row in templates if isinstance(row, TimedRow))
    grid = grids.load(GRID)
    stages: list[Stage] = list(grids.stages_of(grid, grids.runs_of(grid)))
    context, texts = Context(results=results, threads=1), {}
    for stage in stages:
        if isinstance(stage, Pruned | Timed):
            row = Workspace(stage, context).row("done", **columns(timed if isinstance(stage, Timed) else pruned))
            texts[f"{stage.key}.json"] = json.dumps(records.to_dict(row))
    return texts


def of_its_type(text: str, draw: random.Random) -> bytes:
    """Return the text with one value replaced by another of its type, so that most rows stay readable."""
    value = json.loads(text)
    leaves = [place for place in places(value) if place and place[-1] not in KEPT]
    place = draw.choice(leaves)
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    old = holder[place[-1]]
    alike = [new for new in (*HOSTILE, *NUMBERS) if type(new) is type(old)]
    holder[place[-1]] = draw.choice(alike or [old])
    return json.dumps(value).encode()


def check(seed: int, count: int, folder: Path) -> Counter[str]:
    """Build reports until so many files were mutated; return the mutations by kind."""
    draw, counts = random.Random(seed), Counter[str]()
    good = valid_rows(folder)
    history = "\n".join(map(json.dumps, HISTORY))
    while counts.total() < count:
        results = folder / str(len(list(folder.iterdir())))
        rows = records.rows_folder(results)
        rows.mkdir(parents=True)
        untouched = set()
        for name, text in good.items():
            kind = draw.choice(("row", "row of its types", "row of its types", "valid"))
            content = mutated(text, draw) if kind == "row" else of_its_type(text, draw)
            if kind == "valid" or counts.total() >= count or b'"smoke": true' in content:
                untouched.add(name)
                content = text.encode()
            else:
                counts[kind] += 1
            (rows / name).write_bytes(content)
            if name.startswith("pruned") and draw.random() < 0.5 and counts.total() < count:
                work = results / "work" / name.removesuffix(".json")
                work.mkdir(parents=True)
                (work / "history.jsonl").write_bytes(mutated(history.splitlines()[0], draw) + b"\n" + history.encode())
                counts["history"] += 1
        built = report.build(GRID, results)
        assert built.rows >= len(untouched)
        for name in untouched:
            assert (rows / name).read_text() == good[name]
    return counts


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Glyph", "ignore:constrained_layout")
def test_reports_are_built_from_many_mutated_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = check(2, ALL, tmp_path)
    with capsys.disabled():
        print(f"\n{counts.total()} mutations of rows and histories, all reports built: {dict(counts)}")
    assert counts.total() == ALL
