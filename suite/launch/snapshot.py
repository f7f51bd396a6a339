"""The source as it was at launch: jobs that start hours later run this copy, whatever was edited meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from suite import records


def take(results: Path) -> Path:
    """Copy the packages into `results/snapshots/HASH`, unless that is there already, and return this folder.

    The hash covers names and contents, the commit and the dirty flag; rows made by a copy name all three.
    """
    files = {
        path.relative_to(records.ROOT): path.read_bytes()  # what is hashed is what is written, whoever saves meanwhile
        for package in records.PACKAGES
        for path in sorted((records.ROOT / package).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
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


def _move(part: Path, folder: Path) -> None:
    """Put the whole copy in its place, unless another launch was first."""
    try:
        os.rename(part, folder)
    except OSError:
        shutil.rmtree(part)
        if not folder.exists():
            raise
