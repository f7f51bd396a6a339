"""Methods, models, data sets and grids in folders of one's own and in installed packages."""

from __future__ import annotations

import importlib.machinery
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_grid import call, start

from suite import data, grids, methods, models, records, registry, weights
from suite.launch import __main__ as launch
from suite.launch import snapshot, speed
from suite.methods import Broken
from suite.report.figures import structure
from suite.report.statistics import pairs
from suite.run import Context, execute, failure
from suite.schedule import Schedule
from suite.stages import Base

METHOD = """
from dataclasses import dataclass
from suite.contract import Criterion
from ._helper import POWER

@dataclass(frozen=True, kw_only=True)
class Mine(Criterion):
    \"\"\"Keeps filters with large weights.\"\"\"
    granularity = "filter"
    source = "an example"

    def score(self, model, graph, state, task):
        return {name: model.get_parameter(f"{name}.weight").abs().pow(POWER).sum((1, 2, 3)) for name in graph.convs}
"""
MODEL = """
from suite.models.cifar_vgg import CifarVGG
MODELS = {"tiny_of_mine": lambda classes: CifarVGG(("M", 8, "M", 16, "M"), classes)}
"""
DATA = """
from suite.data.digits import DATASETS as BUILT_IN
DATASETS = {"digits_of_mine": BUILT_IN["digits"]}
"""
GRID = """
from suite.grids import Grid, cross
from suite.schedule import Schedule
from suite.stages import Base, Timing

SHORT = Schedule(epochs=1, lr=0.05, weight_decay=5e-4, batch=32, epoch_images=64)
BASE = Base(data="digits_of_mine", model="tiny_of_mine", schedule=SHORT, seed=0)
GRID = Grid(title="Mine", about="An example.", timings=(Timing(batch=2, protocol="quick"),),
            runs=lambda: cross(bases=[BASE], method="mine", budgets=[0.5], finetune=SHORT))
"""
FILES = {
    "mine.py": METHOD,
    "_helper.py": "POWER = 1\n",
    "nets.py": MODEL,
    "pictures.py": DATA,
    "grid_of_mine.py": GRID,
    "train.py": "from pathlib import Path\nPath(__file__).with_name('was_run').touch()\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with one plug-in of each kind, a helper and a script."""
    where = tmp_path / "own"
    where.mkdir()
    for name, text in FILES.items():
        (where / name).write_text(text)
    monkeypatch.setenv(registry.VARIABLE, "")
    before = set(sys.modules)
    registry.add_folder(where)
    yield where
    registry.set_folders([])
    for name in [name for name in sys.modules if name not in before and name.startswith(registry.OUTSIDE)]:
        del sys.modules[name]


def test_each_kind_is_found_and_a_script_is_not_run(folder: Path) -> None:
    assert methods.get("mine").method_name() == "mine"
    assert models.build("tiny_of_mine", 3)
    assert data.load("digits_of_mine").classes == 10
    assert "grid_of_mine" in grids.names()
    (run,) = grids.runs_of(grids.load("grid_of_mine"))
    assert run.method == "mine"
    assert not (folder / "was_run").exists()
    assert not {"nets", "pictures", "grid_of_mine", "train"} & set(methods.discover())


def test_a_broken_file_stops_only_itself_and_is_named_by_every_kind(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "broken.py").write_text("import suite.contract\nMODELS = DATASETS = {}\nGRID = 1 / 0\n")
    (folder / "clash.py").write_text("MODELS = {'resnet8': lambda classes: None}\n")
    (folder / "l1_filter.py").write_text(METHOD)
    registry.set_folders([folder])
    reason = "ZeroDivisionError: division by zero (line 3)"
    path = str(folder / "broken.py")
    broken = methods.discover()["broken"]
    assert broken == Broken(file=path, reason=reason)
    for call_, noun in ((models.build, "model"), (lambda name, _: data.load(name), "data set")):
        with pytest.raises(ValueError, match=f"unknown {noun} 'nothing'.*{path} cannot be used: {re.escape(reason)}"):
            call_("nothing", 10)
    with pytest.raises(ValueError, match=f"{path} cannot be run: {re.escape(reason)}"):
        grids.load("broken")
    with pytest.raises(ValueError, match=r"clash\.py cannot be used: another file defines resnet8 already"):
        models.build("nothing", 10)
    assert models.build("resnet8", 10) is not None
    assert [path in record.getMessage() for record in caplog.records].count(True) == 1
    assert methods.get("l1_filter").__module__ == "baselines.l1_filter"
    assert "already; rename the file" in str(methods.discover()["suite.plugins.l1_filter"])
    assert methods.get("mine")


def test_odd_files_stop_only_themselves(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "gone.py").symlink_to(folder / "nothing.py")
    (folder / f"fast{importlib.machinery.EXTENSION_SUFFIXES[0]}").touch()
    (folder / "half.py").write_bytes(b"import suite\xff")
    latin = MODEL.replace("tiny_of_mine", "tiny_in_latin")
    (folder / "latin.py").write_text(f"# coding: latin-1\n# \xe9\n{latin}", encoding="latin-1")
    (folder / "numbers_only.py").write_text("DATASETS = {1: print}\n")
    registry.set_folders([folder])
    assert models.build("tiny_in_latin", 3)
    with pytest.raises(
        ValueError, match=r"half\.py cannot be used: .*numbers_only\.py cannot be used: DATASETS must be a"
    ):
        data.load("nothing")
    for name in ("gone.py", "fast.py"):
        unused = f"{folder / name} is not used: No such file or directory"
        assert [record.getMessage() for record in caplog.records].count(unused) == 1


def test_a_data_set_with_a_label_that_is_no_class_is_refused(folder: Path) -> None:
    (folder / "pictures.py").write_text(
        f"{DATA}from dataclasses import replace\n"
        "DATASETS['nine'] = lambda folder: replace(BUILT_IN['digits'](folder), classes=9)\n"
    )
    registry.set_folders([folder])
    with pytest.raises(ValueError, match="a label of the train images of nine is 9, but there are 9 classes, 0 to 8"):
        data.load("nine")


def test_a_model_with_fewer_logits_than_classes_is_refused_before_training(folder: Path, tmp_path: Path) -> None:
    (folder / "nets.py").write_text(MODEL.replace(", classes)", ", 4)"))
    registry.set_folders([folder])
    context, stage = Context(results=tmp_path / "results"), grids.load("grid_of_mine").runs()[0].base
    assert execute(stage, context) == "failed"
    why = failure(stage, context) or {}
    assert why["reason"].startswith("tiny_of_mine gives 4 logits, but digits_of_mine has 10 classes")


def test_a_launch_with_plugins_makes_rows_that_are_clean_and_name_their_files(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    arguments = ["--plugins", folder, "--grid", "grid_of_mine", "--results", tmp_path / "results"]
    process = start("suite.launch", *arguments, log=log)  # worker processes import the class by its module
    assert process.wait(240) == 0, log.read_text()
    (path,) = (tmp_path / "results" / "rows").glob("pruned-*.json")
    provenance = json.loads(path.read_text())["provenance"]
    assert provenance["dirty"] == records.source()["dirty"]
    own = {name for name in provenance["files"] if name.startswith("plugins/")}
    assert own == {"plugins/mine.py", "plugins/_helper.py", "plugins/nets.py", "plugins/pictures.py"}


def test_a_snapshot_has_the_plugins_and_jobs_import_them_from_there(folder: Path, tmp_path: Path) -> None:
    source = snapshot.take(tmp_path)
    copies = snapshot.plugin_folders(source)
    assert sorted(path.name for path in copies[0].iterdir()) == sorted(FILES)
    (folder / "_helper.py").write_text("POWER = 2\n")
    assert snapshot.take(tmp_path) != source
    code = "from suite import methods; print(methods.get('mine').__module__, __import__('suite').__file__)"
    environment = {**os.environ, registry.VARIABLE: str(copies[0]), "PYTHONPATH": str(source)}
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == ["suite.plugins.mine", str(source / "suite" / "__init__.py")]


def test_an_installed_package_adds_plugins_by_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "somebodys_pruning"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "method.py").write_text(METHOD.replace("from ._helper", "from somebodys_pruning.helper"))
    (package / "helper.py").write_text("POWER = 3\n")
    (package / "nets.py").write_text(MODEL.replace("tiny_of_mine", "tiny_of_theirs"))
    info = tmp_path / "somebodys_pruning-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys-pruning\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[pruning_suite.methods]\nsomebodys = somebodys_pruning.method\ngone = somebodys_pruning.missing\n"
        "[pruning_suite.models]\nnets = somebodys_pruning.nets\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(registry.VARIABLE, "")
    importlib.invalidate_caches()
    registry.set_folders([])
    try:
        kind = methods.get("somebodys")
        assert kind.method_name() == "somebodys"
        assert models.build("tiny_of_theirs", 2)
        with pytest.raises(ValueError, match=r"entry point gone = somebodys_pruning\.missing: ModuleNotFoundError"):
            methods.get("gone")
        files = records.provenance("cpu", [kind.__module__])["files"]
        assert {"somebodys_pruning/method.py", "somebodys_pruning/helper.py"} <= set(files)
    finally:
        monkeypatch.undo()
        registry.set_folders([])


CLASS_IN_A_GRID = GRID.replace("digits_of_mine", "digits").replace("tiny_of_mine", "vgg6") + (
    "\nfrom baselines.l1_filter import L1Filter\nfrom suite.stages import Pruned\n"
    "class Own(L1Filter):\n    pass\n"
    "GRID = Grid(title='x', about='x', runs=lambda: [Pruned(base=BASE, settings=Own(), learning=None,\n"
    "    budget=__import__('suite.plan').plan.Budget(share=0.5), finetune=SHORT, seed=0)])\n"
)


def test_a_class_in_a_grid_file_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "grid.py").write_text(CLASS_IN_A_GRID)
    arguments = ["--grid", tmp_path / "grid.py", "--results", tmp_path / "results"]
    assert call(launch.main, *arguments) == 2
    assert "the method Own is a class of" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_a_method_and_its_grid_may_share_a_file_in_a_folder_of_plugins(folder: Path) -> None:
    (folder / "both.py").write_text(METHOD + GRID.replace('method="mine"', 'method="both"'))
    registry.set_folders([folder])
    for name in ("both", str(folder / "both.py")):
        (run,) = grids.runs_of(grids.load(name))
        assert type(run.settings) is methods.get("both")
        assert run.method == "both"


def test_an_added_folder_decides_if_its_method_is_a_rival(folder: Path, tmp_path: Path) -> None:
    assert pairs._is_rival("placebo"), "no file defines it yet"
    later = tmp_path / "later"
    later.mkdir()
    (later / "placebo.py").write_text(
        METHOD.replace("._helper", ".mine").replace("    source", "    control = True\n    source")
    )
    registry.add_folder(later)
    assert not pairs._is_rival("placebo")


@pytest.mark.parametrize(
    "macs",
    [
        lambda: speed.size_of("tiny_of_mine", 10, (3, 32, 32)).macs,
        lambda: structure._graph("tiny_of_mine", 10, (3, 32, 32)).dense_macs.total,
    ],
)
def test_another_folder_replaces_a_network_of_the_same_name(
    folder: Path, tmp_path: Path, macs: Callable[[], int]
) -> None:
    before = macs()
    wider = tmp_path / "wider"
    wider.mkdir()
    (wider / "wide_nets.py").write_text(MODEL.replace("16", "32"))
    registry.set_folders([wider])
    assert macs() > before


@pytest.mark.parametrize("use", [methods.get, models.builder, data.load, data.fetch])
def test_an_unknown_plugin_names_the_option_that_adds_files(use: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match=r"unknown .*; files of your own are found by --plugins FOLDER"):
        use("nothing")


@pytest.mark.parametrize("use", [weights.check, lambda name: registry.pick("logger", name, {"wandb": 1})])
def test_no_plugin_adds_weights_or_loggers(use: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match=r"unknown .*choose from: ") as raised:
        use("nothing")
    assert "--plugins" not in str(raised.value)


def test_a_missing_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(launch.main, "--plugins", "/not/there", "--grid", "quickstart") == 2
    error = capsys.readouterr().err
    assert "--plugins /not/there: there is no such folder" in error
    assert error.count("\n") == 1


def test_a_dry_run_names_a_network_that_cannot_be_pruned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "attention.py").write_text(
        "from torch import nn\n"
        "class Seen(nn.Module):\n"
        "    def forward(self, x):\n"
        "        assert x.shape[-1] == 224, 'Wrong image height'\n"
        "        return x\n"
        "MODELS = {'seen': lambda classes: Seen()}\n"
    )
    grid = folder / "grid_of_mine.py"
    grid.write_text(grid.read_text().replace("tiny_of_mine", "seen"))
    registry.set_folders([folder])
    call(launch.main, "--grid", "grid_of_mine", "--results", folder / "results", "--dry-run")
    assert (
        "refused: digits_of_mine/seen: Seen cannot be traced by torch.fx: Wrong image height" in capsys.readouterr().out
    )


def test_keys_of_built_in_methods_do_not_depend_on_plugins(folder: Path) -> None:
    short = Schedule(epochs=1, lr=0.1, weight_decay=0.0)
    base = Base(data="digits", model="vgg6", schedule=short, seed=0)
    (run,) = grids.cross(bases=[base], method="l1_filter", budgets=[0.5], finetune=short)
    registry.set_folders([])
    (again,) = grids.cross(bases=[base], method="l1_filter", budgets=[0.5], finetune=short)
    assert run.key == again.key
