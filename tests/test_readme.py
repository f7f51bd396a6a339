"""The examples in the READMEs run, and their links and paths exist."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from suite import grids, methods, zoo

ROOT = Path(__file__).resolve().parent.parent
HOMES = ("baselines", "suite", "results")


NAMES = ("README.md", "MEASUREMENTS.md")
PAGES = [
    ROOT / "README.md",
    *sorted(path for home in HOMES for name in NAMES for path in (ROOT / home).rglob(name)),
]


def example(name: str) -> str:
    """Return the code block after the marker `<!-- tested: name -->`, which stands in one README."""
    pattern = rf"<!-- tested: {name} -->\n```python\n(.*?)```"
    blocks = [block for page in PAGES for block in re.findall(pattern, page.read_text(), re.DOTALL)]
    assert len(blocks) == 1, f"{len(blocks)} examples are marked {name}"
    return blocks[0]


def run(folder: Path, *command: str) -> str:
    """Return the output of a command; it must succeed without a warning."""
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr, done.stderr
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


def test_comparison_on_two_cores_starts_from_networks_of_the_record(tmp_path: Path) -> None:
    (tmp_path / "compared.py").write_text(example("compare").replace("NAME", "l1_filter"))
    planned = grids.load(str(tmp_path / "compared.py")).runs()
    assert {run.method for run in planned} == {"dense_control", "l1_filter", "dsp"}
    assert all((zoo.FOLDER / run.base.key).is_dir() for run in planned)


def test_a_network_of_ones_own_is_pruned_and_loaded(tmp_path: Path) -> None:
    loaded = "network = suite.load('small.safetensors', model)\nassert network(images).shape == (2, 1000)\n"
    printed = run(tmp_path, "-c", example("prune") + loaded)
    assert "MACs" in printed


def table_names(page: str, heading: str) -> set[str]:
    """Return the names in backticks of the first table after a heading."""
    text = (ROOT / page).read_text().split(f"# {heading}", 1)[1]
    rows = re.findall(r"^\|.*", text[text.index("\n|") :].split("\n\n", 1)[0], re.MULTILINE)
    return set(re.findall(r"`([a-z]\w*\*?)`", "\n".join(rows)))


def test_every_method_of_the_repository_is_in_the_table() -> None:
    assert table_names("baselines/README.md", "Methods: one file each") == set(methods.discover())


def test_every_grid_of_the_repository_is_in_the_table() -> None:
    listed = table_names("suite/grids/README.md", "Grids: the experiments")
    own = {path.stem for path in (ROOT / "suite" / "grids").glob("[a-z]*.py")}
    assert listed - {"ablation_*"} <= own
    assert {name for name in own if not name.startswith("ablation_")} <= listed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text()
    for path in re.findall(r"\]\((?!https?:|#)([^)]+)\)", text):
        file, _, heading = path.partition("#")
        assert (page.parent / file).exists(), path
        slugs = re.findall(r"^#+ (.*)", (page.parent / file).read_text(), re.MULTILINE) if heading else []
        assert not heading or heading in [slug.lower().replace(" ", "-") for slug in slugs], path
    for path in re.findall(r"(?<![\w/-])((?:suite|baselines|dsp|tests|results/reference)/[\w./-]*\w)", text):
        if "NAME" not in path:
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_are_modules_and_grids_exist(page: Path) -> None:
    text = page.read_text()
    for module in re.findall(r"python -m ((?:suite|tests)[\w.]*)", text):
        assert importlib.util.find_spec(module), module
    for grid in re.findall(r"--(?:grid|winners|learning) ([a-z]\w+)(?!\S*\.py)\b", text):
        assert grid in grids.names(), grid


def test_every_room_with_a_readme_is_in_the_list() -> None:
    links = re.findall(r"\]\(([^)]+README\.md)\)", (ROOT / "README.md").read_text())
    assert {ROOT / link for link in links} == {
        page for page in PAGES[1:] if page.name == "README.md" and page.parent.name not in ("papers", "gpu_speed")
    }


def test_numbers_of_the_record_stand_in_the_tables_that_it_links() -> None:
    page = ROOT / "results" / "reference" / "README.md"
    points = page.read_text().split("\n- ")[1:]
    assert points
    for point in points:
        tables = [
            (page.parent / link).read_text() for link in re.findall(r"\]\(([\w/]+(?:table|winners)\.md)\)", point)
        ]
        assert tables, point
        for number in re.findall(r"\d+\.\d\d(?: ± \d+\.\d\d)?", point):
            assert any(number in table for table in tables), number
