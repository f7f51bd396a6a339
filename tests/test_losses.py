"""Causes of the time that layers lose: layers made by hand for each cause, and a small network in two runtimes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_pack import images
from test_pack_executions import packed_of
from torch import nn

from suite.graph import Graph
from suite.measure import Timing, losses
from suite.measure.losses import REST, Loss, Parts
from suite.models import build
from suite.pack import operations, pack, tuned
from suite.pack.operations import FusedConv
from suite.plan import PruningPlan

NOTHING = {"ms": 1.0, "moves_ms": 0.0, "launch_ms": 0.1, "memory_ms": 0.1, "vectors_ms": 0.0}
"""A layer of a millisecond, in a convolution that is limited by arithmetic."""


@pytest.mark.parametrize(
    ("parts", "due_ms", "cause"),
    [
        ({}, 0.95, ""),
        ({}, 0.3, "other"),
        ({"launch_ms": 0.9}, 0.3, "launch"),
        ({"launch_ms": 0.9, "memory_ms": 0.9, "vectors_ms": 0.9}, 0.3, "launch"),
        ({"moves_ms": 0.5}, 0.4, "moves"),
        ({"moves_ms": 0.2}, 0.4, "other"),
        ({"memory_ms": 0.9}, 0.3, "memory"),
        ({"memory_ms": 0.9, "vectors_ms": 0.7}, 0.3, "memory"),
        ({"memory_ms": 0.5}, 0.3, "other"),
        ({"vectors_ms": 0.5}, 0.3, "vectors"),
        ({"vectors_ms": 0.5, "moves_ms": 0.2}, 0.3, "vectors"),
    ],
)
def test_the_cause_is_the_part_that_explains_most_of_the_loss(
    parts: dict[str, float], due_ms: float, cause: str
) -> None:
    assert Parts(**{**NOTHING, **parts}).cause(due_ms) == cause


def test_unfilled_vectors_are_the_time_that_wider_convolutions_do_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four filters in vectors of 16: the wider convolution takes as long, so three quarters of the work are unfilled."""
    like = nn.Conv2d(16, 4, 3, padding=1)
    assert like.bias is not None
    conv = FusedConv(like, like.weight.detach(), like.bias.detach(), 1, False, torch.zeros(1, 16, 8, 8))
    call = losses._Call(shape=(1, 16, 8, 8), pixels=2 * 64, count=2)
    network = losses._Network(
        run=lambda: None,
        profile=losses.Profile(module_ms={"layer": 3.0}, conv_ms={"layer": 2.0}),
        choice=None,  # type: ignore[arg-type]
        calls={"layer": [(conv, call)]},
    )
    alone = losses._Alone(Timing(), "contiguous", torch.float32)
    monkeypatch.setattr(alone, "_times", lambda *_: (1.1, 1.1, 0.1))
    monkeypatch.setattr(alone, "_copy_ms", lambda moved: 0.0)
    parts = alone.parts(network, "layer", 1)
    assert parts.moves_ms == 1
    assert parts.launch_ms == pytest.approx(2 * 0.1 / 1.1)
    assert parts.vectors_ms == pytest.approx(2 * 0.75 / 1.1)
    assert network.macs("layer") == 2 * 64 * 16 * 4 * 9
    monkeypatch.setattr(alone, "_times", lambda *_: (1.1, 4.1, 0.1))
    assert alone.parts(network, "layer", 1).vectors_ms == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_every_layer_of_a_network_has_a_line(runtime: str) -> None:
    if runtime != "torch":
        pytest.importorskip(runtime)
    packed = packed_of("resnet8", 2, 0.5)
    model = build("resnet8", 10).eval()
    graph = Graph(model, packed.input_shape)
    dense = pack(model, graph, PruningPlan({}))
    timing = Timing(batch=2, runtime=runtime)  # type: ignore[arg-type]
    lines = losses.losses(graph, packed.plan, (dense, packed), ("union", "union"), images(2).float(), timing)
    assert {line.layer for line in lines} == {*graph.convs, REST}
    lost = [line.lost_ms for line in lines]
    assert lost == sorted(lost, reverse=True)
    for line in lines:
        assert line.lost_ms == pytest.approx(line.packed_ms - line.macs_left * line.dense_ms)
        assert line.cause in {"", *losses.CAUSES}
        if line.parts is not None:
            assert line.parts.ms >= line.parts.moves_ms >= 0
            assert min(vars(line.parts).values()) >= 0


def test_the_form_without_zeros_has_the_layout_of_the_packed_network(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, x = packed_of("resnet8", 2, 0.5), images(2).float()
    graph = Graph(build("resnet8", 10), packed.input_shape)
    _, choice = tuned(packed, x, execution="union", layout="channels_last")
    layouts, real = list[str](), losses._network

    def network(*arguments: Any) -> losses._Network:
        made = real(*arguments)
        layouts.append(made.choice.layout)
        return made

    monkeypatch.setattr(losses, "_network", network)
    monkeypatch.setattr(losses, "ALONE_S", 0)
    losses.losses(graph, packed.plan, (packed, packed), (choice, choice), x, Timing(batch=2))
    assert layouts == ["channels_last"] * 3


@torch.no_grad()
def test_macs_of_a_batch_in_parts_are_those_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of two images divide a batch of five into 2 + 2 + 1."""
    packed = packed_of("resnet8", 2, 0.5)
    graph = Graph(build("resnet8", 10), packed.input_shape)
    left = graph.layer_macs(graph.live(packed.plan))
    for images_at_once in (5, 2):
        monkeypatch.setattr(
            operations, "_pieces", lambda x, *_, n=images_at_once: [slice(i, i + n) for i in range(0, len(x), n)]
        )
        network = losses._network(packed, "groups", images(5).float(), Timing(batch=5))
        assert {name: network.macs(name) for name in network.calls} == {name: 5 * left[name] for name in network.calls}


def test_the_summary_names_the_largest_cause_first() -> None:
    def line(layer: str, dense_ms: float, packed_ms: float, cause: str) -> Loss:
        lost_ms = packed_ms - 0.4 * dense_ms
        about = {"form": "groups", "macs_left": 0.4, "time_left": packed_ms / dense_ms, "parts": None}
        return Loss(layer=layer, dense_ms=dense_ms, packed_ms=packed_ms, lost_ms=lost_ms, cause=cause, **about)  # type: ignore[arg-type]

    lines = [line("a", 10, 9, "vectors"), line("b", 10, 7, "moves"), line("c", 10, 8, "moves"), line(REST, 1, 0.4, "")]
    said = losses.text(lines)
    assert said.startswith(
        "40% of the MACs and 79% of the time are left; 12 of 24.4 ms are beyond the share of MACs: 58% "
    )
    assert said.index("gathers, copies") < said.index("widths that fill no vectors")
    assert "most in c" in said
    assert losses.text([line("a", 10, 4, ""), line(REST, 1, 0.4, "")]).endswith(
        "no layer takes more than its share of the MACs"
    )


def test_a_network_of_torch_compile_has_no_times_of_layers() -> None:
    both = (SimpleNamespace(packed=1), SimpleNamespace(packed=1))
    columns = losses.columns(both, ("compile", "compile"), ({}, {}), Timing())  # type: ignore[arg-type]
    assert columns == {"missing": "torch.compile has no profile of layers here"}


def test_a_gpu_has_no_times_of_layers() -> None:
    with pytest.raises(ValueError, match="on the CPU"):
        losses.losses(None, PruningPlan({}), (None, None), ("", ""), torch.zeros(1), Timing(device="cuda"))  # type: ignore[arg-type]
