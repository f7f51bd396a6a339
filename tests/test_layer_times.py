"""The table of layer times: interpolation, filter groups, the dense network, the file."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from suite import models
from suite.graph import Graph
from suite.measure import Timing, layer_times
from suite.measure.layer_times import LayerTable, Sweep
from suite.plan import Budget, ConvPlan, PruningPlan
from suite.select import filter_planner, meet

GRAPH = Graph(models.build("resnet8", 10), (3, 8, 8))


def table_of_products(dense_ms: float = 20.0, gather_ms: float = 0.0) -> LayerTable:
    """A layer takes a thousandth of filters x channels milliseconds."""
    sweeps = {}
    for name, conv in GRAPH.convs.items():
        filters, channels = sorted({1, conv.filters}), sorted({1, conv.channels})
        ms_FC = tuple(tuple(f * c / 1000 for c in channels) for f in filters)
        sweeps[name] = Sweep(filters=tuple(filters), channels=tuple(channels), ms_FC=ms_FC, gather_ms=gather_ms)
    layers = {name: name for name in GRAPH.convs}
    return LayerTable(timing=Timing(), threads=1, layers=layers, sweeps=sweeps, dense_ms=dense_ms, provenance={})


def test_times_between_widths_are_interpolated() -> None:
    sweep = Sweep(filters=(1, 5), channels=(2, 4), ms_FC=((1, 3), (5, 9)), gather_ms=0)
    assert [sweep.ms(f, c) for f, c in ((1, 2), (5, 4), (3, 2), (3, 3), (0, 3), (3, 0))] == [1, 9, 3, 4.5, 0, 0]


@pytest.mark.parametrize("dense_ms", [20.0, 5.0])
def test_the_empty_plan_takes_the_time_of_the_dense_network(dense_ms: float) -> None:
    """With time beside the layers, and where the layers alone take longer than the network."""
    table = table_of_products(dense_ms)
    assert table.predict_ms(GRAPH, PruningPlan({})) == pytest.approx(dense_ms)
    assert table.cut(GRAPH, PruningPlan({})) == pytest.approx(0)


def test_a_smaller_network_takes_less_time_by_the_layers_that_shrank() -> None:
    table, scores = table_of_products(), {n: torch.arange(c.filters).float() for n, c in GRAPH.convs.items()}
    plans = [meet(filter_planner(GRAPH, scores, ranking="layer"), GRAPH, Budget(share=s)).plan for s in (0.2, 0.5, 0.8)]
    times = [table.predict_ms(GRAPH, plan) for plan in plans]
    assert 20 > times[0] > times[1] > times[2]
    kernels = [sum(layer.kernels for layer in GRAPH.live(plan).layers.values()) for plan in (PruningPlan({}), plans[1])]
    assert 20 - times[1] == pytest.approx((kernels[0] - kernels[1]) / 1000)


@pytest.mark.parametrize(("gather_ms", "ms"), [(0.0, 2 * 8 * 8 / 1000), (1.0, 16 * 16 / 1000)])
def test_groups_run_apart_unless_gathers_cost_more(gather_ms: float, ms: float) -> None:
    name = next(name for name, conv in GRAPH.convs.items() if (conv.filters, conv.channels) == (16, 16))
    kept_GI = torch.arange(16).reshape(2, 8)[:, :, None].eq(torch.arange(16)).any(1)
    layer = ConvPlan(torch.arange(16) % 2, kept_GI, torch.ones(16, dtype=torch.bool))
    assert table_of_products(gather_ms=gather_ms).layer_ms(name, layer) == pytest.approx(ms)


def test_a_measured_table_comes_back_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_times, "STEPS", 2)
    monkeypatch.setattr(layer_times, "ROUNDS", range(1, 2))
    x = torch.randn(64, 64)
    table = layer_times.measure_table(GRAPH, Timing(batch=1, protocol="quick"), functools.partial(torch.mm, x, x))
    assert set(table.layers) == set(GRAPH.convs)
    assert len(table.sweeps) < len(table.layers)
    assert all(ms > 0 for sweep in table.sweeps.values() for row in sweep.ms_FC for ms in row)
    assert table.provenance["commit"]
    layer_times.save(table, tmp_path / "table.json")
    assert layer_times.load(tmp_path / "table.json") == table
    (tmp_path / "table.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no table of layer times"):
        layer_times.load(tmp_path / "table.json")
