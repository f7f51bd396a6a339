"""Layer times: terms of a layer, the fit, predicted times, the file."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from suite import models
from suite.graph import Graph
from suite.measure import Timing, layer_times
from suite.measure.layer_times import TERMS, LayerTable, terms
from suite.plan import Budget, ConvPlan, PruningPlan
from suite.select import filter_planner, meet

MODEL = models.build("resnet8", 10).eval()
GRAPH = Graph(MODEL, (3, 8, 8))
FIRST = next(name for name, conv in GRAPH.convs.items() if (conv.filters, conv.channels) == (16, 16))
"""The first layer that reads the residual stream."""


def table_of(costs: Mapping[str, float], protocol: Literal["quick", "full"] = "quick") -> LayerTable:
    """Every layer has these costs; the dense network takes 20 ms, of which 1 ms is no layer's."""
    every = tuple(costs.get(name, 0.0) for name in TERMS)
    layers = layer_times.geometries(GRAPH)
    timing = Timing(batch=2, protocol=protocol)
    costs_of = dict.fromkeys(layers.values(), every)
    return LayerTable(
        timing=timing, threads=1, layers=layers, costs=costs_of, dense_ms=20.0, rest_ms=1.0, provenance={}
    )


def of_layer(plan: ConvPlan, execution: str, name: str = FIRST, batch: int = 0) -> dict[str, float]:
    """The terms that are not 0."""
    counts = terms(GRAPH, GRAPH.live(PruningPlan({name: plan})), name, execution, batch)
    return {term: count for term, count in zip(TERMS, counts, strict=True) if count}


def halves() -> ConvPlan:
    """Two groups of eight filters, which read the channels 0 to 7 and 4 to 11."""
    reads = torch.arange(16)
    kept_GI = torch.stack([reads < 8, (reads >= 4) & (reads < 12)])
    return ConvPlan(torch.arange(16) % 2, kept_GI, torch.ones(16, dtype=torch.bool))


def test_terms_of_a_whole_layer_are_its_widths() -> None:
    full = ConvPlan.full(16, 16)
    for execution in layer_times.EXECUTIONS:
        expected = {"convolutions": 1, "filters": 16, "channels": 16, "macs": 256, "vector_macs": 256}
        assert of_layer(full, execution) == expected


def test_a_merged_layer_reads_the_union_and_groups_read_their_own() -> None:
    """Both gather, because the residual stream has an order of its own."""
    union = {"filters": 16, "channels": 12, "macs": 192, "vector_macs": 256, "gathered": 12}
    assert of_layer(halves(), "union") == {"convolutions": 1, **union}
    apart = {"filters": 16, "channels": 16, "macs": 128, "vector_macs": 512, "gathered": 16, "written": 16}
    assert of_layer(halves(), "groups") == {"convolutions": 2, **apart}


def test_channels_that_are_copied_are_convolved_in_parts_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image has 8 x 8 pixels, so two images of 12 channels are a part, and four of 8."""
    monkeypatch.setattr(layer_times, "PIECES", {"any": 64 * 12 * 2})
    union, apart = (of_layer(halves(), execution, batch=8) for execution in layer_times.EXECUTIONS[::-1])
    assert (union["convolutions"], union["written"]) == (4, 16)
    assert (apart["convolutions"], apart["written"]) == (2 * 3, 16)
    assert of_layer(ConvPlan.full(16, 16), "groups", batch=8)["convolutions"] == 1


CLOSING = next(name for name, conv in GRAPH.convs.items() if conv.role == "closing" and conv.channels == 16)


def test_a_layer_behind_one_producer_reads_slices_and_a_closing_one_adds() -> None:
    """The sum gets the order of the groups."""
    apart = of_layer(halves(), "groups", CLOSING)
    assert {term: apart.get(term) for term in ("gathered", "sliced", "written", "summed", "moved")} == {
        **{"gathered": None, "sliced": 16, "written": None, "summed": 16, "moved": 16}
    }


def test_a_merged_closing_layer_computes_all_channels_of_the_sum() -> None:
    """Filters of 0 stand for the removed ones, and groups compute their own only."""
    few = ConvPlan(torch.zeros(16, dtype=torch.int64), torch.ones(1, 16, dtype=torch.bool), torch.arange(16) < 4)
    for execution in layer_times.EXECUTIONS:
        assert (of_layer(few, execution, CLOSING)["filters"], of_layer(few, execution, CLOSING)["macs"]) == (16, 256)
    two = dataclasses.replace(halves(), kept_O=torch.arange(16) < 4)
    assert of_layer(two, "union", CLOSING)["filters"] == 16
    assert (of_layer(two, "groups", CLOSING)["filters"], of_layer(two, "groups", CLOSING)["moved"]) == (4, 16)


def test_an_operand_that_lacks_channels_of_the_sum_is_gathered() -> None:
    """The first closing layer of the second stage, beside a shortcut of half the channels or a convolution of all."""
    for model, moved in (("resnet8_a", 32), ("resnet8", 0)):
        graph = Graph(models.build(model, 10), (3, 8, 8))
        name = next(name for name, conv in graph.convs.items() if conv.role == "closing" and conv.filters == 32)
        counts = terms(graph, graph.live(PruningPlan({})), name, "groups")
        assert counts[TERMS.index("moved")] == moved


def test_of_two_convolutions_the_one_of_fewer_groups_has_the_sum() -> None:
    model = models.build("resnet18", 10).eval()
    graph = Graph(model, (3, 32, 32))
    shortcut = next(name for name, conv in graph.convs.items() if conv.role == "shortcut")
    closing = next(name for name, conv in graph.convs.items() if conv.role == "closing" and conv.filters == 128)
    plan = ConvPlan(torch.arange(128) % 2, torch.rand(2, 128) < 0.5, torch.ones(128, dtype=torch.bool))
    for plans, summed in (({}, shortcut), ({closing: plan}, shortcut)):
        live = graph.live(PruningPlan(plans))
        widths = {name: layer_times._sum_widths(graph, live, name) for name in (closing, shortcut)}
        assert widths == {**dict.fromkeys(widths, (0, 0)), summed: (128, 128)}


def test_the_empty_plan_takes_the_time_of_the_dense_network() -> None:
    table = table_of({"macs": 1e-3})
    assert table.predict_ms(GRAPH, PruningPlan({})) == 20
    assert table.cut(GRAPH, PruningPlan({})) == 0


def test_a_smaller_network_takes_less_time_by_the_layers_that_shrank() -> None:
    table, scores = table_of({"macs": 1e-3}), {n: torch.arange(c.filters).float() for n, c in GRAPH.convs.items()}
    plans = [meet(filter_planner(GRAPH, scores, ranking="layer"), GRAPH, Budget(share=s)).plan for s in (0.2, 0.5, 0.8)]
    times = [table.predict_ms(GRAPH, plan) for plan in plans]
    assert times[0] > times[1] > times[2]
    kernels = sum(layer.kernels for layer in GRAPH.live(plans[1]).layers.values())
    assert times[1] == pytest.approx(1 + kernels / 1000)


@pytest.mark.parametrize(("costs", "execution"), [({"macs": 1e-3}, "groups"), ({"convolutions": 1.0}, "union")])
def test_the_fastest_execution_of_the_network_is_predicted(costs: dict[str, float], execution: str) -> None:
    plan = PruningPlan({FIRST: halves()})
    live = GRAPH.live(plan)
    table = table_of(costs)
    total = sum(table._layer_ms(GRAPH, live, name, execution) for name in GRAPH.convs)
    assert table.predict_ms(GRAPH, plan) == pytest.approx(1 + total)
    assert table_of(costs, "full").predict_ms(GRAPH, plan) <= table.predict_ms(GRAPH, plan) + 1e-9


def test_the_fit_finds_planted_costs_and_none_is_negative() -> None:
    draw = np.random.default_rng(0)
    costs = np.array([0.1, 0.01, 0.02, 1e-4, 0, 0.05, 0, 0, 0, 0.01])
    every = draw.integers(1, 64, (40, len(TERMS))).astype(float)
    fitted = layer_times._fitted([(one, float(one @ costs)) for one in every])
    np.testing.assert_allclose(fitted, costs, atol=1e-8)
    noise = np.exp(0.3 * draw.standard_normal(40))
    noisy = layer_times._fitted([(one, float(one @ costs) * x) for one, x in zip(every, noise, strict=True)])
    assert min(noisy) >= 0


def test_noise_does_not_make_the_costs_too_low() -> None:
    """One term, times of half and one and a half: the mean counts."""
    one = np.eye(len(TERMS))[0]
    assert layer_times._fitted([(one, 0.5), (one, 1.5)])[0] == pytest.approx(1.0, abs=1e-3)


def test_random_plans_fit_the_network_and_are_of_all_kinds() -> None:
    """Two groups, groups whose closing layers lose filters, untied filters, whole vectors."""
    generator = torch.Generator().manual_seed(0)
    plans = [layer_times.random_plan(GRAPH, generator, number) for number in range(1, 5)]
    for plan in plans:
        assert GRAPH.macs(plan).total > 0
    assert max(len(layer.groups) for layer in plans[0].values()) == 2
    assert not bool(plans[1][CLOSING].kept_O.all())
    assert not bool(plans[2][CLOSING].kept_O.all())
    assert (
        len({int(GRAPH.live(plans[2]).channels[node].sum()) for node in GRAPH.nodes if GRAPH.kinds[node] == "sum"}) > 1
    )
    assert all(int(layer.kept_O.sum()) % 8 == 0 for layer in plans[3].values())


def test_a_measured_table_comes_back_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_times, "PLANS", 3)
    monkeypatch.setattr(layer_times, "REPEATS", 1)
    table = layer_times.measure_table(MODEL, GRAPH, Timing(batch=1, protocol="quick"))
    assert set(table.layers) == set(GRAPH.convs)
    assert len(table.costs) < len(table.layers)
    assert all(ms >= 0 for costs in table.costs.values() for ms in costs)
    assert all(sum(costs) > 0 for costs in table.costs.values())
    assert 0 < table.rest_ms < table.dense_ms
    assert table.provenance["commit"]
    layer_times.save(table, tmp_path / "table.json")
    assert layer_times.load(tmp_path / "table.json") == table
    (tmp_path / "table.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no table of layer times"):
        layer_times.load(tmp_path / "table.json")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_table_of_a_gpu_has_times_of_its_events(
    precision: Literal["fp32", "bf16"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_times, "PLANS", 6)
    model = models.build("resnet8", 10).eval().to("cuda")
    timing = Timing(device="cuda", batch=64, precision=precision, layout="channels_last", protocol="quick")
    table = layer_times.measure_table(model, Graph(model, (3, 32, 32)), timing)
    assert set(table.layers) == set(GRAPH.convs)
    assert all(ms >= 0 for costs in table.costs.values() for ms in costs)
    assert all(sum(costs) > 0 for costs in table.costs.values())
    assert 0 < table.rest_ms < table.dense_ms
    assert table.provenance["device"] == torch.cuda.get_device_name()


class Twice(nn.Module):
    """A layer that is called twice, and two sums."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.relu(x) + x) + x


def test_all_calls_of_a_layer_and_all_sums_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()  # each node takes one
    monkeypatch.setattr(layer_times, "time", SimpleNamespace(process_time=lambda: next(seconds)))
    monkeypatch.setattr(layer_times, "steady_clock", lambda device: {"clock": None})
    profile = layer_times.node_profile(fx.symbolic_trace(Twice()), torch.zeros(1, 1, 1, 1), "cpu")
    assert profile.module_ms["relu"] == 2000
    assert sum(profile.module_ms.values()) == 6000
