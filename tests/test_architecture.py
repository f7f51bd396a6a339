"""Imports point one way, methods are known only to grids, and a few things are done nowhere."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import baselines
import suite
from suite import methods

ROOT = Path(suite.__file__).parent.parent
HOMES = ("suite", "dsp", "baselines")
FILES = sorted(path.relative_to(ROOT).as_posix() for home in HOMES for path in (ROOT / home).rglob("*.py"))
SUITE = [file for file in FILES if file.startswith("suite/")]

LAYERS: tuple[tuple[str, ...], ...] = (
    ("suite.files", "suite.sandbox", "suite.interrupt"),
    ("suite.jsonfile",),
    (
        "suite.private_api",
        "suite.lease",
        "suite.registry",
        "suite.schedule",
        "suite.progress",
    ),
    ("suite.loggers",),
    ("suite.plan", "suite.cudagraph", "suite.arithmetic", "suite.cli", "suite.plugins"),
    ("suite.timing", "suite.models", "suite.distributed"),
    ("suite.graph",),
    ("suite.refill", "suite.knapsack"),
    ("suite.select", "suite.pack"),
    ("suite.contract", "suite.export"),
    ("suite.data", "suite.methods"),
    ("suite.weights", "suite.trainer", "suite.records"),
    ("suite.train",),
    ("suite.measure",),
    ("suite.stages",),
    ("suite.run", "suite.grids", "suite.api"),
    ("suite.run.__main__", "suite.report", "suite.prefetch", "suite.new"),
    ("suite.zoo",),
    ("suite.launch", "suite.study"),
    ("suite.command",),
)
"""From the bottom to the top. A part of the suite imports parts of lower layers only, and itself."""

METHOD_MAY_IMPORT = {
    "suite.contract",
    "suite.graph",
    "suite.select",
    "suite.knapsack",
    "torch",
    "numpy",
    "scipy",
    "sklearn",
}
LIBRARIES = (
    "torch torchvision numpy scipy sklearn pandas matplotlib PIL fvcore safetensors rich filelock submitit "
    "tabulate jinja2 timm torch_tensorrt psutil pynvml onnx onnxruntime openvino triton msgspec"
)


@functools.cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(), file)


def module_of(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_of(file): file for file in FILES}


def imported(node: ast.AST) -> Iterator[str]:
    """The modules that are imported anywhere below `node`; `from package import module` gives the module."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            for alias in child.names:
                full = f"{child.module}.{alias.name}"
                yield full if full in MODULES else str(child.module)
        else:
            yield from imported(child)


def part_of(module: str) -> str:
    """The part of the suite that a module belongs to: the longest name in `LAYERS`."""
    names = [name for layer in LAYERS for name in layer if module == name or module.startswith(f"{name}.")]
    assert names, f"{module} is in none of the layers: give it its place in this file"
    return max(names, key=len)


def level(part: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if part in layer)


def calls(file: str) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_there_is_something_to_check() -> None:
    assert {"suite/contract.py", "dsp/method.py", "baselines/_template.py", "suite/pack/network.py"} <= set(FILES)
    assert set(imported(tree("suite/graph/channels.py"))) >= {"torch", "suite.plan", "suite.graph.table"}


@pytest.mark.parametrize("file", [file for file in SUITE if file != "suite/__init__.py"])
def test_the_suite_imports_downwards_only(file: str) -> None:
    own = part_of(module_of(file))
    for module in imported(tree(file)):
        home = module.split(".")[0]
        if home != "suite":
            assert home in sys.stdlib_module_names | {*LIBRARIES.split(), "baselines"}, module
            assert home != "baselines" or file == "suite/methods.py"
        else:
            part = part_of(module)
            assert part == own or level(part) < level(own), f"{file} imports {module}"


@pytest.mark.parametrize("file", [file for file in FILES if not file.startswith("suite/")])
def test_a_method_imports_the_contract_and_mathematics_only(file: str) -> None:
    package = file.split("/")[0]
    for module in imported(tree(file)):
        home = module.split(".")[0]
        allowed = (
            home in sys.stdlib_module_names
            or home in METHOD_MAY_IMPORT
            or module in METHOD_MAY_IMPORT
            or home == package
        )
        assert allowed or (file == "dsp/parity.py" and home == "rich"), f"{file} imports {module}"


@pytest.mark.parametrize("file", [file for file in SUITE if not file.startswith("suite/grids/")])
def test_the_suite_names_no_method(file: str) -> None:
    names = set(methods.discover())
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names:
            assert (file, node.value) == ("suite/methods.py", "dsp"), f"{file}:{node.lineno} names {node.value}"
    for module in imported(tree(file)):
        assert module.split(".")[0] != "dsp", f"{file} imports {module}"
        assert not module.startswith("baselines."), f"{file} imports {module}"


@pytest.mark.parametrize("file", FILES)
def test_what_is_done_nowhere(file: str) -> None:
    for name, call in calls(file):
        where = f"{file}:{call.lineno}"
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name in ("torch.load", "torch.hub.load_state_dict_from_url"):
            assert keywords.get("weights_only") == "True", f"{where} unpickles"
        assert name not in ("print", "yaml.load", "pickle.load", "pickle.loads", "eval", "exec", "os.system"), where
        assert keywords.get("shell") != "True", where
    for module in imported(tree(file)):
        assert module.split(".")[0] not in ("pickle", "yaml"), f"{file} imports {module}"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_our_baselines_are_the_ones_that_are_imported(elsewhere: bool, tmp_path: Path) -> None:
    """Another well-known package has the same name."""
    code = f"from importlib.util import find_spec\nfor name in {HOMES}: print(find_spec(name).origin)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path if elsewhere else ROOT, capture_output=True, text=True, check=True
    )
    assert {Path(file).parent.parent for file in done.stdout.split()} == {ROOT}
    assert Path(str(baselines.__file__)).parent.parent == ROOT
