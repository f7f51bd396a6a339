"""Rows and files are whole or absent, and read back as they were written.

Damaged ones are refused.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from suite import records
from suite.files import replacing, sha256, write_bytes, write_json, write_text
from suite.records import PrunedRow, Row, TimedRow, origin

ABOUT: dict[str, Any] = {
    "label": "digits/vgg6 l1_filter 50.00% seed 0",
    "status": "done",
    "stage": {"base": {"data": "digits", "schedule": {"epochs": 2}}, "seed": 0},
    "data": "digits",
    "model": "vgg6",
    "method": "l1_filter",
    "settings": "l1_filter",
    "granularity": "filter",
    "groups": 1,
    "budget": 0.5,
    "budget_scope": "network",
    "seed": 0,
    "split": "all",
    "smoke": False,
    "provenance": {"commit": "abc", "dirty": False, "threads": 1},
}
PRUNED = PrunedRow(
    key="pruned-000000000001", **ABOUT, pruned_top1_pct=93.25, macs=123456789, unsupported_ops=("aten::x", "aten::y")
)
TIMED = TimedRow(
    key="timed-000000000001",
    **ABOUT,
    pruned_key=PRUNED.key,
    device="cpu",
    batch=32,
    precision="fp32",
    layout="contiguous",
    protocol="quick",
    executions_ms={"groups": 1.5, "union": 2.0},
)
ROWS: list[Row] = [
    PRUNED,
    TIMED,
    dataclasses.replace(PRUNED, status="failed", reason='tab\t quote" \u00fc \U0001f600 [/red] \\ {}', macs=None),
]


def path_of(row: Row, results: Path) -> Path:
    return results / "rows" / f"{row.key}.json"


@pytest.mark.parametrize("row", ROWS, ids=["pruned", "timed", "failed"])
def test_a_row_is_read_as_it_was_written(tmp_path: Path, row: Row) -> None:
    records.write(row, tmp_path)
    assert records.read(path_of(row, tmp_path)) == row
    assert records.read_all(tmp_path, ["pruned-absent", row.key]) == [row]
    assert [p.name for p in (tmp_path / "rows").iterdir()] == [f"{row.key}.json"]


def test_no_row_is_none(tmp_path: Path) -> None:
    assert records.read(tmp_path / "rows" / "absent.json") is None


def test_result_fields_exist() -> None:
    for kind in records.ROW_TYPES.values():
        fields = {field.name for field in dataclasses.fields(kind)}
        assert set(getattr(kind, "result_fields", ())) <= fields


def broken() -> dict[str, tuple[Any, str]]:
    good = records.to_dict(PRUNED)
    without_seed = {name: value for name, value in good.items() if name != "seed"}
    return {
        "no schema": ({k: v for k, v in good.items() if k != "schema"}, "schema None is none of 1 to 2"),
        "schema 0": ({**good, "schema": 0}, "schema 0 is none of 1 to 2"),
        "a word as schema": ({**good, "schema": "2"}, "schema 2 is none of"),
        "unknown kind": ({**good, "kind": "baked"}, "its kind is none of pruned, timed"),
        "unhashable kind": ({**good, "kind": ["pruned"]}, "not a row"),
        "a list": ([good], "not a row"),
        "null": (None, "not a row"),
        "unknown field": ({**good, "flops": 1}, "unknown fields.*flops"),
        "a provenance in words": ({**good, "provenance": "here"}, "provenance = 'here' is no object"),
        "an old row without provenance": ({**good, "schema": 1, "provenance": None}, "provenance = None is no object"),
        "unknown status": ({**good, "status": "finished"}, "status = 'finished' is none of done, diverged, failed"),
        "no status": ({k: v for k, v in good.items() if k != "status"}, "status = None is none of"),
        "missing field": (without_seed, "seed"),
        "another row": ({**good, "key": "pruned-ffffffffffff"}, "it holds the row pruned-ffffffffffff"),
    }


@pytest.mark.parametrize("kind", broken())
def test_a_row_that_is_none_is_set_aside_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    value, why = broken()[kind]
    path = path_of(PRUNED, tmp_path)
    write_json(path, value)
    assert records.read(path) is None
    assert not path.exists()
    assert path.with_name(f"{PRUNED.key}.json.damaged").exists()
    (message,) = (record.getMessage() for record in caplog.records)
    assert f"row {path} cannot be read" in message
    assert "\n" not in message
    assert re.search(why, message)


def test_a_row_of_a_later_version_is_left_where_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = path_of(PRUNED, tmp_path)
    write_json(path, {**records.to_dict(PRUNED), "schema": 99, "invented": 1})
    assert records.read(path) is None
    assert json.loads(path.read_text())["schema"] == 99
    assert "schema 99 is later than 2; update the suite to read it" in caplog.text
    assert records.unreadable(tmp_path, [PRUNED.key, "pruned-absent"]) == [path]


FIRST = sorted((Path(__file__).parent / "fixtures" / "rows_v1").glob("*.json"))


@pytest.mark.parametrize("path", FIRST, ids=lambda path: path.stem.split("-")[0])
def test_rows_of_the_first_version_are_read_with_all_that_they_say(tmp_path: Path, path: Path) -> None:
    written = json.loads(path.read_text())
    assert written["schema"] == 1
    copy = tmp_path / "rows" / path.name
    write_bytes(copy, path.read_bytes())
    row = records.read(copy)
    assert row is not None
    assert copy.read_bytes() == path.read_bytes(), "the file is left as it is"
    now = json.loads(json.dumps(records.to_dict(row)))
    said = written.pop("fairness", None)
    assert now["provenance"].pop("fairness_said", None) == said
    assert now.items() >= {**written, "schema": records.SCHEMA}.items()
    records.write(row, tmp_path)
    assert records.read(copy) == row, "written again, it is a row of this version"


def test_there_is_a_first_row_of_every_kind_and_a_migration_from_every_version() -> None:
    assert {json.loads(path.read_text())["kind"] for path in FIRST} == set(records.ROW_TYPES) - {"steps"}
    assert sorted(records.MIGRATIONS) == list(range(1, records.SCHEMA))


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema": 1', b"\xff\xfe\x00", b"NaN"])
def test_a_damaged_row_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    path = path_of(PRUNED, tmp_path)
    write_bytes(path, content)
    assert records.read(path) is None
    assert path.with_name(f"{PRUNED.key}.json.damaged").read_bytes() == content
    assert "set aside as" in caplog.text
    write_bytes(path, content)
    assert records.read_all(tmp_path, [PRUNED.key], set_aside=False) == []
    assert path.read_bytes() == content


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_row_that_the_storage_does_not_give_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = path_of(PRUNED, tmp_path)
    records.write(PRUNED, tmp_path)

    def broken(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("suite.jsonfile.open_regular", broken)
        with pytest.raises(OSError, match=os.strerror(number)):
            records.read(path)
    assert records.read(path) == PRUNED


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused_and_leave_the_old_file(tmp_path: Path, value: float) -> None:
    path = tmp_path / "row.json"
    write_json(path, {"accuracy": 1.0})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"accuracy": value})
    assert json.loads(path.read_text()) == {"accuracy": 1.0}
    with pytest.raises(ValueError, match="Out of range float"):
        records.write(dataclasses.replace(PRUNED, pruned_top1_pct=value), tmp_path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["row.json"]


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), SystemExit(1), OSError(5, "I/O")])
def test_a_block_that_raises_leaves_what_was_there(tmp_path: Path, old: str | None, error: BaseException) -> None:
    path = tmp_path / "sub" / "file.txt"
    if old:
        write_text(path, old)

    def write() -> None:
        with replacing(path) as part:
            part.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert (path.read_text() if path.exists() else None) == old
    assert list(path.parent.iterdir()) == ([path] if old else [])


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with replacing(path) as part:
        part.write_text("new, half")
        assert path.read_text() == "old"
        part.write_text("new")
    with path.open() as opened:
        write_text(path, "newer")
        assert opened.read() == "new", "who had opened it reads on in the old one"
    assert path.read_text() == "newer"
    assert path.stat().st_mode & 0o777 == 0o644


def test_sha256_is_of_the_bytes(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x", b"abc")
    assert sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_file_that_may_not_grow_is_never_half_there(tmp_path: Path) -> None:
    """The system refuses in the middle of a write, which a full disk does, too."""
    code = """
        import resource, sys
        from pathlib import Path
        from suite.files import write_text
        path = Path(sys.argv[1])
        write_text(path, "old")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_text(path, "x" * 5000)
        except OSError as error:
            print(error.errno, error.filename)
    """
    path = tmp_path / "file.txt"
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], capture_output=True, text=True, timeout=60
    )
    assert ended.stdout.split() == [str(errno.EFBIG), str(path)], ended.stderr
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# ---- where rows come from --------------------------------------------------------------------------------------------


def test_provenance_says_where_a_row_was_made() -> None:
    found = records.provenance("cpu")
    for name in ("commit", "dirty", "python", "torch", "torchvision", "numpy", "fvcore", "device", "driver", "threads"):
        assert name in found, name
    assert found["threads"] == 1
    assert found["device"].startswith("cpu: ")
    assert found["torch"] != "not installed"
    json.dumps(found, allow_nan=False)


def git(folder: Path, *arguments: str) -> None:
    environment = {
        **os.environ,
        **{f"GIT_{who}_{what}": "t@t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, env=environment)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A committed source with a method that imports a helper, a model and a shared file of the data sets."""
    for path, text in {
        "suite/records/__init__.py": "x = 1\n",
        "suite/models/net.py": "MODELS = {}\n",
        "suite/data/base.py": "",
        "baselines/__init__.py": "",
        "baselines/norm.py": "from baselines import _rates\n",
        "baselines/_rates.py": "",
        "suite/grids/short.py": "",
        "README.md": "",
    }.items():
        write_text(tmp_path / path, text)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setattr("suite.records.origin.ROOT", tmp_path)
    origin._lasting.cache_clear()
    yield tmp_path
    origin._lasting.cache_clear()


def state(*plugins: str) -> tuple[bool, list[str]]:
    """Return dirty flag and changed files of a row that another process makes now."""
    origin._lasting.cache_clear()
    origin.content.cache_clear()
    made = records.provenance("cpu", plugins)
    assert set(made.get("files", {}).values()) <= {sha256(origin.ROOT / path) for path in made.get("files", {})}
    return made["dirty"], sorted(made.get("files", {}))


def test_own_results_grids_and_notes_leave_the_source_clean(checkout: Path) -> None:
    clean = records.source()
    assert (clean["dirty"], clean["changed"], len(clean["commit"])) == (False, {}, 40)
    for path in ("results/rows/new.json", "suite/grids/mine.py", "suite/grids/short.py", "mine.py", "README.md"):
        write_text(checkout / path, "changed")
    assert records.source() == clean


@pytest.mark.parametrize("path", ["suite/records/__init__.py", "suite/data/base.py", "suite/new.py"])
def test_source_is_dirty_if_a_shared_file_was_changed(path: str, checkout: Path) -> None:
    write_text(checkout / path, "changed")
    assert state("baselines.norm") == (True, [])


def test_source_is_dirty_if_a_shared_file_was_deleted(checkout: Path) -> None:
    (checkout / "suite" / "data" / "base.py").unlink()
    assert state("baselines.norm") == (True, [])


def test_plugins_that_differ_from_the_commit_are_named_by_their_hash(checkout: Path) -> None:
    assert state("baselines.norm", "suite.models.net") == (False, [])
    write_text(checkout / "baselines" / "mine.py", "from . import norm\n")
    assert state("baselines.norm", "suite.models.net") == (False, []), "a file of another method"
    assert state("baselines.mine") == (False, ["baselines/mine.py"])
    write_text(checkout / "baselines" / "_rates.py", "y = 2\n")
    write_text(checkout / "suite" / "models" / "net.py", "MODELS = {'net': None}\n")
    assert state("baselines.norm", "suite.models.net") == (False, ["baselines/_rates.py", "suite/models/net.py"])
    assert state("baselines.mine") == (False, ["baselines/_rates.py", "baselines/mine.py"]), "helpers of its imports"


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("results/quickstart/table.csv", True),
        ("results/rows/pruned-0123456789ab.json", True),
        ("results/smoke/rows/pruned-0123456789ab.json", True),
        ("results/reference/work/pruned-0123456789ab/done.json", True),
        ("results/reference/smoke/work/pruned-0123456789ab/done.json", True),
        ("results/reference/smoke/rows/pruned-0123456789ab.json", False),
        ("results/reference/quickstart/index.html", True),
        ("results/reference/quickstart/ranks.pdf", True),
        ("results/reference/quickstart/table.csv", False),
        ("results/reference/quickstart/ranks.png", False),
        ("results/reference/rows/pruned-0123456789ab.json", False),
        ("results/README.md", False),
    ],
)
def test_git_ignores_what_grids_write_outside_the_record(path: str, ignored: bool) -> None:
    command = ["git", "-C", str(records.ROOT), "check-ignore", "--no-index", "-q", path]
    status = subprocess.run(command, capture_output=True, check=False).returncode
    if status == 128:
        pytest.skip("no git repository")
    assert (status == 0) == ignored


def test_without_a_repository_the_packages_version_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suite.records.origin.ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert records.source()["commit"].startswith("package ")
    assert records.source()["dirty"] is None


def test_installed_inside_another_repository_its_commit_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "theirs.py", "x = 1\n")
    write_text(tmp_path / ".gitignore", ".venv\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    write_text(tmp_path / ".venv" / "suite" / "records" / "__init__.py", "")
    monkeypatch.setattr("suite.records.origin.ROOT", tmp_path / ".venv")
    assert records.source()["commit"].startswith("package ")
    assert records.source()["dirty"] is None


def test_a_device_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "none" in records.device_name("cuda")
