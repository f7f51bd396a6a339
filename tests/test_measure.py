"""What is measured: MACs by two counters, and latency beside the dense network."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from conftest import run_named
from torch import Tensor, nn
from torchvision import models as zoo

from suite.cudagraph import captured
from suite.graph import Graph
from suite.measure import counting, latency
from suite.measure.counting import count_macs, count_params
from suite.measure.latency import Measurement, alternate
from suite.measure.products import macs_of_run
from suite.measure.protocol import Protocol, Timing, protocol
from suite.models import build

# ---- MACs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "macs"), [("resnet20", 40_813_184), ("resnet8_a", None), ("vgg6", None), ("resnet50", None)]
)
def test_both_counters_and_the_graph_agree(name: str, macs: int | None) -> None:
    model = build(name, 10)
    found = count_macs(model, (3, 32, 32))
    assert found.macs == Graph(model, (3, 32, 32)).dense_macs.total
    assert macs in (None, found.macs)
    assert "aten::batch_norm" in found.unsupported_ops
    assert "aten::_convolution" not in found.unsupported_ops


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(3, 5, 3, stride=2, padding=1), (3, 8, 8), 5 * 3 * 9 * 16),
        (nn.Conv2d(4, 6, (1, 5), groups=2), (4, 8, 8), 6 * 2 * 5 * 8 * 4),
        (
            nn.Sequential(nn.Flatten(1), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 2, bias=False)),
            (3, 2, 2),
            12 * 7 + 7 * 2,
        ),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)), (3, 8, 8), 0),
    ],
)
def test_macs_in_closed_form(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    assert count_macs(layer, shape).macs == macs
    assert count_macs(layer.double(), shape).macs == macs


def test_counting_leaves_the_network_as_it_was() -> None:
    model = build("resnet8", 10)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    count_macs(model, (3, 32, 32))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


class Products(nn.Module):
    """Products of the rows of a convolution, 64 rows of 4 numbers: 768 MACs before them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv = how, nn.Conv2d(3, 4, 1)
        self.attention, self.lstm = nn.MultiheadAttention(4, 2, batch_first=True), nn.LSTM(4, 5, batch_first=True)
        self.gru, self.vector = nn.GRU(4, 5, batch_first=True), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.conv(x).flatten(2).transpose(1, 2)
        return {
            "bmm": lambda: torch.bmm(rows, rows.transpose(1, 2)),
            "attention": lambda: self.attention(rows, rows, rows, need_weights=False)[0],
            "attention with weights": lambda: self.attention(rows, rows, rows)[0],
            "fused attention": lambda: nn.functional.scaled_dot_product_attention(rows, rows, rows),
            "vector": lambda: rows @ self.vector,
            "mv": lambda: torch.mv(rows[0], self.vector),
            "dot": lambda: torch.dot(rows[0, 0], self.vector),
            "einsum": lambda: torch.einsum("nld,d->nl", rows, self.vector),
            "lstm": lambda: self.lstm(rows)[0],
            "gru": lambda: self.gru(rows)[0],
            "bilinear": lambda: nn.functional.bilinear(rows[:, 0], rows[:, 1], torch.ones(2, 4, 4)),
            "distances": lambda: torch.cdist(rows[:, :4], rows[:, :4]),
        }[self.how]()


COUNTED = {
    "bmm": 64 * 64 * 4,
    "attention": 64 * 4 * 16 + 2 * 64 * 64 * 4,
    "attention with weights": 64 * 4 * 16 + 2 * 64 * 64 * 4,
    "fused attention": 2 * 64 * 64 * 4,
    "vector": 64 * 4,
    "mv": 64 * 4,
    "dot": 4,
}


@pytest.mark.parametrize("how", COUNTED)
def test_products_beside_convolutions_are_counted_in_both_ways(how: str) -> None:
    network = Products(how).eval()
    assert count_macs(network, (3, 8, 8)).macs == 768 + COUNTED[how]
    assert macs_of_run(network, torch.zeros(1, 3, 8, 8)) == 768 + COUNTED[how]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("lstm", "aten::mkldnn_rnn_layer has products that are not counted"),
        ("bilinear", "aten::_trilinear has"),
        ("distances", "aten::_cdist_forward has"),
        ("einsum", "the two MAC counters disagree"),
        ("gru", "the two MAC counters disagree"),
    ],
)
def test_products_that_are_not_counted_give_no_count(how: str, words: str) -> None:
    network = Products(how).eval()
    with pytest.raises(ValueError, match=words):
        count_macs(network, (3, 8, 8))
    if "has" in words:
        with pytest.raises(ValueError, match=words):
            macs_of_run(network, torch.zeros(1, 3, 8, 8))


@pytest.mark.slow
def test_a_vision_transformer_is_counted_with_its_attention() -> None:
    assert count_macs(zoo.vit_b_16(), (3, 224, 224)).macs == 16_848_500_736 + 12 * 2 * 197 * 197 * 768


def test_counters_that_disagree_give_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"the two MAC counters disagree: fvcore 768, torch 1024;") as error:
        count_macs(Products("einsum"), (3, 8, 8))
    assert "\n" not in str(error.value)
    monkeypatch.delitem(counting._HANDLES, "aten::_convolution")
    with pytest.raises(ValueError, match="fvcore 640, torch"):
        count_macs(build("resnet8", 10), (3, 32, 32))


def test_parameters_in_closed_form() -> None:
    assert count_params(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(5, 2))) == 5 * 27 + 5 + 10 + 12


# ---- latency: a clock of our own ------------------------------------------------------------------------------------


def noisy(seconds: float, spread: float, seed: int) -> Iterator[float]:
    random = np.random.default_rng(seed)
    return (seconds * float(random.uniform(1 - spread, 1 + spread)) for _ in itertools.count())


QUICK = Protocol(warmup_s=0, seconds=0, min_blocks=42, precision=None)


@pytest.mark.parametrize(("ratio", "verdict"), [(2.0, "faster"), (1.1, "faster"), (0.8, "slower")])
def test_a_known_ratio_is_found(clock: dict[str, Iterator[float]], ratio: float, verdict: str) -> None:
    clock |= {"dense": noisy(0.01, 0.02, 0), "packed": noisy(0.01 / ratio, 0.02, 1)}
    found = alternate(run_named("dense"), run_named("packed"), "cpu", QUICK)
    assert found.ratio[0] == pytest.approx(ratio, rel=0.01)
    assert found.ratio[1] <= found.ratio[0] <= found.ratio[2]
    assert found.ratio[1] <= ratio * 1.005
    assert found.ratio[2] >= ratio * 0.995
    assert found.null[1] <= 1 <= found.null[2]
    assert found.verdict == verdict
    assert len(found.dense_ms) == len(found.packed_ms) == 42
    assert np.median(found.dense_ms) == pytest.approx(10, rel=0.01)
    assert np.median(found.packed_ms) == pytest.approx(10 / ratio, rel=0.01)


def test_equal_networks_differ_in_nothing(clock: dict[str, Iterator[float]]) -> None:
    clock |= {"dense": noisy(0.01, 0.05, 0), "packed": noisy(0.01, 0.05, 1)}
    assert alternate(run_named("dense"), run_named("packed"), "cpu", QUICK).verdict == "no difference"
    clock |= {"dense": itertools.repeat(0.01), "packed": itertools.repeat(0.01)}
    found = alternate(run_named("dense"), run_named("packed"), "cpu", QUICK)
    assert (found.ratio, found.null, found.verdict) == ((1, 1, 1), (1, 1, 1), "no difference")


def test_a_machine_that_grows_slower_does_not_look_like_a_difference(clock: dict[str, Iterator[float]]) -> None:
    """Each measurement takes 0.1 % longer than the one before: alternating order takes that out of both ratios."""
    count = itertools.count()
    clock |= dict.fromkeys(("dense", "packed"), (0.01 * 1.001 ** next(count) for _ in itertools.count()))
    found = alternate(run_named("dense"), run_named("packed"), "cpu", QUICK)
    assert found.ratio[0] == pytest.approx(1, abs=1e-5)
    assert found.null[1] <= 1 <= found.null[2]


def comparison(ratio: tuple[float, float, float], null: tuple[float, float, float]) -> Measurement:
    return Measurement(dense_ms=np.array([1.0, 2, 3, 4, 5]), packed_ms=np.array([1.0, 1, 1]), ratio=ratio, null=null)


@pytest.mark.parametrize("good_attempt", [1, 2, 3, 4])
def test_a_null_test_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch, good_attempt: int) -> None:
    results = [comparison((2.0, 1.9, 2.1), (1.1, 1.05, 1.15))] * 4
    results[good_attempt - 1] = comparison((1.5, 1.4, 1.6), (1.0, 0.99, 1.01))
    left = iter(results)
    monkeypatch.setattr(latency, "_alternate_once", lambda *arguments: next(left))
    found = alternate(run_named("dense"), run_named("packed"), "cpu", QUICK)
    assert found.attempts == min(good_attempt, QUICK.attempts)
    assert len(list(left)) == 4 - found.attempts
    assert found.verdict == ("faster" if good_attempt <= QUICK.attempts else "not trusted")
    assert found.ratio == results[found.attempts - 1].ratio
    assert found.columns()["attempts"] == found.attempts


def test_a_dense_network_that_differs_from_itself_is_not_trusted(
    clock: dict[str, Iterator[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two measurements of the dense network, as it is named, takes a tenth longer in every block."""
    monkeypatch.setattr("suite.timing.itertools.permutations", lambda runs: [tuple(runs)])
    clock |= {"dense": itertools.cycle([0.01, 0.011]), "packed": itertools.repeat(0.01)}
    found = alternate(run_named("dense"), run_named("packed"), "cpu", QUICK)
    assert found.null == pytest.approx((1 / 1.1,) * 3)
    assert (found.verdict, found.attempts) == ("not trusted", QUICK.attempts)


@pytest.mark.parametrize(
    ("ratio", "null", "verdict"),
    [
        ((1.2, 1.1, 1.3), (1.0, 0.99, 1.01), "faster"),
        ((1.2, 1.0, 1.3), (1.0, 0.99, 1.01), "no difference"),
        ((0.9, 0.8, 1.0), (1.0, 0.99, 1.01), "no difference"),
        ((0.9, 0.8, 0.99), (1.0, 1.0, 1.0), "slower"),
        ((1.2, 1.1, 1.3), (1.02, 1.01, 1.03), "not trusted"),
        ((0.9, 0.8, 0.99), (0.98, 0.97, 0.99), "not trusted"),
    ],
)
def test_what_may_be_claimed(ratio: tuple[float, float, float], null: tuple[float, float, float], verdict: str) -> None:
    found = comparison(ratio, null)
    assert found.verdict == verdict
    columns = found.columns()
    assert (columns["dense_ms"], columns["dense_ms_q1"], columns["dense_ms_q3"]) == (3, 2, 4)
    assert (columns["speedup_x"], columns["speedup_low_x"], columns["speedup_high_x"]) == ratio
    assert (columns["null_x"], columns["null_low_x"], columns["null_high_x"]) == null
    assert (columns["blocks"], columns["verdict"]) == (5, verdict)


def test_measuring_stops_when_the_interval_is_narrow(clock: dict[str, Iterator[float]]) -> None:
    plan = Protocol(warmup_s=0, seconds=60, min_blocks=30, precision=0.03)
    clock |= {"dense": noisy(0.01, 0.01, 0), "packed": noisy(0.005, 0.01, 1)}
    assert len(alternate(run_named("dense"), run_named("packed"), "cpu", plan).dense_ms) == 30
    clock |= {"dense": noisy(0.01, 0.4, 0), "packed": noisy(0.005, 0.4, 1)}
    assert len(alternate(run_named("dense"), run_named("packed"), "cpu", plan).dense_ms) > 30


def test_a_captured_network_lives_as_long_as_its_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
    network, images = nn.Linear(2, 2), torch.zeros(1, 2)
    held: list[weakref.ref[object]] = [weakref.ref(network), weakref.ref(images)]
    run = captured(functools.partial(network, images))
    del network, images
    assert all(one() is not None for one in held)
    del run
    assert all(one() is None for one in held)


def test_protocols() -> None:
    quick = protocol(Timing(protocol="quick"))
    cpu, gpu = (protocol(Timing(device=device)) for device in ("cpu", "cuda"))
    assert quick.precision is None
    assert quick.seconds < 1
    assert (cpu.precision, gpu.precision) == (0.03, 0.01)
    assert (quick.processes, cpu.processes, gpu.processes) == (1, 3, 3)
    assert min(cpu.min_blocks, gpu.min_blocks) >= 30
    assert min(cpu.warmup_s, gpu.warmup_s) >= 0.5


@torch.inference_mode()
def test_a_larger_network_is_really_slower() -> None:
    small, large = nn.Conv2d(4, 4, 3), nn.Conv2d(64, 64, 3)
    x, wide = torch.randn(1, 4, 16, 16), torch.randn(4, 64, 32, 32)
    found = alternate(lambda: large(wide), lambda: small(x), "cpu", protocol(Timing(protocol="quick")))
    assert found.ratio[1] > 3
    assert found.verdict != "slower"
    assert len(found.dense_ms) >= 10
