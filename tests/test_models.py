"""The networks and the public weights."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from suite import data, models, weights
from suite.graph import Graph
from suite.models._layers import PaddedShortcut
from suite.train import top1_pct

EXPECTED = {f"resnet{depth}{a}" for depth in (8, 20, 32, 44, 56, 110) for a in ("", "_a")} | {
    "vgg6", "vgg16", "resnet18", "resnet34", "resnet50", "vgg16_bn",
}  # fmt: skip


def on_meta(name: str, classes: int) -> nn.Module:
    with torch.device("meta"):
        return models.build(name, classes)


def test_the_models_that_are_there() -> None:
    assert set(models.available()) >= EXPECTED


@pytest.mark.parametrize("name", sorted(models.available()))
def test_every_model_builds_and_can_be_followed(name: str) -> None:
    model = on_meta(name, 7)
    assert model(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 7)
    graph = Graph(model, (3, 32, 32))
    assert set(graph.convs) == {key for key, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert all(conv.bn is not None for conv in graph.convs.values())
    assert [conv.role for conv in graph.convs.values()].count("stem") == 1


@pytest.mark.parametrize("name", ["resnet8", "resnet8_a", "vgg6"])
def test_a_fresh_network_gives_finite_logits(name: str) -> None:
    torch.manual_seed(0)
    model = models.build(name, 10)
    logits = model(torch.randn(4, 3, 32, 32))
    assert logits.shape == (4, 10)
    assert bool(logits.isfinite().all())
    assert float(logits.detach().std(0).min()) > 0
    torch.manual_seed(0)
    again = models.build(name, 10).state_dict()
    assert all(
        torch.equal(tensor, again[key])
        for key, tensor in model.state_dict().items()
        if "running" not in key and "num" not in key
    )


@pytest.mark.parametrize("depth", [8, 20, 44, 56])
@pytest.mark.parametrize("option", ["", "_a"])
def test_resnets_have_their_depth(depth: int, option: str) -> None:
    convs = Graph(on_meta(f"resnet{depth}{option}", 10), (3, 32, 32)).convs.values()
    assert len([conv for conv in convs if conv.role != "shortcut"]) + 1 == depth
    assert len([conv for conv in convs if conv.role == "shortcut"]) == (0 if option else 2)


def test_vgg16_for_small_images() -> None:
    model = on_meta("vgg16", 10)
    convs = Graph(model, (3, 32, 32)).convs.values()
    assert [conv.filters for conv in convs] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(512, 10)]


def test_the_padded_shortcut_worked_out_by_hand() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4) + 1
    out = PaddedShortcut(1, 4, 2)(image)
    assert out.shape == (1, 4, 2, 2)
    assert out[0, 1].tolist() == [[1, 3], [9, 11]]
    assert out[0, [0, 2, 3]].abs().sum() == 0


def test_an_unknown_model_is_refused_with_the_choices() -> None:
    with pytest.raises(
        ValueError, match=r"unknown model 'resnet20a' \(did you mean resnet20_a\?\); choose from: .*vgg6"
    ):
        models.build("resnet20a", 10)


# ---- public weights --------------------------------------------------------------------------------------------------


def test_missing_weights_are_named_with_their_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUITE_WEIGHTS", raising=False)
    with pytest.raises(
        FileNotFoundError,
        match=r"weights/cifar10_resnet20_optionA\.th is missing \(Yerlan Idelbayev.*fetches it from https://",
    ):
        weights.find("cifar10_resnet20_a", tmp_path)
    monkeypatch.setenv("SUITE_WEIGHTS", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        weights.find("cifar10_resnet56_a", tmp_path)


def test_unknown_weights_are_refused_with_the_choices() -> None:
    with pytest.raises(
        ValueError, match=r"unknown public weights 'cifar10_resnet20'.*choose from: .*cifar10_resnet56_a"
    ):
        weights.public("cifar10_resnet20")


@pytest.mark.parametrize("name", ["cifar10_resnet20_a", "cifar10_resnet56_a"])
def test_public_weights_fit_their_model(name: str, weights_folder: Path) -> None:
    weights.load_into(models.build(name.removeprefix("cifar10_"), 10), name, None)


def evaluated(name: str, folder: Path, images: int) -> float:
    """Accuracy on the first test images."""
    entry = weights.public(name)
    model = models.build(name.removeprefix("cifar10_"), 10)
    weights.load_into(model, name, None)
    batches = data.load("cifar10", folder).with_normalization(entry.mean, entry.std).test(500, "cpu")
    return top1_pct(model, itertools.islice(batches, images // 500))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "top1_pct"), [("cifar10_resnet20_a", 91.73), ("cifar10_resnet56_a", 93.39)])
def test_public_weights_score_what_they_should(
    name: str, top1_pct: float, cifar10_folder: Path, weights_folder: Path
) -> None:
    assert evaluated(name, cifar10_folder, 10_000) == pytest.approx(top1_pct, abs=0.005)


@pytest.mark.parametrize("name", ["cifar10_resnet20_a", "cifar10_resnet56_a"])
def test_public_weights_recognise_most_of_a_few_images(name: str, cifar10_folder: Path, weights_folder: Path) -> None:
    assert evaluated(name, cifar10_folder, 500) > 88
