"""Records beside a measurement: other processes, throttling, peak memory, bounds; and fresh processes."""

from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_grid
import torch
from torch import nn

from suite import records
from suite.contract import ConvPlan, PruningPlan
from suite.graph import Graph
from suite.measure import bounds, machine
from suite.measure import comparison as comparisons
from suite.measure.comparison import in_fresh_process
from suite.measure.latency import Measurement, combine
from suite.measure.memory import peak_bytes
from suite.measure.protocol import Protocol
from suite.models import build
from suite.run import Context, execute
from suite.stages import Timed, Timing

# ---- several processes as one ----------------------------------------------------------------------------------------


def measurement(
    ratio: tuple[float, float, float], null: tuple[float, float, float] = (1, 0.99, 1.01), **more: Any
) -> Measurement:
    values: dict[str, Any] = {"dense_ms": np.array([2.0, 4.0]), "packed_ms": np.array([1.0, 2.0]), **more}
    return Measurement(ratio=ratio, null=null, **values)


def test_the_interval_of_several_processes_covers_each_of_them() -> None:
    found = combine(
        [measurement((1.5, 1.4, 1.6)), measurement((1.2, 1.15, 1.25), attempts=2), measurement((1.3, 1.2, 1.7))]
    )
    assert found.ratio == (1.3, 1.15, 1.7)
    assert (found.attempts, found.verdict) == (2, "faster")
    assert found.columns()["blocks"] == 6
    assert found.columns()["dense_ms"] == 3


def test_one_process_without_a_gain_takes_the_claim_away() -> None:
    assert combine([measurement((1.5, 1.4, 1.6)), measurement((1.01, 0.99, 1.03))]).verdict == "no difference"


@pytest.mark.parametrize("worst", [(1.05, 1.02, 1.08), (0.9, 0.85, 0.95)])
def test_one_null_test_that_fails_fails_them_all(worst: tuple[float, float, float]) -> None:
    three = [
        measurement((2, 1.9, 2.1)),
        measurement((2, 1.9, 2.1), worst),
        measurement((2, 1.9, 2.1), (1.01, 1.001, 1.02)),
    ]
    found = combine(three)
    assert found.null == worst
    assert found.verdict == "not trusted"


def test_one_process_stays_as_it_is() -> None:
    alone = measurement((1.5, 1.4, 1.6))
    assert combine([alone]).columns() == alone.columns()


def test_percentiles() -> None:
    columns = measurement((1, 1, 1), dense_ms=np.arange(101.0)).columns()
    names = ("dense_ms_p5", "dense_ms_q1", "dense_ms", "dense_ms_q3", "dense_ms_p95")
    assert [columns[name] for name in names] == [5, 25, 50, 75, 95]


def test_a_fresh_process_is_another_one_each_time() -> None:
    pids = {in_fresh_process(os.readlink, "/proc/self") for _ in range(2)}
    assert len(pids | {str(os.getpid())}) == 3


def test_a_fresh_process_that_fails_or_dies_says_so() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        in_fresh_process(int, "no network")
    with pytest.raises(ValueError, match="a measuring process was killed; out of memory"):
        in_fresh_process(os._exit, 1)


# ---- the machine -----------------------------------------------------------------------------------------------------


class FakeNvml(types.ModuleType):
    """A GPU of our own: `throttle` bits, the processes on it."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = range(3)

    class NVMLError(Exception):
        """Stand in for NVML's error."""

    def __init__(self, *, throttle: int = 0, pids: tuple[int, ...] = (), fails: bool = False) -> None:
        super().__init__("pynvml")
        self.throttle, self.pids, self.fails = throttle, pids, fails
        self.nvmlInit = self.nvmlShutdown = lambda: None
        self.nvmlDeviceGetHandleByUUID = lambda uuid: uuid
        self.nvmlDeviceGetClockInfo = lambda handle, which: (1980, 2619)[which]
        self.nvmlDeviceGetPowerUsage = lambda handle: 350_000
        self.nvmlDeviceGetEnforcedPowerLimit = lambda handle: 700_000
        self.nvmlDeviceGetTemperature = lambda handle, which: 41
        self.nvmlSystemGetDriverVersion = lambda: b"600.1"

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        if self.fails:
            raise self.NVMLError("Not Supported")
        return self.throttle

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[types.SimpleNamespace]:
        return [types.SimpleNamespace(pid=pid) for pid in self.pids]


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda number: types.SimpleNamespace(uuid="1234"))


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize(
    ("gpu", "others", "flags"),
    [
        (FakeNvml(throttle=0x1 | 0x2, pids=(os.getpid(),)), 0, ()),
        (FakeNvml(pids=(os.getpid(), 77, 78)), 2, ("2 other processes on the GPU",)),
        (FakeNvml(throttle=0x4 | 0x40), 0, ("GPU throttled: hardware thermal slowdown, power cap",)),
        (FakeNvml(pids=(77,)), 0, ()),  # in a container: our own process, under another number
        (FakeNvml(pids=(77, 78)), 1, ("1 other processes on the GPU",)),
    ],
)
def test_the_state_of_a_gpu_is_recorded_and_judged(
    monkeypatch: pytest.MonkeyPatch, gpu: FakeNvml, others: int, flags: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", gpu)
    with machine.watched("cuda") as found:
        pass
    for when in ("before", "after"):
        state = found[when]
        assert (state["sm_mhz"], state["memory_mhz"], state["power_w"], state["driver"]) == (1980, 2619, 350, "600.1")
        assert state["other_processes"] == others
    assert machine.flags([found], "cuda") == flags
    json.dumps(found)


@pytest.mark.usefixtures("one_gpu")
def test_a_gpu_that_cannot_be_read_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(fails=True))
    with machine.watched("cuda") as found:
        pass
    assert found["before"] == {"error": "Not Supported"}
    assert machine.flags([found], "cuda") == ()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert machine.gpu() is None


def test_load_of_other_processes_is_seen_and_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds, in which all cores were busy for 12 s, 9 s of them with us."""
    times = {"perf_counter": iter([100.0, 110.0]), "busy": iter([50.0, 62.0]), "own": iter([1.0, 10.0])}
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(times["perf_counter"]))
    monkeypatch.setattr(machine, "_busy_s", lambda: next(times["busy"]))
    monkeypatch.setattr(machine, "_own_s", lambda: next(times["own"]))
    with machine.watched("cpu") as found:
        pass
    assert found == {"before": None, "after": None, "other_cores": 0.3}
    assert machine.flags([{"other_cores": 0.1}, found], "cpu") == (
        f"other processes used 0.3 of {len(os.sched_getaffinity(0))} cores",
    )
    assert machine.flags([{"other_cores": 0.1}], "cpu") == ()
    monkeypatch.setattr(machine.arithmetic, "cpu_flags", frozenset)
    assert machine.flags([{"other_cores": 0.1}], "cpu", ["fp32", "bf16"]) == ("this CPU has no bf16 instructions",)


def test_peak_memory_is_weights_and_what_is_held_at_once() -> None:
    """Compare with two activations of [2, 8, 64, 64] floats and 8 * 8 + 3 * 8 weights."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 8, 1, bias=False), nn.AdaptiveAvgPool2d(1)
    ).eval()
    held = 2 * (2 * 8 * 64 * 64) * 4 + (64 + 24) * 4
    assert held <= peak_bytes(network, torch.randn(2, 3, 64, 64)) < 1.1 * held


# ---- bounds ----------------------------------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.second, self.pool, self.fc = nn.Conv2d(4, 6, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.first(x)))
        return self.fc(torch.flatten(self.pool(self.second(x)), 1))


def test_bounds_of_layers_by_hand() -> None:
    """Compare two groups of three filters with bounds by hand.

    One reads channels 0 to 2, the other channel 3; images of 8x8, a batch of 2, fp16.
    """
    graph = Graph(Two(), (3, 8, 8))
    kept_GI = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 1]]).bool()
    plan = PruningPlan({"second": ConvPlan(torch.tensor([0, 0, 0, 1, 1, 1]), kept_GI, torch.ones(6).bool())})
    peak = bounds.Peak(macs_per_s=1e6, bytes_per_s=1e4)
    first, second, fc = bounds.layer_bounds(graph, plan, peak, batch=2, dtype=torch.float16)
    assert first.macs == 2 * 64 * 4 * 27
    assert first.bytes == 2 * (2 * 64 * 3 + 4 * 27 + 2 * 64 * 4)
    assert second.macs == 2 * 64 * (3 * 3 + 3 * 1)
    assert second.bytes == 2 * (2 * 64 * 4 + 12 + 2 * 64 * 6)
    assert (fc.macs, fc.bytes) == (2 * 60, 2 * (2 * 6 + 60 + 2 * 10))
    assert second.arithmetic_ms == pytest.approx(1.536)
    assert second.memory_ms == second.bound_ms == pytest.approx(258.4)
    assert bounds.total_ms([first, second]) == pytest.approx(first.bound_ms + 258.4)
    assert first.macs + second.macs + fc.macs == 2 * graph.macs(plan).total


def test_a_channel_that_nobody_reads_is_not_moved() -> None:
    graph = Graph(Two(), (3, 8, 8))
    kept_GI = torch.tensor([[1, 1, 0, 0]]).bool()
    plan = PruningPlan({"second": ConvPlan(torch.zeros(6, dtype=torch.int64), kept_GI, torch.ones(6).bool())})
    first, second, _ = bounds.layer_bounds(
        graph, plan, bounds.Peak(macs_per_s=1, bytes_per_s=1), batch=1, dtype=torch.float32
    )
    assert first.bytes == 4 * (64 * 3 + 2 * 27 + 64 * 2)
    assert second.bytes == 4 * (64 * 2 + 12 + 64 * 6)


class Mobile(nn.Module):
    """Depthwise and grouped convolutions, and a linear layer at each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 1)
        self.deep, self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1, groups=2)
        self.narrow, self.mix, self.fc = nn.Conv2d(8, 4, 1), nn.Linear(4, 6), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.grouped(torch.relu(self.deep(torch.relu(self.wide(self.stem(x)))))))
        x = self.mix(self.narrow(x).flatten(2).transpose(1, 2))
        return self.fc(x.mean(1))


class Again(nn.Module):
    """One convolution called twice, on maps of two sizes, and a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.up, self.fc = nn.ConvTranspose2d(4, 2, 2, 2), nn.Linear(2, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.twice(torch.relu(self.stem(x))))
        x = torch.relu(self.twice(nn.functional.max_pool2d(x, 2)))
        return self.fc(self.up(x).mean((2, 3)))


@pytest.mark.parametrize("make", [lambda: build("resnet8", 10), Mobile, Again])
@pytest.mark.parametrize("removed", [0, 2])
def test_macs_of_the_layers_sum_to_those_of_the_network(make: Callable[[], nn.Module], removed: int) -> None:
    graph = Graph(make(), (3, 8, 8))
    full = {name: ConvPlan.full(conv.filters, conv.channels) for name, conv in graph.convs.items()}
    plan = PruningPlan(
        {name: one.having(kept_O=torch.arange(len(one.kept_O)) >= removed) for name, one in full.items()}
    )
    layers = bounds.layer_bounds(graph, plan, bounds.Peak(macs_per_s=1, bytes_per_s=1), batch=3, dtype=torch.float32)
    assert sum(layer.macs for layer in layers) == 3 * graph.macs(plan).total
    assert (graph.macs(plan).total < graph.dense_macs.total) == (removed > 0)
    assert len({layer.name for layer in layers}) == len(layers)
    assert min(layer.bytes for layer in layers) > 0


def test_bytes_of_other_layers_by_hand() -> None:
    peak, dense = bounds.Peak(macs_per_s=1, bytes_per_s=1), PruningPlan({})
    mobile, again = (
        {one.name: one.bytes for one in bounds.layer_bounds(graph, dense, peak, batch=2, dtype=torch.float16)}
        for graph in (Graph(Mobile(), (3, 8, 8)), Graph(Again(), (3, 8, 8)))
    )
    assert mobile["deep"] == 2 * (72 + 2 * 16 * (8 + 8))
    assert mobile["grouped"] == 2 * (32 + 2 * 16 * (8 + 8))
    assert mobile["mix"] == 2 * (24 + 2 * 16 * (4 + 6))
    assert again["twice"] == 2 * (144 + 2 * (64 + 16) * (4 + 4))
    assert again["up"] == 2 * (32 + 2 * (16 * 4 + 64 * 2))


def test_this_machine_has_a_peak() -> None:
    peak = bounds.measured_peak("cpu", torch.float32, 1)
    assert peak.macs_per_s > 1e8
    assert peak.bytes_per_s > 1e8
    assert bounds.measured_peak("cpu", torch.float32, 1) is peak


# ---- the stage -------------------------------------------------------------------------------------------------------


def test_the_full_protocol_measures_in_three_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def quick(timing: Timing) -> Protocol:
        return Protocol(warmup_s=0, seconds=0, min_blocks=6, precision=None, attempts=1, processes=3)

    monkeypatch.setattr(comparisons, "protocol", quick)
    monkeypatch.setattr(comparisons, "reference", lambda timing: ((), {}))
    context = Context(results=tmp_path, threads=1)
    run = tiny_grid.run_of("l1_filter")
    stage = Timed(pruned=run, timing=Timing(batch=2))
    assert [execute(one, context) for one in tiny_grid.grids.in_order([stage])] == ["done"] * 3
    row = records.read(records.rows_folder(tmp_path) / f"{stage.key}.json")
    assert isinstance(row, records.TimedRow)
    assert [entry["process"] for entry in row.processes] == [0, 1, 2]
    assert row.blocks == sum(entry["blocks"] for entry in row.processes)
    assert row.speedup_x == np.median([entry["speedup_x"] for entry in row.processes])
    assert row.speedup_low_x == min(entry["speedup_low_x"] for entry in row.processes)
    assert all(entry["other_cores"] >= 0 for entry in row.processes)
    assert row.execution == "tuned"
    assert sum(row.layers["packed"]["executions"].values()) > 0
    assert (context.folder(stage) / "executions.json").is_file()
    assert row.packed_peak_bytes
    assert row.dense_peak_bytes
    assert row.bound_ms
    assert row.dense_bound_ms
    assert row.dense_bound_ms > row.bound_ms
    assert row.packed_ms
    assert row.of_bound == row.bound_ms / row.packed_ms
    assert records.from_dict(records.to_dict(row)) == row
