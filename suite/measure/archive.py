"""Archives of other people: their kind, and the parts that would execute code when loaded.

An exported program (.pt2) can hold pickled objects, names of Python functions, and text that torch compiles. `checked_program`
returns a copy without all three. The copy is made from the checked bytes, so torch reads what was checked.
"""

from __future__ import annotations

import ast
import io
import json
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

Kind = Literal["packed", "torchscript", "exported", "onnx"]

PROGRAM_JSON = re.compile(r"models/\w+\.json|serialized_exported_program\.json")
CONFIG_JSON = re.compile(r"data/(weights|constants)/\w+_config\.json")
PICKLES = re.compile(r"data/sample_inputs/\w+\.pt|serialized_\w+\.pt")
"""Records that torch unpickles. torch itself tries `weights_only=True`, and unpickles anything if that fails."""
TENSORS = re.compile(r"data/weights/weight_\d+|data/constants/tensor_\d+")
PLAIN = re.compile(r"archive_format|archive_version|byteorder|version|\.data/\w+")
OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims)\.(?!save\b|load\b|from_file\b)\w+(\.\w+)?"
    r"|_operator\.(add|sub|mul|floordiv|mod|truediv|pow|neg|pos|abs|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.(ceil|floor|trunc|sqrt)|torch\.sym_(int|float|not|max|min|ite)"
)
"""Functions that a node may call. None of them reads or writes files."""
SYMPY = set(
    re.findall(
        r"\w+",
        "Symbol Integer Float Rational Add Mul Pow Max Min Mod PythonMod FloorDiv ModularIndexing CleanDiv CeilDiv "
        "IntTrueDiv FloatTrueDiv ToFloat Eq Ne Lt Le Gt Ge Equality Unequality StrictLessThan LessThan StrictGreaterThan "
        "GreaterThan And Or Not true false True False",
    )
)
"""Names in expressions of sizes, besides symbols such as s0."""
SYMBOL = re.compile(r"[a-z]{1,3}\d+")
WORD = re.compile(r"[\w.+\-]*")
"""Names that torch may put into the text of a function: without quotes, brackets, spaces and line ends, they call nothing."""
CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict"}
SCRIPT_WRITES = re.compile(r"torch\.(save|from_file)\(|aten::(save|from_file)|ops\.aten\.(save|from_file)")


def kind_of(path: Path) -> Kind:
    """Return the kind of network in a file; its name is not read.

    Raises FileNotFoundError, and ValueError for other things than files and for archives without a network.
    """
    check_file(path)
    if not _is_zip(path):
        with path.open("rb") as file:
            start = file.read(9)
        return "packed" if len(start) == 9 and start[8:] == b"{" else "onnx"
    names = set(_records(path))
    if any(name.startswith("code/") for name in names):
        return "torchscript"
    if names & {"archive_format", "serialized_exported_program.json"}:
        return "exported"
    raise ValueError(
        f"{path} holds neither a TorchScript network nor an exported program; weights alone are no network: build the "
        "network and save it with torch.jit.save or torch.export.save"
    )


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is a damaged archive: {error}") from error


def check_file(path: Path) -> None:
    """Raise FileNotFoundError if there is nothing at `path`, ValueError if it is no regular file."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise FileNotFoundError(
            f"{path} does not exist; give a packed, TorchScript, exported (.pt2) or ONNX file"
        ) from error
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device"}
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is {kinds.get(stat.S_IFMT(mode), 'no file')}, not a file with a network")


def check_script(path: Path) -> None:
    """Raise ValueError if the code of a TorchScript file calls a function that writes files."""
    for name, content in _contents(path):
        if name.startswith("code/") and (call := SCRIPT_WRITES.search(content.decode(errors="replace"))):
            raise ValueError(f"{path} writes files ({call[0].rstrip('(')} in {name}); {_TRUST}")


def checked_program(path: Path) -> io.BytesIO:
    """Return a copy of an exported program that executes no code when torch loads it.

    The copy has no metadata of nodes and no guards. Raises ValueError naming the part that would execute code.
    """
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w") as archive:
        for name, content in _contents(path):
            archive.writestr(f"archive/{name}", _checked(path, name, content))
    copy.seek(0)
    return copy


_TRUST = "if you trust its author, --trust runs it"


def _checked(path: Path, name: str, content: bytes) -> bytes:
    """Return a record of an exported program. Raises ValueError if the record would execute code."""
    if PROGRAM_JSON.fullmatch(name):
        return json.dumps(_plain(_json(path, name, content), f"{path}: {name}")).encode()
    if CONFIG_JSON.fullmatch(name):
        config = _json(path, name, content)
        _check_config(config, f"{path}: {name}")
        return content
    if PICKLES.fullmatch(name):
        try:
            if content:
                torch.load(io.BytesIO(content), weights_only=True)
        except Exception as error:  # unpickling raises errors of any class
            raise ValueError(f"{path}: {name} has pickled objects, which execute code; {_TRUST}") from error
        return content
    if TENSORS.fullmatch(name) or PLAIN.fullmatch(name):
        return content
    raise ValueError(f"{path}: {name} is no part of a plain exported program; {_TRUST}")


def _json(path: Path, name: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {name} is damaged: it is no JSON") from error


def _check_config(config: Any, where: str) -> None:
    """Raise ValueError if a weight is pickled or lies outside of the archive."""
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ValueError(f"{where} is damaged: it lists no tensors")
    for key, entry in entries.items():
        if entry.get("use_pickle") is not False:
            raise ValueError(f"{where}: {key!r} is pickled, which executes code; {_TRUST}")
        if not re.fullmatch(r"(weight|tensor)_\d+", str(entry.get("path_name"))) or not WORD.fullmatch(key):
            raise ValueError(f"{where}: {key!r} is no plain tensor; {_TRUST}")


def _plain(value: Any, where: str, key: str = "") -> Any:
    """Return a program's JSON without metadata and guards.

    Raises ValueError for text that torch would execute.
    """
    if key in ("metadata", "custom_obj_values"):
        if key == "custom_obj_values" and value:
            raise ValueError(f"{where} has objects of classes of its author; {_TRUST}")
        return {}
    if key == "guards_code":
        return []
    if isinstance(value, dict):
        if bad := next((name for name in value if not WORD.fullmatch(name)), None):
            raise ValueError(f"{where} has a name that is none: {bad[:60]!r}; {_TRUST}")
        return {name: _plain(inner, where, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, where, key) for inner in value]
    if isinstance(value, str) and not _is_plain(value, key):
        raise ValueError(f"{where} has {key} = {value[:60]!r}, which may execute code; {_TRUST}")
    return value


def _is_plain(text: str, key: str) -> bool:
    """Return True if torch executes nothing for this text at this key."""
    if key == "target":
        return OPERATORS.fullmatch(text) is not None
    if key == "expr_str":
        return _is_expression(text)
    if key in ("in_spec", "out_spec"):
        return _is_tree(text)
    return key == "as_string" or WORD.fullmatch(text) is not None


def _is_expression(text: str) -> bool:
    """Return True for arithmetic of symbols: no attributes, no strings but names of symbols."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    if len(text) > 10_000:
        return False
    arithmetic = (
        *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop),
        *(ast.cmpop, ast.keyword, ast.Load),
    )
    for node in nodes:
        if isinstance(node, ast.Call):
            good = isinstance(node.func, ast.Name) and node.func.id in SYMPY
        elif isinstance(node, ast.Name):
            good = node.id in SYMPY or SYMBOL.fullmatch(node.id) is not None
        elif isinstance(node, ast.Constant):
            good = SYMBOL.fullmatch(node.value) is not None if isinstance(node.value, str) else True
        else:
            good = isinstance(node, arithmetic) and not isinstance(node, ast.Pow)
        if not good:
            return False
    return True


def _is_tree(text: str) -> bool:
    """Return True for a nesting of tuples, lists and dicts whose keys are plain names."""

    def good(node: Any) -> bool:
        if not isinstance(node, dict) or node.get("type") not in CONTAINERS:
            return False
        context = node.get("context")
        try:
            keys = json.loads(context) if isinstance(context, str) else context
        except ValueError:
            return False
        plain = keys is None or (isinstance(keys, list) and all(isinstance(k, str) and WORD.fullmatch(k) for k in keys))
        children = node.get("children_spec")
        return plain and isinstance(children, list) and all(map(good, children))

    try:
        tree = json.loads(text)
        return text == "" or (isinstance(tree, list) and len(tree) == 2 and type(tree[0]) is int and good(tree[1]))
    except (ValueError, RecursionError):
        return text == ""


def _records(path: Path) -> list[str]:
    """Return the records' names without their common folder. Raises ValueError if the archive is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is a damaged archive: {error}") from error
    if len(set(names)) < len(names):
        raise ValueError(f"{path} is a damaged archive: it has two records of one name")
    return [_record(name) for name in names]


def _record(name: str) -> str:
    """Return a record's name inside of the archive's folder.

    Archives of torch before 2.8 have no folder.
    """
    head, _, tail = name.partition("/")
    return tail if tail and head not in ("code", "extra", "data", "models", ".data") else name


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each record. Raises ValueError if the archive is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    yield _record(entry.filename), archive.read(entry)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} is a damaged archive: {error}") from error


__all__ = ["Kind", "check_file", "check_script", "checked_program", "kind_of"]
