"""Network files of other people: no code of theirs runs at loading, they write nothing, they end; each bad file is one line."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import psutil
import pytest
import torch
from safetensors.torch import save_file
from test_measure_any import SHAPE, Gathered, archive
from tiny_grid import FILE, call, wait_for

from suite import sandbox
from suite.measure import __main__ as command
from suite.measure import networks
from suite.models import build

ROOT = FILE.parent.parent
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*is deprecated", "ignore:Duplicate name")
confined = pytest.mark.skipif(not sandbox.is_supported(), reason="needs Landlock and seccomp")


class Touch:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


Records = dict[str, bytes]
MODEL = "archive/models/model.json"


def program(records: Records, change: Callable[[Any], object]) -> None:
    """Change the JSON of an exported program."""
    value = json.loads(records[MODEL])
    change(value)
    records[MODEL] = json.dumps(value).encode()


def everywhere(value: Any, key: str, text: str) -> None:
    """Replace the text at each key of this name."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key and isinstance(inner, str):
                value[name] = text
            everywhere(inner, key, text)
    elif isinstance(value, list):
        for inner in value:
            everywhere(inner, key, text)


def evil_programs(mark: Path) -> dict[str, Callable[[Records], object]]:
    """Return changes of an exported program; torch alone executes code of most of them."""
    code = f"__import__('os').mkdir({str(mark)!r})"
    config = "archive/data/weights/model_weights_config.json"

    def pickled(records: Records) -> None:
        about = json.loads(records[config])
        next(iter(about["config"].values()))["use_pickle"] = True
        records[config] = json.dumps(about).encode()
        records["archive/data/weights/weight_0"] = pickle.dumps(Touch(mark))

    def renamed(records: Records) -> None:
        about = json.loads(records[config])
        next(iter(about["config"].values()))["path_name"] = "../../../../etc/passwd"
        records[config] = json.dumps(about).encode()

    def custom(records: Records) -> None:
        records["archive/data/constants/opaque_obj_0"] = pickle.dumps(Touch(mark))

    def node(value: Any, **changes: Any) -> None:
        value["graph_module"]["graph"]["nodes"][0].update(changes)

    def size(value: Any, expression: str) -> None:
        for tensor in value["graph_module"]["graph"]["tensor_values"].values():
            tensor["sizes"] = [{"as_expr": {"expr_str": expression, "hint": None}}]

    return {
        "sample inputs": lambda r: r.update({"archive/data/sample_inputs/model.pt": pickle.dumps(Touch(mark))}),
        "pickled weight": pickled,
        "weight elsewhere": renamed,
        "custom object": custom,
        "size that calls": lambda r: program(r, lambda v: size(v, code)),
        "size with attributes": lambda r: program(r, lambda v: size(v, "s0.__class__.__mro__")),
        "size with a string": lambda r: program(r, lambda v: size(v, f"Symbol({code!r})")),
        "range that calls": lambda r: program(r, lambda v: v["range_constraints"].update({code: {}})),
        "function of torch": lambda r: program(r, lambda v: node(v, target="torch.os.mkdir")),
        "function that writes": lambda r: program(r, lambda v: node(v, target="torch.ops.aten.save")),
        "extension": lambda r: program(r, lambda v: node(v, target="#evil:op")),
        "name with code": lambda r: program(r, lambda v: everywhere(v, "name", f"x={code}")),
        "parameter with code": lambda r: program(r, lambda v: everywhere(v, "parameter_name", f"x\n{code}")),
        "tree with code": lambda r: program(r, lambda v: everywhere(v, "in_spec", f'[1, {{"type": "{code}"}}]')),
        "compiled library": lambda r: r.update({"archive/data/aotinductor/model/x.so": b"\x7fELF"}),
    }


@pytest.mark.parametrize("kind", evil_programs(Path()))
def test_an_exported_program_executes_nothing_at_loading(kind: str, tmp_path: Path) -> None:
    path, mark = archive(tmp_path, "exported"), tmp_path / "executed"
    with zipfile.ZipFile(path) as file:
        records = {entry.filename: file.read(entry) for entry in file.infolist()}
    evil_programs(mark)[kind](records)
    evil = tmp_path / "evil.pt2"
    with zipfile.ZipFile(evil, "w") as file:
        for name, content in records.items():
            file.writestr(name, content)
    with pytest.raises(ValueError, match="^" + str(evil)) as raised:
        networks.load(str(evil))
    assert not mark.exists()
    assert "--trust" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_files_are_dangerous_without_the_check(tmp_path: Path) -> None:
    path, mark = archive(tmp_path, "exported"), tmp_path / "executed"
    with zipfile.ZipFile(path) as file:
        records = {entry.filename: file.read(entry) for entry in file.infolist()}
    evil_programs(mark)["pickled weight"](records)
    evil = tmp_path / "evil.pt2"
    with zipfile.ZipFile(evil, "w") as file:
        for name, content in records.items():
            file.writestr(name, content)
    with pytest.raises(ValueError, match="cannot be read"):
        networks.load(str(evil), trust=True)
    assert mark.exists()


class Writer(torch.nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.fc = torch.nn.Linear(192, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, self.path)
        return self.fc(x.flatten(1))


def script(path: Path, target: Path) -> Path:
    """Write a network that writes a file."""
    torch.jit.save(torch.jit.script(Writer(str(target))), str(path))
    return path


def measured(*arguments: object, seconds: float = 170) -> subprocess.CompletedProcess[str]:
    """Run `python -m suite.measure` as a command."""
    words = [sys.executable, "-W", "ignore", "-m", "suite.measure", *map(str, arguments)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, timeout=seconds, cwd=ROOT, env=environment)


def test_a_script_that_writes_is_refused(tmp_path: Path) -> None:
    path = script(tmp_path / "x.ts", tmp_path / "written")
    with pytest.raises(ValueError, match=r"writes files \(torch.save in code/.*--trust"):
        networks.load(str(path))


@confined
def test_a_process_that_is_confined_writes_nothing_and_has_no_network(tmp_path: Path) -> None:
    scratch, outside = tmp_path / "scratch", tmp_path / "outside"
    scratch.mkdir()
    outside.mkdir()
    (outside / "old").write_text("old")
    code = f"""
import os, socket, sys
old, new = {str(outside / "old")!r}, {str(outside / "new")!r}
attempts = dict(
    create=lambda: open(new, "w"), append=lambda: open(old, "a"), truncate=lambda: os.truncate(old, 0),
    unlink=lambda: os.unlink(old), rename=lambda: os.rename(old, new), mkdir=lambda: os.mkdir(new),
    symlink=lambda: os.symlink(old, new), chmod=lambda: os.chmod(old, 0o777), chown=lambda: os.chown(old, 1, 1),
    link=lambda: os.link(old, {str(scratch / "link")!r}), socket=socket.socket, unix=lambda: socket.socket(socket.AF_UNIX),
    kill=lambda: os.kill(os.getppid(), 0), memory=lambda: bytearray(2 << 30),
    child=lambda: os.system("touch " + new) and sys.exit(1),
)
for name, attempt in attempts.items():
    try:
        attempt()
        print("allowed:", name)
    except (OSError, MemoryError, SystemExit):
        pass
open({str(scratch / "file")!r}, "w").write("x")
print([line.split()[1] for line in open("/proc/self/status") if line.startswith(("CapEff", "CapPrm"))])
"""
    words = sandbox.command([sys.executable, "-c", code], memory_bytes=1 << 30, writable=[scratch])
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{['0' * 16] * 2}\n", (done.stdout, done.stderr)
    assert (scratch / "file").read_text() == "x"
    assert [path.name for path in outside.iterdir()] == ["old"]
    assert (outside / "old").read_text() == "old"


@confined
def test_a_network_that_never_ends_is_stopped(tmp_path: Path) -> None:
    path = tmp_path / "x.ts"
    torch.jit.save(torch.jit.script(Hanging()), str(path))
    began = time.monotonic()
    done = measured(path, "--shape", *SHAPE, "--timeout", 2)
    assert done.returncode == 2
    first, last = done.stderr.splitlines()
    assert "a network file is a program; it runs with no writes outside of a scratch folder, no network, and" in first
    assert "had not ended its first pass after 2 s" in last
    assert "--timeout S waits longer" in last
    assert time.monotonic() - began < 150


class Hanging(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while bool(x.sum() < 1e30):
            x = x * 1
        return x.flatten(1)


@confined
def test_ctrl_c_stops_a_network_that_never_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.ts"
    torch.jit.save(torch.jit.script(Hanging()), str(path))
    words = [sys.executable, "-m", "suite.measure", str(path), "--shape", *map(str, SHAPE)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT, process_group=0) as process:
        assert process.stderr is not None
        process.stderr.readline()
        wait_for(lambda: any(child.cpu_times().user > 4 for child in psutil.Process(process.pid).children()))
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read().strip() == "suite.measure: stopped"


@confined
def test_a_trusted_script_may_write_and_others_may_not(tmp_path: Path) -> None:
    path = script(tmp_path / "x.ts", tmp_path / "written")
    done = measured(path, "--shape", *SHAPE, "--batch", "--trust", "--json")
    assert done.returncode == 0, done.stderr
    assert "runs without confinement (--trust)" in done.stderr
    assert json.loads(done.stdout)["params"] == 1930
    assert (tmp_path / "written").exists()


# ---- damaged files: one line each ------------------------------------------------------------------------------------


def packed_with(header: Any, tensors: dict[str, torch.Tensor] | None = None) -> Callable[[Path], None]:
    """Return a writer of a safetensors file with this header."""
    text = header if isinstance(header, str) else json.dumps(header)
    return lambda path: save_file(tensors or {"weights/x": torch.zeros(2)}, path, {"packed": text})


def onnx_without_inputs(path: Path) -> None:
    make, float32 = onnx.helper, onnx.TensorProto.FLOAT
    weight = make.make_tensor("w", float32, [1, 10], [0.0] * 10)
    result = make.make_tensor_value_info("y", float32, [1, 10])
    graph = make.make_graph([make.make_node("Relu", ["w"], ["y"])], "g", [], [result], [weight])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)


def with_damaged_directory(path: Path) -> None:
    content = bytearray(archive(path.parent, "scripted").read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 28 : at + 30] = b"\xff\xff"
    path.write_bytes(content)


def with_two_of_a_name(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for content in ("pt2", "pt3"):
            file.writestr("archive/archive_format", content)


GOOD = {"model": "resnet8", "classes": 10, "input_shape": [3, 32, 32]}
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (Path.mkdir, "is a folder"),
    "FIFO": (os.mkfifo, "is a FIFO"),
    "header is a list": (packed_with([]), "its header is wrong"),
    "header is no JSON": (packed_with("{"), "its header is wrong"),
    "header is nested": (packed_with("[" * 5000 + "]" * 5000), "its header is wrong"),
    "model is null": (packed_with({**GOOD, "model": None}), "its header is wrong"),
    "model is a list": (packed_with({**GOOD, "model": ["resnet8"]}), "its header is wrong"),
    "model is unknown": (packed_with({**GOOD, "model": "../x"}), "unknown model"),
    "classes in words": (packed_with({**GOOD, "classes": "ten"}), "its header is wrong"),
    "very many classes": (packed_with({**GOOD, "classes": 10**12}), "its header is wrong"),
    "no shape": (packed_with({"model": "resnet8", "classes": 10}), "its header is wrong"),
    "shape of two": (packed_with({**GOOD, "input_shape": [3, 8]}), "its header is wrong"),
    "shape of strings": (packed_with({**GOOD, "input_shape": ["3", "8", "8"]}), "its header is wrong"),
    "other weights": (packed_with(GOOD), "does not fit resnet8"),
    "no weights": (packed_with(GOOD, {"plan/x": torch.zeros(2)}), "its plan is wrong"),
    "plan with another field": (packed_with(GOOD, {"plan/a/kept": torch.zeros(2)}), "its plan is wrong"),
    "plan with a missing field": (packed_with(GOOD, {"plan/a/kept_GI": torch.zeros(2, 2).bool()}), "its plan is wrong"),
    "no weights but a plan": (packed_with(GOOD, {"other": torch.zeros(2)}), "has no weights"),
    "safetensors cut short": (lambda path: path.write_bytes(b"\x10" + bytes(7) + b'{"a'), "no packed network"),
    "safetensors header of a terabyte": (
        lambda path: path.write_bytes(b"\xff" * 6 + bytes(2) + b"{"),
        "packed network",
    ),
    "ONNX without inputs": (onnx_without_inputs, "takes 0 inputs"),
    "damaged directory": (with_damaged_directory, "archive is corrupted"),
    "two records of a name": (with_two_of_a_name, "two records of one name"),
    "empty archive": (lambda path: zipfile.ZipFile(path, "w").close(), "neither a TorchScript network"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "is no network that is understood"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_line(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, message = BAD[kind]
    path = tmp_path / "network"
    write(path)
    assert call(command.main, path, "--shape", *SHAPE, "--report-to", -1) == 2
    error = capsys.readouterr().err
    assert error.startswith("suite.measure: ")
    assert message in error
    assert error.count("\n") == 1


def refusal(path: Path) -> str:
    """Return the message of a refused network, "" if the network runs."""
    try:
        networks.check_fits(networks.load(str(path)), SHAPE)
    except ValueError as error:
        return str(error)
    return ""


def test_damage_anywhere_is_one_line(tmp_path: Path) -> None:
    """Bytes of good files are replaced at seeded places; a file loads, or is refused in one line."""
    save_file(
        {f"weights/{k}": v for k, v in build("resnet8", 10).state_dict().items()},
        tmp_path / "p",
        {"packed": json.dumps(GOOD)},
    )
    draw = torch.Generator().manual_seed(0)
    files = [archive(tmp_path, "scripted"), archive(tmp_path, "exported"), tmp_path / "p"]
    refused = 0
    for number in range(45):
        content = bytearray(files[number % 3].read_bytes())
        places = torch.randint(len(content), (4,), generator=draw).tolist()
        for place in (*places, number * 7 % 400, -(number % 60) - 1):
            content[place] = int(torch.randint(256, (1,), generator=draw))
        path = tmp_path / "damaged"
        path.write_bytes(content[: len(content) - number % 5 * 100])
        if message := refusal(path):
            refused += 1
            assert "\n" not in message
    assert refused > 20


def test_an_onnx_file_that_lists_weights_first_is_counted(tmp_path: Path) -> None:
    make, float32 = onnx.helper, onnx.TensorProto.FLOAT
    sizes = {"w": [4, 3, 3, 3], "g": [7, 256]}
    weights = [make.make_tensor(n, float32, d, torch.rand(d).flatten().tolist()) for n, d in sizes.items()]
    nodes = [
        make.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        make.make_node("Flatten", ["c"], ["f"]),
        make.make_node("Gemm", ["f", "g"], ["y"], transB=1),
    ]
    inputs = [make.make_tensor_value_info(n, float32, d) for n, d in {**sizes, "x": [2, 3, 8, 8]}.items()]
    ends = [make.make_tensor_value_info("y", float32, [2, 7])]
    model = make.make_model(
        make.make_graph(nodes, "g", inputs, ends, weights), opset_imports=[make.make_opsetid("", 17)]
    )
    model.ir_version = 3
    onnx.save(model, tmp_path / "x.onnx")
    assert networks.load(str(tmp_path / "x.onnx")).macs(SHAPE) == 4 * 27 * 64 + 7 * 256


def test_a_network_that_is_good_is_read_as_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.rand(2, *SHAPE)
    network = Gathered().eval()
    with (tmp_path / "x.pt2").open("wb") as file:
        torch.export.save(torch.export.export(network, (images,)), file)
    loaded = networks.load(str(tmp_path / "x.pt2"))
    with torch.no_grad():
        assert torch.equal(loaded.module(images), network(images))
