"""Public base networks by name, as a start for pruning without training.

Files are read from the weights folder (SUITE_WEIGHTS, else `weights` in the data folder). `fetch` alone downloads missing files
of torchvision into this folder. Each entry has the normalisation that its network was trained with.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from suite.data import data_folder
from suite.files import sha256
from suite.registry import pick

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class PublicWeights:
    """A file of weights: source, model of this suite, normalisation, and names of its tensors."""

    file: str
    model: str
    source: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sha256: str
    """First digits of the file's digest, which its publisher has put into the file name."""
    rename: Callable[[str], str] = str
    in_torchvision: bool = False
    """True if torchvision has the file's URL."""


def _option_a(name: str) -> str:
    """Translate tensor names of akamaster's networks into those of this suite."""
    name = name.removeprefix("module.").replace("linear.", "classifier.")
    name = re.sub(r"^layer(\d)\.", r"stage_\1.", name)
    if not name.startswith("stage"):
        return name.replace("conv1.", "conv_1_3x3.").replace("bn1.", "bn_1.")
    for number, letter in (("1", "a"), ("2", "b")):
        name = name.replace(f"conv{number}.", f"conv_{letter}.").replace(f"bn{number}.", f"bn_{letter}.")
    return name


def _torchvision(model: str, file: str) -> PublicWeights:
    return PublicWeights(
        file=file,
        model=model,
        source=f"torchvision {model}, IMAGENET1K_V1",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        sha256=Path(file).stem.rpartition("-")[2],
        in_torchvision=True,
    )


def _akamaster(depth: int, sha256: str) -> PublicWeights:
    return PublicWeights(
        file=f"cifar10_resnet{depth}_optionA.th",
        model=f"resnet{depth}_a",
        source="Yerlan Idelbayev, Proper ResNet Implementation for CIFAR10/CIFAR100 in PyTorch (BSD-2)",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        sha256=sha256,
        rename=_option_a,
    )


PUBLIC = {
    "cifar10_resnet20_a": _akamaster(20, "12fca82f"),
    "cifar10_resnet56_a": _akamaster(56, "4bfd9763"),
    "imagenet_resnet18": _torchvision("resnet18", "resnet18-f37072fd.pth"),
    "imagenet_resnet34": _torchvision("resnet34", "resnet34-b627a593.pth"),
    "imagenet_resnet50": _torchvision("resnet50", "resnet50-0676ba61.pth"),
    "imagenet_vgg16_bn": _torchvision("vgg16_bn", "vgg16_bn-6c64b313.pth"),
}


def public(name: str) -> PublicWeights:
    """Return the entry `name`. Raises ValueError with the valid names."""
    return pick("public weights", name, PUBLIC)


def folder(data: Path | None) -> Path:
    """Return the weights folder."""
    return Path(os.environ.get("SUITE_WEIGHTS") or data_folder(data) / "weights")


def find(name: str, data: Path | None) -> Path:
    """Return the file of public weights.

    Raises FileNotFoundError with the path and the way to get the file.
    """
    entry = public(name)
    path = folder(data) / entry.file
    if not path.is_file():
        how = (
            "`python -m suite.prefetch --grid NAME` fetches it where there is a network"
            if entry.in_torchvision
            else f"get it from: {entry.source}"
        )
        raise FileNotFoundError(f"{path} is missing; {how}; SUITE_WEIGHTS may name another folder")
    return path


def fetch(name: str, data: Path | None) -> Path:
    """Return the file of public weights after comparing its digest.

    A missing file of torchvision is downloaded.
    Raises FileNotFoundError as `find` does, ValueError if the digest differs.
    """
    entry, where = public(name), folder(data)
    if entry.in_torchvision and not (where / entry.file).is_file():
        _download(entry, where)
    return _checked(find(name, data), entry)


def _checked(path: Path, entry: PublicWeights) -> Path:
    """Return the path after comparing the file's digest. Raises ValueError if the digest differs."""
    digest = sha256(path)
    if not digest.startswith(entry.sha256):
        raise ValueError(
            f"{path} is damaged, or another file: its sha256 begins with {digest[:8]} instead of {entry.sha256}; delete it and "
            "fetch it again"
        )
    return path


def _download(entry: PublicWeights, where: Path) -> None:
    from torchvision import models as zoo

    url = zoo.get_model_weights(entry.model)["IMAGENET1K_V1"].url
    where.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.load_state_dict_from_url(url, str(where), map_location="cpu", check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: the download has another digest than its name
        raise FileNotFoundError(f"{where / entry.file} is missing and {url} cannot be fetched ({error})") from error


def load(name: str, data: Path | None) -> dict[str, Tensor]:
    """Return the state dict of public weights, under the names of this suite."""
    return _read(find(name, data), name)


@functools.lru_cache(maxsize=2)
def _read(path: Path, name: str) -> dict[str, Tensor]:
    entry = public(name)
    state = torch.load(_checked(path, entry), weights_only=True, map_location="cpu")
    state = state.get("state_dict", state)
    return {entry.rename(key): tensor for key, tensor in state.items()}
