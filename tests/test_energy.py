"""Energy beside time: counters, alternating blocks, null test, and reasons where there is no counter."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from test_report import pruned_row, run_of, timed_row
from test_report_signed import grid_of

from suite import records
from suite.measure import energy
from suite.measure.energy import Meter
from suite.measure.protocol import Timing
from suite.report import columns, frames
from suite.report.columns import table_columns
from suite.report.statistics import cells

TIMING = Timing(batch=4, protocol="full")


class Device:
    """A counter that runs of this device raise by known joules."""

    def __init__(self) -> None:
        self.joules = 0.0

    def run(self, joules: float) -> None:
        self.joules += joules


def zone(root: Path, name: str, kind: str, uj: int, largest: int = 1000) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "name").write_text(f"{kind}\n")
    (folder / "energy_uj").write_text(f"{uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{largest}\n")
    return folder


def test_energy_is_that_of_the_counter_for_each_image() -> None:
    device = Device()
    runs = {"dense": lambda: device.run(2.0), "packed": lambda: device.run(0.5), "null": lambda: device.run(2.0)}
    found = energy.measure(runs, TIMING, Meter("made", lambda: device.joules), block_s=1e-5)
    assert (found["dense_mj"], found["packed_mj"]) == pytest.approx((500, 125))
    assert (found["x"], found["low_x"], found["high_x"]) == pytest.approx((4, 4, 4))
    assert (found["null_low_x"], found["null_high_x"]) == pytest.approx((1, 1))


def test_a_counter_that_stands_still_is_no_measurement() -> None:
    runs = dict.fromkeys(("dense", "packed", "null"), lambda: None)
    with pytest.raises(ValueError, match="made counts no energy over 1e-05 s"):
        energy.measure(runs, TIMING, Meter("made", lambda: 1.0), block_s=1e-5)


def test_rapl_sums_packages_and_follows_a_counter_past_its_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (zone(tmp_path, f"intel-rapl:{n}", f"package-{n}", uj=900) for n in (0, 1))
    zone(tmp_path, "intel-rapl:2", "psys", uj=5)
    zone(tmp_path, "intel-rapl:0:0", "core", uj=5)
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    counter = energy.meter("cpu")
    before = counter.joules()
    (first / "energy_uj").write_text("950")
    (second / "energy_uj").write_text("99")  # 900 -> 1000 -> 0 -> 99
    assert counter.joules() - before == pytest.approx((50 + 200) / 1e6)
    assert counter.source == "RAPL"


def test_a_machine_without_a_counter_gets_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    found = energy.columns(lambda: None, lambda: None, TIMING)
    assert found == {"missing": f"this machine shows no RAPL counter in {tmp_path}, as most virtual machines"}

    def denied(path: Path, *_: Any) -> str:
        raise PermissionError(13, "denied", str(path))

    zone(tmp_path, "intel-rapl:0", "package-0", uj=1)
    monkeypatch.setattr(Path, "read_text", denied)
    assert "is readable by root only: chmod a+r it" in energy.columns(lambda: None, lambda: None, TIMING)["missing"]


def test_the_quick_protocol_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "meter", lambda device: pytest.fail("nothing is measured"))
    timing = Timing(protocol="quick")
    assert energy.columns(lambda: None, lambda: None, timing) == {"missing": energy.QUICK}


def test_nvml_counts_millijoules(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter((0, 1_500, 4_000))
    nvml = types.SimpleNamespace(nvmlInit=lambda: None, nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(counts))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(energy.machine, "handle", lambda nvml: "handle")
    counter = energy.meter("cuda")
    assert counter.joules() == 1.5
    assert counter.joules() == 4.0
    nvml.nvmlDeviceGetTotalEnergyConsumption = None
    with pytest.raises(ValueError, match="NVML counts no energy here"):
        energy.meter("cuda")


MEASURED = {"source": "RAPL", "dense_mj": 4.0, "packed_mj": 2.0, "x": 2.0, "low_x": 1.9, "high_x": 2.1}


def test_an_earlier_quick_row_has_the_reason_too(tmp_path: Path) -> None:
    run, timing = run_of(), Timing(protocol="quick")
    for row in (pruned_row(run, 80.0), timed_row(run, (1.5, 1.4, 1.6), timing)):
        records.write(row, tmp_path)
    lines = cells.table(frames.load(grid_of([run], timings=(timing,)), tmp_path, smoke=False))
    assert lines["energy_missing"].tolist() == [energy.QUICK]


@pytest.mark.parametrize(
    ("made", "shown", "reason"),
    [
        ({**MEASURED, "null_low_x": 0.99, "null_high_x": 1.01}, "2.00 [1.90, 2.10]", ""),
        ({**MEASURED, "null_low_x": 1.01, "null_high_x": 1.02}, None, "the null test of energy failed"),
        ({"missing": "no counter"}, None, "no counter"),
        ({}, None, "not measured in earlier rows"),
    ],
)
def test_tables_show_energy_or_why_there_is_none(
    tmp_path: Path, made: dict[str, Any], shown: str | None, reason: str
) -> None:
    run = run_of()
    for row in (pruned_row(run, 80.0), timed_row(run, (1.5, 1.4, 1.6), energy=made)):
        records.write(row, tmp_path)
    lines = cells.table(frames.load(grid_of([run], timings=(Timing(),)), tmp_path, smoke=False))
    text = columns.text(lines, table_columns.TABLE).frame
    assert ("energy x" in text) == (shown is not None)
    if shown is not None:
        assert text["energy x"].tolist() == [shown]
    assert lines["energy_missing"].tolist() == [reason]
