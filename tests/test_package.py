"""The wheel, installed outside the checkout: all verbs and one run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from test_architecture import FILES, imported, tree

from suite import command
from suite.report.statistics import published

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("verb", command.VERBS)
def test_each_verb_has_a_module_and_prints_help(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pruning-suite", verb, "--help"])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: pruning-suite {verb} ")
    assert "--plugins" in shown or verb in ("zoo", "study")


def test_users_install_only_what_the_suite_imports() -> None:
    """pandas imports tabulate, for tables in Markdown."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    distributions = packages_distributions()
    homes = {module.split(".")[0] for file in FILES for module in imported(tree(file))}
    used = {name.lower() for home in homes for name in distributions.get(home, [])}
    assert {Requirement(line).name for line in project["dependencies"]} - used == {"tabulate"}


@pytest.mark.slow
def test_the_wheel_runs_in_an_empty_environment(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("suite", "dsp", "baselines"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", str(tmp_path), str(source)]
    subprocess.run(wheel, check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    (wheel_file,) = tmp_path.glob("*.whl")
    subprocess.run(
        [*pip, "--python", str(python), "install", "--no-deps", "--no-index", "-q", str(wheel_file)], check=True
    )
    libraries = sysconfig.get_paths()["purelib"]  # dependencies only: path files in there are not read
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(f"{libraries}\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*words: str) -> str:
        done = subprocess.run(
            [str(tmp_path / "venv" / "bin" / words[0]), *words[1:]],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert Path(run("python", "-c", "import suite; print(suite.__file__)").strip()).is_relative_to(tmp_path)
    for verb in command.VERBS:
        assert "usage" in run("pruning-suite", verb, "--help")
    assert "l1_filter" in run("pruning-suite", "methods")
    run("pruning-suite", "launch", "--grid", "quickstart", "--smoke", "--only", "l1_filter", "--results", "results")
    assert list((tmp_path / "results" / "smoke" / "rows").glob("pruned-*.json"))
    assert "claim" in run("pruning-suite", "report", "--paper", "claims", "--results", "results", "--smoke").lower()
    count = "from suite.report.statistics import published; print(len(published.load()))"
    assert int(run("python", "-c", count)) == len(published.load()) > 0
