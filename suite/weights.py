"""Weights of base networks: public ones by name, others by path.

Public files are read from the weights folder (SUITE_WEIGHTS, else `weights` in the data folder). `fetch` alone downloads
missing files into this folder. Each entry has the normalisation that its network was trained with.

    cifar10_resnet20_a                       an entry of PUBLIC
    torchvision/mobilenet_v2.IMAGENET1K_V1   weights of torchvision
    timm/resnet50.a1_in1k                    pretrained weights of timm
    nets/mine.safetensors                    a checkpoint of one's own (.safetensors, .pt, .pth, .th)
"""

from __future__ import annotations

import functools
import os
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from suite.data import data_folder, fetching
from suite.files import replacing, sha256, write_bytes
from suite.models import _zoo
from suite.registry import pick

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = (".safetensors", ".pt", ".pth", ".th")
"""Endings of the path of a checkpoint of one's own."""
AUXILIARY = ("aux", "AuxLogits")
"""Beginnings of the tensor names of auxiliary classifiers, which the networks of this suite do not have."""

COUNTER = ".num_batches_tracked"
"""Tensor of a batch norm that checkpoints of old versions of torch lack; the network keeps its own."""

OLD_DENSE = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
"""Layers of a DenseNet in torchvision's files, which today have names without the second dot."""


@dataclass(frozen=True, kw_only=True)
class PublicWeights:
    """A file of weights: source, address, normalisation, and names of its tensors.

    sha256  first digits of the file's digest; "" if its publisher names none
    url     address of the file; "" if timm fetches it
    """

    file: str
    source: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str = ""
    rename: Callable[[str], str] = str
    url: str = ""


def _option_a(name: str) -> str:
    """Translate tensor names of akamaster's networks into those of this suite."""
    name = name.removeprefix("module.").replace("linear.", "classifier.")
    name = re.sub(r"^layer(\d)\.", r"stage_\1.", name)
    if not name.startswith("stage"):
        return name.replace("conv1.", "conv_1_3x3.").replace("bn1.", "bn_1.")
    for number, letter in (("1", "a"), ("2", "b")):
        name = name.replace(f"conv{number}.", f"conv_{letter}.").replace(f"bn{number}.", f"bn_{letter}.")
    return name


@functools.lru_cache(maxsize=64)
def _torchvision(name: str) -> PublicWeights:
    """Return the entry MODEL.WEIGHTS of torchvision. Raises ValueError with the weights of the model."""
    from torchvision import models as zoo  # 90 MB of memory, loaded only if needed

    model, _, version = name.partition(".")
    _zoo.builder(f"torchvision/{model}")
    weights = pick(f"torchvision/{model}.", version, {entry.name: entry for entry in zoo.get_model_weights(model)})
    file = PurePosixPath(weights.url).name
    crop: Any = weights.transforms()
    half = model in _zoo.WITH_AUXILIARY  # torchvision's `transform_input` for these weights, which were trained so
    return PublicWeights(
        file=file,
        source=f"torchvision {model}, {version}",
        mean=(0.5,) * 3 if half else tuple(crop.mean),
        std=(0.5,) * 3 if half else tuple(crop.std),
        sha256=Path(file).stem.rpartition("-")[2],
        url=weights.url,
    )


def _timm(name: str) -> PublicWeights:
    """Return the entry of timm.

    Raises ValueError if timm is not installed or has no pretrained weights of this name.
    """
    config = _zoo.timm_weights(name)
    if config is None:
        raise ValueError(f"timm has no pretrained weights {name!r}")
    return PublicWeights(
        file=f"timm_{name}.safetensors", source=f"timm {name}", mean=tuple(config.mean), std=tuple(config.std)
    )


def _akamaster(depth: int, sha256: str) -> PublicWeights:
    return PublicWeights(
        file=f"cifar10_resnet{depth}_optionA.th",
        source="Yerlan Idelbayev, Proper ResNet Implementation for CIFAR10/CIFAR100 in PyTorch (BSD-2)",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        sha256=sha256,
        rename=_option_a,
        url=f"https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/resnet{depth}-{sha256}.th",
    )


def _imagenet(file: str) -> PublicWeights:
    model, _, sha256 = Path(file).stem.rpartition("-")
    return PublicWeights(
        file=file,
        source=f"torchvision {model}, IMAGENET1K_V1",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        sha256=sha256,
        url=f"https://download.pytorch.org/models/{file}",
    )


PUBLIC = {
    "cifar10_resnet20_a": _akamaster(20, "12fca82f"),
    "cifar10_resnet56_a": _akamaster(56, "4bfd9763"),
    "imagenet_resnet18": _imagenet("resnet18-f37072fd.pth"),
    "imagenet_resnet34": _imagenet("resnet34-b627a593.pth"),
    "imagenet_resnet50": _imagenet("resnet50-0676ba61.pth"),
    "imagenet_vgg16_bn": _imagenet("vgg16_bn-6c64b313.pth"),
}


def own_file(name: str) -> Path | None:
    """Return the path of a checkpoint of one's own; None for public weights.

    Raises ValueError if the path begins with an unknown user.
    """
    if not name.endswith(SUFFIXES):
        return None
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise ValueError(f"weights {name}: there is no such user; give a path without ~") from error


def public(name: str) -> PublicWeights:
    """Return the entry `name`. Raises ValueError with the valid names."""
    zoo, _, rest = name.partition("/")
    if _zoo.is_name(name):
        return _timm(rest) if zoo == "timm" else _torchvision(rest)
    if name not in PUBLIC and "/" in name:
        raise ValueError(f"{name} is no file of weights: its name must end in {', '.join(SUFFIXES)}")
    return pick("public weights", name, PUBLIC)


def normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and std of the weights' training; None for those of the data set."""
    return None if own_file(name) else (public(name).mean, public(name).std)


def check(name: str) -> None:
    """Raise ValueError if there are no such weights."""
    if own_file(name) is None:
        public(name)


def digest(name: str) -> str:
    """Return the SHA-256 of a checkpoint of one's own.

    Raises ValueError if there is no such file.
    """
    path = own_file(name)
    assert path is not None
    try:
        about = path.stat()
        return _digest(path.absolute(), about.st_mtime_ns, about.st_size)
    except OSError as error:
        raise ValueError(f"weights {path.absolute()} cannot be read ({error.strerror})") from error


@functools.lru_cache(maxsize=64)
def _digest(path: Path, changed: int, size: int) -> str:
    return sha256(path)


def folder(data: Path | None) -> Path:
    """Return the weights folder."""
    return Path(os.environ.get("SUITE_WEIGHTS") or data_folder(data) / "weights")


def find(name: str, data: Path | None) -> Path:
    """Return the file of weights.

    Raises FileNotFoundError with the path and the way to get the file.
    """
    if (own := own_file(name)) is not None:
        digest(name)
        return own
    entry = public(name)
    path = folder(data) / entry.file
    if path.exists() and not path.is_file():
        raise FileNotFoundError(
            f"{path} is no regular file; put the weights there, or name another folder by SUITE_WEIGHTS"
        )
    if not path.is_file():
        source = f"from {entry.url}" if entry.url else "by timm"
        raise FileNotFoundError(
            f"{path} is missing ({entry.source}); {fetching(name, data)} {source} where there is a network; or put the file "
            f"there yourself, as {entry.file}; SUITE_WEIGHTS names another folder"
        )
    return path


def fetch(name: str, data: Path | None) -> Path:
    """Return the file of weights after comparing its digest; a missing public file is downloaded.

    A process writes only to a temporary file of its own, so `path` is always absent or whole.
    Raises FileNotFoundError as `find` does, ValueError if the digest differs.
    """
    if own_file(name) is not None:
        return find(name, data)
    entry = public(name)
    path = folder(data) / entry.file
    if not path.is_file():
        try:
            _download(name, entry, path)
        except MemoryError:
            raise
        except Exception as error:  # no network, another digest, or a web page in place of the file
            source = entry.url or "timm's source"
            raise FileNotFoundError(f"{path} is missing and {source} cannot be fetched ({error})") from error
    return _checked(find(name, data), entry)


def _download(name: str, entry: PublicWeights, path: Path) -> None:
    if entry.url:
        with replacing(path) as part:
            torch.hub.download_url_to_file(entry.url, str(part), hash_prefix=entry.sha256)
    else:
        model: nn.Module = _zoo.timm().create_model(name.partition("/")[2], pretrained=True)
        write_bytes(path, serialise({key: tensor.contiguous() for key, tensor in model.state_dict().items()}))


def _checked(path: Path, entry: PublicWeights) -> Path:
    """Return the path after comparing the file's digest. Raises ValueError if the digest differs."""
    actual = sha256(path)
    if not actual.startswith(entry.sha256):
        raise ValueError(
            f"{path} is damaged, or another file: its sha256 begins with {actual[:8]} instead of {entry.sha256}; delete it and "
            "fetch it again"
        )
    return path


def load_into(model: nn.Module, name: str, data: Path | None) -> None:
    """Copy weights into a network. Raises ValueError if they are not those of the network."""
    own, expected = own_file(name), model.state_dict()
    read = _read(find(name, data)) if own else _public(name, find(name, data))
    names = {key: key if key in expected else OLD_DENSE.sub(r"\1\2.", key) for key in read}
    state = OrderedDict(
        (names[key], tensor) for key, tensor in read.items() if names[key] in expected or not key.startswith(AUXILIARY)
    )
    for key in expected.keys() - state.keys():
        if key.endswith(COUNTER):
            state[key] = expected[key]
    wrong = {
        "lacks": [key for key in expected if key not in state],
        "has also": [key for key in state if key not in expected],
        "has another shape of": [key for key in state if key in expected and state[key].shape != expected[key].shape],
    }
    if faults := [f"{verb} {names[0]} and {len(names) - 1} more" for verb, names in wrong.items() if names]:
        raise ValueError(f"{own or name} is no checkpoint of this network: it {'; it '.join(faults)}")
    vars(state)["_metadata"] = {**vars(expected)["_metadata"], **vars(read).get("_metadata", {})}
    model.load_state_dict(state)


@functools.lru_cache(maxsize=2)
def _public(name: str, path: Path) -> OrderedDict[str, Tensor]:
    """Return the state dict of public weights, under the names of this suite."""
    entry = public(name)
    read = _read(_checked(path, entry))
    state = OrderedDict((entry.rename(key), tensor) for key, tensor in read.items())
    vars(state).update(vars(read))
    return state


def _read(path: Path) -> OrderedDict[str, Tensor]:
    """Return the tensors of a file by name, without the wrappers of common training scripts.

    The attribute `_metadata` has the versions of the modules' classes, if the file has them.
    Raises ValueError if the file holds no tensors by name, or would execute code.
    """
    try:
        if path.suffix == ".safetensors":
            return OrderedDict(load_file(path))
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch.load raises errors of many classes on files of other people
        reason = str(error).split(".")[0].partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path} is no file of weights, or holds objects besides tensors ({reason}); save the network's state_dict()"
        ) from error
    for key in ("state_dict", "model"):
        state = state.get(key, state) if isinstance(state, dict) else state
    named = isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not named or not state:
        raise ValueError(f"{path} holds no tensors by name; save the network's state_dict()")
    result = OrderedDict((key.removeprefix("module."), tensor) for key, tensor in state.items())
    versions = getattr(state, "_metadata", None) or {}
    vars(result)["_metadata"] = {re.sub(r"^module(\.|$)", "", key): about for key, about in versions.items()}
    return result
