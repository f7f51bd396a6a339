"""Provenance of a row: commit, library versions, device and threads."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from suite import arithmetic, jsonfile, methods, registry

ROOT = Path(__file__).resolve().parents[2]
"""Folder of the running source: a checkout, an installed package, or a snapshot taken by a launch."""
SNAPSHOT = "snapshot.json"
"""File in a snapshot with its name and with the value of `source` in the checkout."""
PACKAGES = ("suite", "baselines", *methods.HOMES)
"""Packages of the source. Changes elsewhere do not reach results."""
PLUGINS = re.compile(rf"({'|'.join(('baselines', *methods.HOMES))})/|suite/(models|data)/")
"""Paths of files that may be a method, a model or a data set."""


def provenance(device: str, plugins: Iterable[str] = ()) -> dict[str, Any]:
    """Return commit, dirty flag, library versions, device and threads of this process.

    `plugins` are the modules of method, model and data set. `files` has path and SHA-256 of each file of theirs that
    differs from the commit or lies outside the checkout; it is absent if there is none.
    """
    lasting = dict(_lasting(device))
    changed = lasting.pop("changed")
    files = {
        label: changed.get(label) or _sha256(path)
        for label, path in plugin_files(plugins).items()
        if label in changed or not PLUGINS.match(label)
    }
    if not (lasting["dirty"] or files):
        lasting.pop("snapshot", None)
    return {
        **lasting,
        **({"files": files} if files else {}),
        "threads": torch.get_num_threads(),
        "tf32": device == "cuda" and torch.backends.cudnn.allow_tf32,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
    }


@registry.cached
def content(path: Path) -> bytes:
    """Return the bytes of a source file, as they were at the first call.

    These are nearest to what was imported: an edit during the process changes nothing that runs.
    """
    return path.read_bytes()


def _sha256(path: Path) -> str:
    return hashlib.sha256(content(path)).hexdigest()


@functools.cache
def _lasting(device: str) -> dict[str, Any]:
    """Return the part of the provenance that is constant in this process.

    `emulated` names the precisions without instructions on this CPU; training computes them in fp32 and rounds.
    """
    return {
        **source(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "torchvision", "fvcore", "numpy", "scipy", "safetensors")},
        "device": device_name(device),
        "emulated": [name for name in arithmetic.CPU_FLAGS if device == "cpu" and not arithmetic.computes(name)],
        "driver": _driver() if device == "cuda" else "",
        "platform": f"{platform.system()} {platform.machine()}",
    }


def device_name(device: str) -> str:
    """Return the processor's name.

    Examples are "cpu: AMD EPYC (family 25, model 1), 2 cores" and "NVIDIA H100 80GB HBM3". Virtual machines name processors of
    different generations alike. Family and model tell them apart.
    """
    if device == "cuda":
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "cuda: none on this machine"
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        first = ""
    about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    name = about.get("model name") or platform.processor() or "unknown"
    kind = f" (family {about['cpu family']}, model {about['model']})" if {"cpu family", "model"} <= about.keys() else ""
    return f"cpu: {name}{kind}, {os.cpu_count()} cores"


def kind_of_device(provenance: Mapping[str, Any], used: Iterable[str] | None = None) -> str:
    """Return the device of a provenance with the precisions that it emulates.

    The text is "" if the device is unknown. `used` names the precisions that matter; None for all.
    """
    device, emulated = provenance.get("device") or "", provenance.get("emulated") or ()
    shown = [name for name in emulated if used is None or name in used]
    return f"{device}, {' and '.join(shown)} emulated" if device and shown else device


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
    """Return commit, dirty flag and changed plug-ins of the running source.

    changed   path -> SHA-256 of each untracked or changed file of a method, a model or a data set
    dirty     True if any other file of the packages was changed, apart from grids, which the stages' identities cover
    snapshot  name of the snapshot, if the source is one
    """
    if (ROOT / SNAPSHOT).is_file():
        return jsonfile.read(ROOT / SNAPSHOT, dict[str, Any])
    try:
        _git("ls-files", "--error-unmatch", "suite/records/__init__.py")  # not installed inside another repository
        status = _git("status", "--porcelain", "-z", "--no-renames", "-uall", "--", *PACKAGES, ":(exclude)suite/grids")
        entries = {entry[3:]: entry[:2] for entry in status.split("\0") if entry}
        changed = {path: _sha256(ROOT / path) for path, state in sorted(entries.items()) if _is_plugin(path, state)}
        dirty = any(not _is_plugin(path, state) for path, state in entries.items())
        return {"commit": _git("rev-parse", "HEAD").strip(), "dirty": dirty, "changed": changed}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": f"package {_version('pruning-suite')}", "dirty": None, "changed": {}}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout


def _is_plugin(path: str, state: str) -> bool:
    """Return True for an existing file that affects only its own runs.

    These are the runs of its method, model or data set.
    """
    if not PLUGINS.match(path) or not (ROOT / path).is_file():
        return False
    shared = path.startswith("suite/") and state != "??"
    return not shared or re.search(r"^(MODELS|DATASETS)\b", (ROOT / path).read_text(), re.MULTILINE) is not None


def plugin_files(modules: Iterable[str]) -> dict[str, Path]:
    """Return label -> path of the modules' plug-in files, transitively imported ones included.

    Labels are paths inside the checkout, `plugins/NAME.py` of files in plug-in folders, and paths inside site-packages.
    """
    files: dict[str, Path] = {}
    pending = list(modules)
    tops = {module.partition(".")[0] for module in pending} - {"suite"}
    while pending:
        module = pending.pop()
        for label, path, package in _candidates(module, tops):
            if label not in files and path.is_file():
                files[label] = path
                body = ast.walk(ast.parse(content(path)))
                pending += [name for node in body for name in registry.imports(node, package)]
    return dict(sorted(files.items()))


def _candidates(module: str, tops: Container[str]) -> Iterator[tuple[str, Path, str]]:
    """Yield label, path and package of the plug-in files that a module may be.

    tops  top-level packages of entry points
    """
    added = module.startswith(f"{registry.OUTSIDE}.")
    stem = (module.removeprefix(f"{registry.OUTSIDE}.") if added else module).replace(".", "/")
    for tail, package in ((".py", module.rpartition(".")[0]), ("/__init__.py", module)):
        label = f"{stem}{tail}"
        if added:
            yield from ((f"plugins/{label}", folder / label, package) for folder in registry.folders())
        elif PLUGINS.match(label):
            yield label, ROOT / label, package
        elif module.partition(".")[0] in tops:
            yield from ((label, Path(folder) / label, package) for folder in sys.path)
