"""No result of edited code passes for a present one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny_grid
from test_plugins import FILES, METHOD, folder  # noqa: F401 (a fixture)

from suite import grids, records, registry
from suite.launch import __main__ as launch
from suite.launch import work
from suite.launch.work import Work
from suite.report import build, frames, words
from suite.run import Context, code, execute, is_done
from suite.stages import Base, Pruned, Stage


def edit(where: Path, name: str, before: str, after: str) -> None:
    """Change a plug-in's file, as seen by the next process."""
    text = (where / name).read_text()
    assert before in text
    (where / name).write_text(text.replace(before, after))
    for module in [each for each in sys.modules if each.startswith("suite.plugins.")]:
        del sys.modules[module]
    registry.set_folders([where])


def stages() -> list[Stage]:
    grid = grids.load("grid_of_mine")
    return grids.stages_of(grid, grids.runs_of(grid))


def todo(context: Context, **options: Any) -> Work:
    return work.find(stages(), context, retry_failed=False, only_timing=False, **options)


def kinds(found: Work) -> list[str]:
    return [stage.kind for stage in found.todo]


@pytest.fixture
def done(folder: Path, tmp_path: Path) -> Context:  # noqa: F811
    """A finished grid of one run."""
    context = Context(results=tmp_path / "results", threads=1)
    for stage in stages():
        assert execute(stage, context) == "done"
    assert not todo(context).todo
    return context


def test_an_edited_method_is_repeated_with_all_that_follows(
    done: Context,
    folder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit(folder, "mine.py", "abs()", "abs().neg()")
    found = todo(done)
    assert kinds(found) == ["pruned", "timed"]
    assert found.again[found.todo[0].key] == "done with other code of plugins/mine.py"
    arguments = ["--grid", "grid_of_mine", "--results", done.results, "--cluster", "debug", "--threads", 1]
    assert tiny_grid.call(launch.main, *arguments, "--dry-run") == 0
    assert "done with other code of plugins/mine.py" in capsys.readouterr().out
    before = (done.results / "rows" / f"{found.todo[0].key}.json").read_text()
    assert tiny_grid.call(launch.main, *arguments) == 0
    after = (done.results / "rows" / f"{found.todo[0].key}.json").read_text()
    assert (done.results / "rows" / f"{found.todo[0].key}.json.replaced").read_text() == before
    plans = [json.loads(text)["plan_sha256"] for text in (before, after)]
    assert plans[0] != plans[1], "the opposite score keeps other filters"
    assert not todo(done).todo


def test_an_edited_model_repeats_the_base_network(done: Context, folder: Path) -> None:  # noqa: F811
    edit(folder, "nets.py", '"M", 16', '"M", 12')
    assert kinds(todo(done)) == ["base", "pruned", "timed"]


def test_comments_docstrings_and_sources_are_no_code(done: Context, folder: Path) -> None:  # noqa: F811
    edit(folder, "mine.py", "Keeps filters", "Keeps the filters")
    edit(folder, "mine.py", "an example", "another example")
    edit(folder, "mine.py", "def score", "# a comment\n\n    def score")
    assert not todo(done).todo


def test_an_edited_helper_is_named_and_redo_repeats_by_hand(done: Context, folder: Path) -> None:  # noqa: F811
    edit(folder, "_helper.py", "1", "2")
    found = todo(done)
    assert not found.todo
    assert found.outdated == {"plugins/_helper.py": 2}
    assert "2 stages were done with other code of plugins/_helper.py" in found.remarks[0]
    assert kinds(todo(done, redo="mine 50")) == ["pruned", "timed"]
    assert kinds(todo(done, redo="base-")) == ["base", "pruned", "timed"]
    with pytest.raises(ValueError, match="--redo zzz fits no stage of this grid: take text of a label or key"):
        todo(done, redo="zzz")


def test_what_has_begun_on_a_redone_network_begins_anew(done: Context, folder: Path) -> None:  # noqa: F811
    base, pruned, _ = stages()
    (done.folder(pruned) / "done.json").unlink()
    assert not todo(done, redo="base-").again.keys() & {pruned.key}, "there is no checkpoint to go on from"
    (done.folder(pruned) / "train0.pt").touch()
    assert list(todo(done, redo="base-").again) == [base.key, pruned.key, stages()[2].key]


def test_outputs_without_a_fingerprint_stay(done: Context, folder: Path) -> None:  # noqa: F811
    for stage in stages():
        path = done.folder(stage) / "done.json"
        about = json.loads(path.read_text())
        del about["code"]
        path.write_text(json.dumps(about))
    edit(folder, "mine.py", "abs()", "abs().neg()")
    assert not todo(done).todo


def test_a_checkpoint_of_other_code_is_not_continued(done: Context, folder: Path) -> None:  # noqa: F811
    pruned = next(stage for stage in stages() if isinstance(stage, Pruned))
    where = done.folder(pruned)
    (where / "done.json").unlink()
    (where / "plan0.safetensors").write_bytes((where / "packed.safetensors").read_bytes())
    edit(folder, "mine.py", "abs()", "abs().neg()")
    pruned = next(stage for stage in stages() if isinstance(stage, Pruned))
    assert execute(pruned, done) == "done"
    assert is_done(pruned, done)
    assert json.loads((where / "started.json").read_text())["code"] == code.fingerprint(pruned)


def test_rows_of_other_code_are_marked_until_they_are_repeated(
    done: Context,
    folder: Path,  # noqa: F811
) -> None:
    """A helper, which a launch does not repeat by itself, then the method's own file."""
    words_of_mark = "All runs were made with other code: a file of their method"

    def report() -> tuple[str, str, tuple[str, ...]]:
        built = build("grid_of_mine", done.results)
        about = (done.results / "grid_of_mine" / "table.md").read_text()
        page = (done.results / "grid_of_mine" / "index.html").read_text()
        return about, page, built.remarks

    launched = ["--grid", "grid_of_mine", "--results", done.results, "--cluster", "debug", "--threads", 1]
    assert all(words_of_mark not in text for text in report()[:2])
    edit(folder, "_helper.py", "1", "2")
    assert tiny_grid.call(launch.main, *launched) == 0
    about, page, remarks = report()
    (base,) = (stage for stage in stages() if isinstance(stage, Base))
    network = f"{base.data}/{base.model}"
    command = f"python -m suite.launch --grid grid_of_mine --redo {network}"
    assert words_of_mark in about
    assert f"To repeat them: `{command}`" in about
    assert words_of_mark in page
    assert f"<code>{command}</code>" in page
    assert any(command in text for text in remarks)
    assert tiny_grid.call(launch.main, *launched, "--redo", network) == 0
    assert all(words_of_mark not in text for text in report()[:2])
    edit(folder, "mine.py", "abs()", "abs().neg()")
    assert words_of_mark in report()[0]
    assert tiny_grid.call(launch.main, *launched) == 0
    assert words_of_mark not in report()[0]


def test_cells_of_other_code_are_marked_where_some_are_not() -> None:
    lines = pd.DataFrame(
        {"line": range(3), "data": "digits", "model": "resnet8", "n": [3, 3, 0], "other_code": [1, 0, 0]}
    )
    lines["mark"] = words.other_code_marks(lines)
    assert list(lines["mark"]) == [words.OTHER_CODE, "", ""]
    assert words.other_code(lines, "mine").startswith("1 of 6 runs were made with other code (†): ")
    lines["other_code"] = lines["n"]
    lines["mark"] = words.other_code_marks(lines)
    assert not lines["mark"].any()
    assert words.other_code(lines, "mine").startswith("All runs were made with other code: ")


def test_rows_of_other_code_are_told_apart() -> None:
    rows = [json.loads(json.dumps({"commit": "a" * 40, **extra})) for extra in ({"code": "1"}, {"code": "2"}, {})]
    made = [records.PrunedRow(**{**ROW, "key": str(number), "provenance": row}) for number, row in enumerate(rows)]
    marked = frames._marked(made, [0, 0, 0])
    assert [row.provenance["commit"] for row in marked] == ["aaaaaaaa code 1", "aaaaaaaa code 2", "a" * 40]
    assert frames._marked(made, [0, 1, 2]) == made


ROW: dict[str, Any] = {
    "label": "",
    "status": "done",
    "stage": {},
    **dict.fromkeys(("data", "model", "method", "settings", "granularity", "budget_scope", "split"), ""),
    "groups": 1,
    "budget": 0.5,
    "seed": 0,
    "smoke": False,
}


def test_an_edit_during_a_process_changes_no_fingerprint_of_it(done: Context, folder: Path) -> None:  # noqa: F811
    """The process goes on with what it has imported, also where another stage meets the file first."""
    pruned = stages()[1]
    before = code.fingerprint(pruned)
    for path in folder.glob("*.py"):
        path.write_text(path.read_text() + "\n\nMORE = 1\n")
    code._fingerprint.cache_clear()
    assert code.fingerprint(pruned) == before
    registry.set_folders([folder])
    assert code.fingerprint(pruned) != before


def test_a_file_in_an_encoding_of_its_own_has_a_fingerprint(folder: Path) -> None:  # noqa: F811
    helper = folder / "_helper.py"
    helper.write_bytes(f'# -*- coding: latin-1 -*-\nNAME = "\xe9"\n{helper.read_text()}'.encode("latin-1"))
    registry.set_folders([folder])
    pruned = next(stage for stage in stages() if isinstance(stage, Pruned))
    assert "plugins/_helper.py" in code.fingerprint(pruned)["imported"]


def test_fingerprints_have_own_files_and_imported_ones(folder: Path) -> None:  # noqa: F811
    pruned = next(stage for stage in stages() if isinstance(stage, Pruned))
    found = code.fingerprint(pruned)
    assert set(found["own"]) == {"plugins/mine.py", "plugins/nets.py", "plugins/pictures.py"}
    assert {"plugins/_helper.py", "suite/models/cifar_vgg.py", "suite/data/digits.py"} <= set(found["imported"])
    assert METHOD in FILES.values()
    (run,) = (run for run in tiny_grid.GRID.runs() if run.method == "dsp")
    assert {"dsp/method.py", "dsp/learner.py", "suite/models/cifar_vgg.py"} <= set(code.fingerprint(run)["own"])
