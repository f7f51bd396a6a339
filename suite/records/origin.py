"""Provenance of a row: commit, library versions, device and threads."""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
"""Folder of the running source: a checkout, an installed package, or a snapshot taken by a launch."""
SNAPSHOT = "snapshot.json"
"""File in a snapshot with its name and with the value of `source` in the checkout."""


def provenance(device: str) -> dict[str, Any]:
    """Return commit, dirty flag, library versions, device and threads of this process."""
    return {
        **_lasting(device),
        "threads": torch.get_num_threads(),
        "tf32": device == "cuda" and torch.backends.cudnn.allow_tf32,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
    }


@functools.cache
def _lasting(device: str) -> dict[str, Any]:
    """Return the part of the provenance that is constant in this process."""
    return {
        **source(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "torchvision", "fvcore", "numpy", "scipy", "safetensors")},
        "device": device_name(device),
        "driver": _driver() if device == "cuda" else "",
        "platform": f"{platform.system()} {platform.machine()}",
    }


def device_name(device: str) -> str:
    """Return the processor's name: "cpu: Intel(R) Xeon(R) ..." or "NVIDIA H100 ..."."""
    if device == "cuda":
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "cuda: none on this machine"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return f"cpu: {name or 'unknown'}, {os.cpu_count()} cores"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _driver() -> str:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def source() -> dict[str, Any]:
    """Return the commit of the running source and its dirty flag: True if anything outside results/ was changed.

    The snapshot's name is added if the source is a snapshot of a dirty checkout.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    if (ROOT / SNAPSHOT).is_file():
        snapshot = json.loads((ROOT / SNAPSHOT).read_text())
        return snapshot if snapshot["dirty"] else {name: snapshot[name] for name in ("commit", "dirty")}
    try:
        git("ls-files", "--error-unmatch", "suite/records/__init__.py")  # not installed inside another repository
        changed = git("status", "--porcelain", "--", ":/", ":(exclude,top)results")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": f"package {_version('pruning-suite')}", "dirty": None}
