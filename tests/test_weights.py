"""Checkpoints of one's own, and networks of torchvision and timm by name."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import pytest
import tiny_grid
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models as zoo

from suite import models, weights
from suite.run import Context, code, execute
from suite.run.folder import result_of
from suite.stages import Base


def base(path: Path, model: str = "vgg6") -> Base:
    return Base(data="digits", model=model, schedule=None, seed=0, weights=str(path))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(7)
    return models.build("vgg6", 10)


def test_a_checkpoint_by_path_is_loaded_and_its_hash_is_the_identity(network: nn.Module, tmp_path: Path) -> None:
    first, copied = tmp_path / "mine.safetensors", tmp_path / "folder" / "again.safetensors"
    copied.parent.mkdir()
    save_file(network.state_dict(), first)
    copied.write_bytes(first.read_bytes())
    stage = base(first)
    assert stage.key == base(copied).key
    assert stage.label == "digits/vgg6 mine.safetensors"
    assert execute(stage, Context(results=tmp_path / "results", threads=1)) == "done"
    result = result_of(stage, Context(results=tmp_path / "results"))
    assert 0 <= result["top1_pct"] <= 100
    own = models.build("vgg6", 10)
    weights.load_into(own, str(first), None)
    assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), network.state_dict().values(), strict=True))
    with torch.no_grad():
        next(network.parameters()).add_(1)
    save_file(network.state_dict(), copied)
    assert base(copied).key != stage.key


@pytest.mark.parametrize("wrapper", ["plain", "state_dict", "model"])
def test_files_of_common_training_scripts_are_read(network: nn.Module, wrapper: str, tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save(state if wrapper == "plain" else {wrapper: state, "epoch": 3}, tmp_path / "mine.pth")
    own = models.build("vgg6", 10)
    weights.load_into(own, str(tmp_path / "mine.pth"), None)
    assert torch.equal(own.get_parameter("classifier.bias"), network.get_parameter("classifier.bias"))


@pytest.mark.parametrize("kind", ["safetensors", "pth", "module.pth"])
def test_old_files_of_torchvision_are_read(kind: str, tmp_path: Path) -> None:
    """MNASNet checks a version that only pickled files have; files of DenseNets have old names and no counters."""
    torch.manual_seed(0)
    builders = {"mnasnet": lambda: zoo.MNASNet(0.35, 10), "densenet": lambda: zoo.DenseNet(4, (2, 1), 8, num_classes=3)}
    for name, build in builders.items():
        made, loaded, path = build(), build(), tmp_path / f"{name}.{kind}"
        state = made.state_dict()
        if kind == "module.pth":
            state = nn.DataParallel(made).state_dict()
        if name == "densenet":
            old = {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", key): state[key] for key in state if "tracked" not in key}
            assert len(old.keys() - state.keys()) == 3 * 10
            state = old
        (save_file if kind == "safetensors" else torch.save)(state, path)
        weights.load_into(loaded, str(path), None)
        assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in made.state_dict().items())


def test_files_that_do_not_fit_are_refused_in_one_line(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.pt"
    with pytest.raises(ValueError, match=r"weights .*mine\.pt cannot be read \(No such file"):
        _ = base(file).key
    torch.save(network.state_dict(), file)
    with pytest.raises(ValueError, match=r"mine\.pt is no checkpoint of this network: it lacks conv_1_3x3.weight and"):
        weights.load_into(models.build("resnet8", 10), str(file), None)
    with pytest.raises(ValueError, match=r"it has another shape of classifier.weight and 1 more"):
        weights.load_into(models.build("vgg6", 3), str(file), None)
    torch.save(network, file)
    with pytest.raises(
        ValueError, match=r"is no file of weights, or holds objects besides tensors .*; save the network.s state_dict"
    ):
        weights.load_into(network, str(file), None)
    monkeypatch.setattr(torch, "load", Mock(side_effect=AssertionError))
    with pytest.raises(ValueError, match=r"is no file of weights, or holds objects besides tensors .AssertionError"):
        weights.load_into(network, str(file), None)
    monkeypatch.undo()
    for state in ([1], {0: torch.ones(2)}, {"a": torch.ones(2), 1: torch.ones(2)}):
        torch.save(state, file)
        with pytest.raises(ValueError, match="holds no tensors by name"):
            weights.load_into(network, str(file), None)
    with pytest.raises(
        ValueError, match=r"^weights ~no_such_user_/mine\.pt: there is no such user; give a path without ~"
    ):
        weights.find("~no_such_user_/mine.pt", None)


def test_a_file_that_changes_after_planning_fails_the_stage(network: nn.Module, tmp_path: Path) -> None:
    save_file(network.state_dict(), tmp_path / "mine.safetensors")
    stage = base(tmp_path / "mine.safetensors")
    assert stage.key
    save_file({"other": torch.zeros(1)}, tmp_path / "mine.safetensors")
    context = Context(results=tmp_path / "results", threads=1)
    assert execute(stage, context) == "failed"
    assert (
        "has changed since this stage was planned"
        in (tmp_path / "results/work" / stage.key / "failed.json").read_text()
    )


def test_networks_of_torchvision_are_found_by_name() -> None:
    assert models.build("torchvision/squeezenet1_1", 3)(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    with pytest.raises(ValueError, match="torchvision has no classifier 'squeezenet'; did you mean squeezenet1_"):
        models.builder("torchvision/squeezenet")
    entry = weights.public("torchvision/mobilenet_v2.IMAGENET1K_V1")
    assert (entry.file, entry.sha256) == ("mobilenet_v2-b0353104.pth", "b0353104")
    assert entry.url.endswith(entry.file)
    assert entry.mean == weights.IMAGENET_MEAN
    assert weights.public("torchvision/inception_v3.IMAGENET1K_V1").mean == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"unknown torchvision/mobilenet_v2\. 'V3'.*IMAGENET1K_V1, IMAGENET1K_V2"):
        weights.public("torchvision/mobilenet_v2.V3")
    for name, other in weights.PUBLIC.items():
        if name.startswith("imagenet_"):
            assert weights.public(f"torchvision/{name.removeprefix('imagenet_')}.IMAGENET1K_V1") == other
    stage = Base(data="digits", model="torchvision/squeezenet1_1", schedule=tiny_grid.SHORT, seed=0)
    assert "suite/models/_zoo.py" in code.fingerprint(stage)["own"]


def test_networks_of_timm_are_found_by_name_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    models._zoo.builder.cache_clear()
    with pytest.raises(ValueError, match="needs the package timm, which is not installed: pip install timm"):
        models.build("timm/resnet50.a1_in1k", 10)
    package = ModuleType("timm")
    made: list[bool] = []

    def create_model(name: str, *, pretrained: bool, num_classes: int = 10) -> nn.Module:
        made.append(pretrained)
        return models.build("vgg6", num_classes)

    def get_pretrained_cfg(name: str) -> SimpleNamespace | None:
        if name == "tiny.wrong":
            raise RuntimeError("Invalid pretrained tag (wrong) for tiny.")
        return config if name == "tiny.a1" else None

    config = SimpleNamespace(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    for name, value in {
        "create_model": create_model,
        "is_model": lambda name: name.partition(".")[0] == "tiny",
        "list_models": lambda: ["tiny"],
        "list_pretrained": lambda names: ["tiny.a1", "tiny.a2"] if names == "tiny.*" else [],
        "get_pretrained_cfg": get_pretrained_cfg,
    }.items():
        setattr(package, name, value)
    monkeypatch.setitem(sys.modules, "timm", package)
    with pytest.raises(ValueError, match="timm has no model 'tinny'; did you mean tiny"):
        models.build("timm/tinny", 10)
    for use in (lambda: models.build("timm/tiny.wrong", 10), lambda: weights.check("timm/tiny.wrong")):
        with pytest.raises(ValueError, match=r"^timm has no weights 'wrong' of tiny; its tags: a1, a2$"):
            use()
    with pytest.raises(ValueError, match=r"timm has no pretrained weights 'tiny\.a9'"):
        weights.check("timm/tiny.a9")
    stage = Base(data="digits", model="timm/tiny.a1", schedule=None, seed=0, weights="timm/tiny.a1")
    context = Context(results=tmp_path, data=tmp_path, threads=1)
    monkeypatch.setenv("SUITE_WEIGHTS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"timm_tiny\.a1\.safetensors is missing \(timm tiny\.a1\); .* by timm"):
        weights.find("timm/tiny.a1", tmp_path)
    assert weights.fetch("timm/tiny.a1", tmp_path).is_file()
    assert execute(stage, context) == "done"
    assert context.dataset(stage).mean == config.mean
    assert made == [True, False]
    models._zoo.builder.cache_clear()
