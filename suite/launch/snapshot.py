"""Copy of the source at launch, which jobs run even if they start hours later."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from suite import records


def take(results: Path) -> Path:
    """Copy the packages into `results/snapshots/HASH`, unless this folder exists, and return the folder.

    The hash is of file names and contents, the commit and the dirty flag; rows that a copy makes name all of these.
    """
    files = {
        path.relative_to(records.ROOT): path.read_bytes()  # read once: the hash is of the bytes that are written
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
    """Rename the whole copy to its folder, unless another launch was first."""
    try:
        os.rename(part, folder)
    except OSError:
        shutil.rmtree(part)
        if not folder.exists():
            raise
