"""Copy of the source at launch, which jobs run even if they start hours later."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from suite import records, registry


def take(results: Path) -> Path:
    """Copy packages and plug-ins into `results/snapshots/HASH`, unless this folder exists, and return the folder.

    The hash is of file names and contents, the commit and the dirty flag; rows that a copy makes name all of these.
    """
    files = {
        path.relative_to(records.ROOT): path.read_bytes()  # read once: the hash is of the bytes that are written
        for package in records.PACKAGES
        for path in sorted((records.ROOT / package).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    for copy, folder in zip(plugin_folders(Path()), registry.folders(), strict=True):
        files |= {
            copy / path.relative_to(folder): path.read_bytes() for path in _python_files(folder) if path.is_file()
        }
    source = records.source()
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode())
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    folder = results / "snapshots" / digest.hexdigest()[:12]
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".", suffix=".part"))
        for name, content in files.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).write_bytes(content)
        (part / records.SNAPSHOT).write_text(json.dumps({**source, "snapshot": folder.name}))
        part.chmod(0o755)
        _move(part, folder)
    return folder


def plugin_folders(snapshot: Path) -> list[Path]:
    """Return the copies of the plug-in folders in a snapshot, in the same order."""
    return [snapshot / "plugins" / str(number) for number in range(len(registry.folders()))]


def _python_files(folder: Path) -> Iterator[Path]:
    """Yield the modules and packages in a folder; other folders may hold anything."""
    yield from sorted(folder.glob("*.py"))
    for package in sorted(path.parent for path in folder.glob("*/__init__.py")):
        yield from sorted(package.rglob("*.py"))


def _move(part: Path, folder: Path) -> None:
    """Rename the whole copy to its folder, unless another launch was first."""
    try:
        os.rename(part, folder)
    except OSError:
        shutil.rmtree(part)
        if not folder.exists():
            raise
