"""Seeded mutations of valid files.

Readers return a value or name the file, never raise anything else, never change good rows.
"""

from __future__ import annotations

import json
import os
import random
import unittest.mock
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_grid import FILE, run_of, stages

from suite import lease, models, progress, records, weights
from suite.data.cifar10 import read_npz
from suite.grids import Grid, runs_of
from suite.launch import carry, record
from suite.measure import layer_times
from suite.pack.choice import load_choices
from suite.plan import PruningPlan
from suite.records.merge import merge
from suite.report import staircase
from suite.report.figures import learning
from suite.report.page import runs
from suite.run import Context, folder
from suite.run.execute import _pin_threads
from suite.run.pruned_stage import _selected
from suite.select import Selection

ROWS = sorted((FILE.parent.parent / "results" / "reference" / "rows").glob("*.json"))
FAST, ALL = 300, 2000
HOSTILE: tuple[Any, ...] = (
    *(None, True, [], {}, "", "x", 0, -1, 1.5, 2**62, "../../x", "/etc/passwd", "\0", "x" * 70_000, "\u202e<script>"),
    *([1, [2, [3]]], {"a": {"b": [None]}}, [{}], "nan", "9" * 400),
)
RAW = ("NaN", "-Infinity", "1e999", "9" * 5000, "[" * 5000 + "]" * 5000, '{"a":' * 3000 + "1" + "}" * 3000, '"\\ud800"')

STAGE = next(stage for stage in stages() if stage.kind == "pruned")
DONE = {
    "label": "x",
    "files": {"packed.safetensors": {"bytes": 3, "sha256": "0" * 64}},
    "result": {"top1_pct": 93.0},
    "row": None,
}
CHOICE = {
    **{"device": "cpu", "precision": "fp32", "batch": 32, "layout": "contiguous"},
    **{"layers": {"conv": "groups"}, "layer_ms": {"conv": {"groups": 1.5}}, "layout_ms": {"contiguous": 2.0}},
}
LAUNCH = {
    **{"grid": "x", "cluster": "slurm", "commit": "abc", "dirty": False, "snapshot": "", "time": 1.7e9, "host": "h"},
    **{
        "pid": 12,
        "stages": {"pruned-000000000001": "label"},
        "jobs": {"pruned-000000000001": "12_3"},
        "todo": [],
        "began": 7,
    },
}
HISTORY = [{"epoch": epoch, "loss": 1.5, "lr": 0.1, "train_top1_pct": 50.0, "penalty_nats": 2.0} for epoch in range(3)]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in inner:
        yield from places(member, (*path, key))


def mutated(text: str, draw: random.Random) -> bytes:
    """Return the text with one change: of a value, a name, the syntax, or bytes."""
    kind = draw.choice(("value", "value", "value", "raw", "removed", "renamed", "twice", "bytes", "cut"))
    if kind == "bytes":
        content = bytearray(text.encode())
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        return bytes(content)
    if kind == "cut":
        return text.encode()[: draw.randrange(len(text))]
    value = json.loads(text)
    place = draw.choice([place for place in places(value) if place] or [()])
    if not place:
        return json.dumps(draw.choice(HOSTILE)).encode()
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    last = place[-1]
    if kind == "value":
        holder[last] = draw.choice(HOSTILE)
    elif kind == "raw":
        holder[last] = "@@"
        return json.dumps(value).replace('"@@"', draw.choice(RAW)).encode()
    elif kind == "removed":
        del holder[last]
    elif isinstance(holder, dict):
        holder[str(draw.choice(("../x", "", "\0", "key", "__class__")))] = holder[last]
        if kind == "twice":
            return json.dumps(value).replace("{", f'{{"{last}": 1, "{last}": 2, ', 1).encode()
    return json.dumps(value).encode()


def read_row(path: Path) -> records.Row | None:
    return records.read(path)


def read_done(path: Path) -> object:
    context = Context(results=path.parents[2], threads=1)
    folder.repair(STAGE, context)
    return folder.is_done(STAGE, context)


def read_failures(path: Path) -> object:
    context = Context(results=path.parents[2], threads=1)
    folder.failure(STAGE, context)
    folder.count_failure(STAGE, context, "failed", "x")
    return folder.given_up(STAGE, context)


def read_started(path: Path) -> object:
    _pin_threads(path, STAGE, Context(results=path.parents[2], threads=1))
    return json.loads(path.read_text())["threads"]


def read_history(path: Path) -> object:
    return runs._curve(path.parent), refusal(learning._log, path.parent)


def refusal(read: Callable[[Path], object], path: Path) -> object:
    """Return what was read, or the reason in one line."""
    try:
        return read(path)
    except ValueError as error:
        return one_line(str(error))


def one_line(text: str) -> str:
    assert "\n" not in text, text
    return text


def read_staircase(path: Path) -> object:
    path.with_suffix(".csv").write_text("layout,precision,channels,ms\ncontiguous,fp32,8,1.5\n")
    with unittest.mock.patch.object(
        staircase, "draw", lambda times, layer, device, path: [f"{layer['channels']:d}" + device]
    ):
        return refusal(staircase.draw_all, path.parent)


def read_plan(path: Path) -> object:
    """A header that is no selection is that of a damaged file: the plan is made again."""
    header = path.read_bytes().decode(errors="replace")
    save_file({"c.kept_O": torch.ones(2).bool()}, path, {"selection": header})
    made = Selection(plan=PruningPlan({}), knob=0.0, cut=0.0, coarse=False)
    return _selected(path, lambda: made, set(), progress.Watch())


STAIRCASE = {
    "layer": {"filters": 8, "channels": 8, "kernel": 3, "size": 4, "batch": 2, "stride": 1},
    "provenance": {"device": "cpu"},
}
TABLE = {
    **{"timing": {"device": "cpu", "precision": "fp32", "batch": 2, "layout": "contiguous", "protocol": "quick"}},
    **{"threads": 1, "layers": {"conv": "g"}, "dense_ms": 2.0, "rest_ms": 0.5, "provenance": {"device": "x"}},
    "costs": {"g": [1.0, 0.5]},
}
KINDS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "done.json": (json.dumps(DONE), read_done),
    "failures.json": (json.dumps({"failed: x": {"times": 1, "reason": "x"}}), read_failures),
    "failed.json": (json.dumps({"status": "failed", "reason": "x", "time": 1.5}), read_failures),
    "started.json": (json.dumps({"threads": 1}), read_started),
    "progress.json": (json.dumps({"doing": "x", "pid": 1, "time": 1.5, "share": 0.5}), progress.read),
    "history.jsonl": ("\n".join(map(json.dumps, HISTORY)), read_history),
    "executions.json": (json.dumps([CHOICE]), lambda path: refusal(load_choices, path)),
    "x.json": (json.dumps(LAUNCH), lambda path: record.read(path.parents[1], "x")),
    ".lease": (json.dumps({"pid": 1, "hostname": "h"}), lease.owner),
    "staircase.json": (json.dumps(STAIRCASE), read_staircase),
    "times.json": (json.dumps(TABLE), lambda path: refusal(layer_times.load, path)),
    "plan0.safetensors": (json.dumps({"knob": 0.5, "cut": 0.5, "coarse": False}), read_plan),
    "carry.json": (
        json.dumps({"pieces": {}}),
        lambda path: refusal(lambda folder: carry.load(Context(results=path.parents[2]), folder), path.parent),
    ),
}


def path_of(name: str, results: Path) -> Path:
    path = results / "launches" / name if name == "x.json" else results / "work" / STAGE.key / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def check(seed: int, count: int, results: Path) -> Counter[str]:
    """Read so many mutated files; return how many of each kind."""
    draw = random.Random(seed)
    counts: Counter[str] = Counter()
    row_folder = records.rows_folder(results)
    row_folder.mkdir(parents=True)
    for number in range(count):
        if number % 2:  # rows are half of all
            origin = draw.choice(ROWS)
            path, content = row_folder / origin.name, mutated(origin.read_text(), draw)
            path.write_bytes(content)
            row = read_row(path)
            if row is None:
                assert not path.exists() or json.loads(path.read_bytes())["schema"] > records.SCHEMA
                path.unlink(missing_ok=True)
            else:
                now, then = json.loads(json.dumps(records.to_dict(row))), json.loads(content)
                if (fairness := then.pop("fairness", None)) is not None:  # of version 1
                    then["provenance"]["fairness_said"] = fairness
                assert {name: now[name] for name in then} == {**then, "schema": records.SCHEMA}
                path.unlink()
            counts["row"] += 1
            continue
        name = draw.choice(list(KINDS))
        text, read = KINDS[name]
        lines = text.splitlines()
        place = draw.randrange(len(lines))
        lines[place] = mutated(lines[place], draw).decode("latin-1").replace("\n", " ")
        path = path_of(name, results)
        path.write_bytes("\n".join(lines).encode("latin-1", errors="replace"))
        read(path)
        for rest in path.parent.iterdir():
            rest.unlink()
        counts[name] += 1
    return counts


def test_mutated_files_give_no_traceback(tmp_path: Path) -> None:
    assert check(1, FAST, tmp_path / "results").total() == FAST


@pytest.mark.slow
def test_many_mutated_files_give_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = check(2, ALL, tmp_path / "results")
    with capsys.disabled():
        print(f"\n{counts.total()} mutations: {dict(counts)}")
    assert counts.total() == ALL


def test_good_rows_beside_bad_ones_stay_as_they_are(tmp_path: Path) -> None:
    """Merging a folder with mutated rows keeps every good row, byte for byte in meaning, and names each bad one."""
    draw, (first, second) = random.Random(3), (tmp_path / "a", tmp_path / "b")
    for results in (first, second):
        records.rows_folder(results).mkdir(parents=True)
    good = {path.name: path.read_bytes() for path in ROWS[:20]}
    for name, content in good.items():
        (records.rows_folder(first) / name).write_bytes(content)
    for path in ROWS[:60]:
        (records.rows_folder(second) / path.name).write_bytes(mutated(path.read_text(), draw))
    merged = merge(first, second)
    for name, content in good.items():
        assert json.loads((records.rows_folder(first) / name).read_bytes()) == json.loads(content)
    assert merged.unreadable
    for line in (*merged.unreadable, *merged.conflicts):
        one_line(line)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


@pytest.mark.parametrize(
    "name", ["row", *(name for name in KINDS if name not in ("history.jsonl", "plan0.safetensors"))]
)
def test_a_fifo_blocks_no_reader(name: str, tmp_path: Path) -> None:
    path = records.rows_folder(tmp_path) / "pruned-000000000001.json" if name == "row" else path_of(name, tmp_path)
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    (read_row if name == "row" else KINDS[name][1])(path)


def test_public_weights_are_compared_with_their_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUITE_WEIGHTS", str(tmp_path))
    (tmp_path / weights.public("cifar10_resnet20_a").file).write_bytes(b"other weights")
    with pytest.raises(ValueError, match="is damaged, or another file: its sha256 begins with"):
        weights.load_into(models.build("resnet20_a", 10), "cifar10_resnet20_a", None)


def test_arrays_of_an_impossible_size_are_one_line(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "cifar10.npz", "w") as file:
        header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000,), }"
        content = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n"
        file.writestr("train_images.npy", content)
    with pytest.raises(ValueError, match="is not a whole cifar10"):
        read_npz(tmp_path / "cifar10.npz")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="is no regular file"):
        read_npz(tmp_path / "fifo")


def test_a_run_that_a_grid_lists_twice_is_one_run() -> None:
    run = run_of("l1_filter")
    assert runs_of(Grid(title="Twice", about="", runs=lambda: [run, run])) == [run]
