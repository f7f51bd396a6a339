"""Docstrings, comments, messages, names, pages and commit subjects keep the rules of plain technical prose."""

from __future__ import annotations

import ast
import fnmatch
import functools
import io
import re
import subprocess
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for home in ("dsp", "baselines", "suite", "tests/benchmarks")
    for path in (ROOT / home).rglob("*.py")
)
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in (
        "README.md",
        "*/README.md",
        "suite/*/*.md",
        "results/*/*/README.md",
        "suite/report/page/templates/*.html",
    )
    for path in ROOT.glob(pattern)
)
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]["per-file-ignores"]
NOT_YET = [room for room, rules in SETTINGS.items() if "D401" in rules and not room.startswith("tests/{")]
"""Rooms that are not converted yet: the per-file-ignores of D401 in pyproject.toml. Remove a room there when it is."""

WORDS = 15
QUESTIONS = {"What", "Which", "Whether", "How"}
PERSONIFIED = re.compile(
    r"\b(?:says|say|said|knows|knew|likes|hears|promises|tells|wants|sees|thinks|believes|remembers|forgets|speaks"
    r"|listens|hopes|asks|lives|minds|without a word)\b",
    re.IGNORECASE,
)
NAMES = set(
    re.findall(
        r"\w+", "found said told heard asked wanted given known gone there here theirs others mine its whose them"
    )
)
SUBJECT = 72
LONG = ("aa2b5d7", "e6dda58")
"""Commits that rows of the record name, or that lie below such a one, so that they are not written anew."""
FIRST_COMMIT = "b5cad6f"
"""The last commit before this rule."""


@functools.cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(), file)


def docstrings(file: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of each docstring."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def prose(file: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of each string and comment."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO((ROOT / file).read_text()).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def names(file: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of each variable, attribute, parameter and function that the file defines."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def violations(file: str) -> list[str]:
    """Return one message for each break of a rule."""
    broken = []
    for line, text in docstrings(file):
        first = text.splitlines()[0]
        if len(first.split()) > WORDS:
            broken.append(f"{file}:{line}: first line has more than {WORDS} words: {first}")
        if first.split()[0] in QUESTIONS:
            broken.append(f"{file}:{line}: first line opens with {first.split()[0]}")
        if not first.endswith((".", ":")):
            broken.append(f"{file}:{line}: first line is not a whole sentence: {first}")
    for line, text in prose(file):
        broken.extend(f"{file}:{line}: {verb!r} personifies: {text[:100]}" for verb in PERSONIFIED.findall(text))
    for line, name in names(file):
        if name.strip("_") in NAMES | {"of"}:
            broken.append(f"{file}:{line}: {name!r} names no content")
    return broken


def is_converted(file: str) -> bool:
    return not any(fnmatch.fnmatch(file, room) for room in NOT_YET)


@pytest.mark.parametrize("file", [file for file in FILES if is_converted(file)])
def test_code_keeps_the_prose_rule(file: str) -> None:
    broken = violations(file)
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize("file", [file for file in PAGES if is_converted(file)])
def test_pages_do_not_personify(file: str) -> None:
    lines = (ROOT / file).read_text().splitlines()
    broken = [f"{file}:{number}: {line}" for number, line in enumerate(lines, 1) if PERSONIFIED.search(line)]
    assert not broken, "\n" + "\n".join(broken)


def test_rule_finds_each_kind_of_break(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text('"""What the file says,\nat length."""\n\n\ndef of(found):  # likes rows\n    pass\n')
    kinds = " ".join(violations(str(path)))
    for part in ("opens with What", "not a whole sentence", "'says'", "'likes'", "'of'", "'found'"):
        assert part in kinds, part


@pytest.mark.parametrize("room", NOT_YET)
def test_rooms_that_are_not_converted_exist(room: str) -> None:
    assert fnmatch.filter([*FILES, *PAGES], room), f"no file matches {room}: remove the entry in pyproject.toml"


def test_commit_subjects_are_short() -> None:
    log = subprocess.run(
        ["git", "log", "--no-merges", "--format=%h %s", f"{FIRST_COMMIT}..HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if log.returncode:
        pytest.skip(f"no git history back to {FIRST_COMMIT}: {log.stderr.strip()}")
    subjects = [line.partition(" ") for line in log.stdout.splitlines()]
    long = [f"{commit} {subject}" for commit, _, subject in subjects if len(subject) > SUBJECT]
    assert not [line for line in long if not line.startswith(LONG)]
