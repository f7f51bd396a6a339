"""JSON of any origin: the place where files are parsed and types are checked.

Checked types are dataclasses, TypedDicts and plain annotations, by msgspec. 10,000 rows of 2.4 kB take 1.8 s on one core;
`json.loads` alone takes 0.8 s.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from suite.files import open_regular

T = TypeVar("T")
DEEPEST = 50
"""Nesting of values that readers can follow without reaching Python's recursion limit."""
LARGEST_BYTES = 256 << 20

Name = Annotated[str, msgspec.Meta(pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]*\Z", max_length=255)]
"""A plain file name: inside of its folder, and not hidden."""
Hex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]*\Z")]


def read(path: Path, kind: type[T]) -> T:
    """Return the value of a JSON file.

    Raises OSError if the file cannot be read, ValueError in one line if it is no regular file, no JSON, or of another type.
    """
    return parse(read_bytes(path), kind)


def checked(path: Path, kind: Any) -> dict[str, Any]:
    """Return the object of a JSON file whose checked names are those of a TypedDict.

    The object keeps its other names. Raises as `read` does.
    """
    value = loads(read_bytes(path))
    convert(value, kind)
    return value


def read_lines(path: Path, kind: type[T], *, finite: bool = True) -> list[T]:
    """Return the values of a file with one JSON value per line.

    Raises as `read` does.
    """
    return [parse(line, kind, finite=finite) for line in read_bytes(path).splitlines()]


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file; opening a FIFO does not block.

    Raises OSError, and ValueError if it is no regular file or too large.
    """
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if size > LARGEST_BYTES:
                raise ValueError(f"{path} has {size:,} bytes; a file of this kind has {LARGEST_BYTES:,} at most")
            return file.read()
        except OSError as error:
            error.filename = str(path)  # an error while reading has no file name
            raise


def parse(content: bytes | str, kind: type[T], *, finite: bool = True) -> T:
    """Return the value of a JSON text.

    finite  refuse NaN and infinity
    Raises ValueError in one line for anything but JSON of this type: also for names that occur twice in an object, numbers
    beyond 64 bits, and values nested deeper than DEEPEST.
    """
    return convert(loads(content, finite=finite), kind)


def convert(value: Any, kind: type[T]) -> T:
    """Return a parsed value as a `kind`.

    Raises ValueError naming the place of a wrong type.
    """
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def loads(content: bytes | str, *, finite: bool = True) -> Any:
    """Return the value of a JSON text, its types unchecked.

    Raises ValueError as `parse` does.
    """
    content = content.encode(errors="surrogatepass") if isinstance(content, str) else content
    try:
        value = msgspec.json.decode(content) if finite else json.loads(content, object_pairs_hook=_unique)
    except UnicodeError as error:
        raise ValueError(f"it is no text in UTF-8 ({type(error).__name__})") from error
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels") from error
    layer, depth, names = [value], 0, 0
    while layer:
        names += sum(len(outer) for outer in layer if isinstance(outer, dict))
        layer = [inner for outer in layer for inner in _members(outer)]
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"it is nested deeper than {DEEPEST} levels")
    if (
        finite and len(ENDS_OF_NAMES.findall(content)) != names
    ):  # more: names that occur twice, or text that begins with ":"
        json.loads(content, object_pairs_hook=_unique)
    return value


ENDS_OF_NAMES = re.compile(rb'"\s*:')


def _members(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, inner in pairs:
        if name in value:
            raise ValueError(f"{name[:60]!r} occurs twice in one object")
        value[name] = inner
    return value
