"""Energy of a network beside the dense one, from the device's own counters.

NVML counts the joules of a GPU, RAPL those of the CPU's packages. Both include idle power and other processes. Counters are slow
(RAPL updates every millisecond, NVML up to ten times a second), so blocks are longer than those of time; they alternate alike,
with dense beside dense as the null test. Sources: NVML's nvmlDeviceGetTotalEnergyConsumption; Linux's powercap documentation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from suite.measure import machine
from suite.measure.latency import ORDERS, median_interval
from suite.measure.protocol import Timing
from suite.timing import Run, rounds, seconds_per_run

POWERCAP = Path("/sys/class/powercap")
QUICK = "not measured by the quick protocol"
"""Reason for the numbers that rows of this protocol lack."""
BLOCK_S = 1.0
"""Least length of a block, many updates of the slowest counter."""

Joules = Callable[[], float]
"""Counter: joules since some fixed time."""


@dataclass(frozen=True)
class Meter:
    """Energy counter of a device, and its source."""

    source: str
    joules: Joules


def meter(device: str) -> Meter:
    """Return the energy counter of a device.

    Raises ValueError with the reason if there is none.
    """
    return _nvml() if device == "cuda" else _rapl(POWERCAP)


def columns(dense: Run, packed: Run, timing: Timing) -> dict[str, Any]:
    """Return the field `energy` of a `TimedRow`: numbers, or the reason for none.

    source                     counter
    dense_mj, packed_mj        millijoules an image, median over blocks
    x, low_x, high_x           dense / packed, with its bootstrap 95 % interval
    null_low_x, null_high_x    dense / dense
    missing                    reason why nothing was measured; then no other key
    """
    if timing.protocol == "quick":
        return {"missing": QUICK}
    try:
        return measure({"dense": dense, "packed": packed, "null": dense}, timing, meter(timing.device))
    except ValueError as error:
        return {"missing": str(error)}


def measure(runs: Mapping[str, Run], timing: Timing, counter: Meter, block_s: float = BLOCK_S) -> dict[str, Any]:
    """Return the numbers of `columns`. Raises ValueError if the counter stands still."""
    shortest = min(seconds_per_run(run, timing.device) for run in runs.values())
    repeats = max(1, math.ceil(block_s / max(shortest, 1e-9)))

    def spent(run: Run, device: str | torch.device, repeats: int) -> float:
        before = counter.joules()
        seconds_per_run(run, device, repeats)
        return (counter.joules() - before) / repeats

    blocks = list(itertools.islice(rounds(runs, timing.device, repeats, permute=True, clock=spent), ORDERS))
    dense, packed, null = (np.array([block[name] for block in blocks]) for name in runs)
    if min(dense.min(), packed.min(), null.min()) <= 0:
        raise ValueError(f"{counter.source} counts no energy over {block_s:g} s")
    ratio, nulls = median_interval(dense / packed), median_interval(dense / null)
    return {
        "source": counter.source,
        **{
            f"{name}_mj": 1e3 * float(np.median(joules)) / timing.batch
            for name, joules in (("dense", dense), ("packed", packed))
        },
        **dict(zip(("x", "low_x", "high_x"), ratio, strict=True)),
        **dict(zip(("null_low_x", "null_high_x"), nulls[1:], strict=True)),
    }


def _nvml() -> Meter:
    try:
        import pynvml  # optional, and of no use without a GPU

        pynvml.nvmlInit()
        handle = machine.handle(pynvml)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception as error:  # NVMLError, whose class exists only once the import succeeded
        raise ValueError(f"NVML counts no energy here: {error}") from None
    return Meter("NVML", lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)


def _rapl(powercap: Path) -> Meter:
    """Return the sum of all packages; a counter starts again at 0 beyond its range."""
    zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    try:
        packages = [zone for zone in zones if (zone / "name").read_text().startswith("package")]
        if not packages:
            raise ValueError(f"this machine shows no RAPL counter in {powercap}, as most virtual machines")
        ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in packages]
        last = [int((zone / "energy_uj").read_text()) for zone in packages]
    except PermissionError as error:
        raise ValueError(f"{error.filename} is readable by root only: chmod a+r it") from None
    except OSError as error:
        raise ValueError(f"RAPL cannot be read: {error}") from None
    total = 0

    def joules() -> float:
        nonlocal total
        for place, zone in enumerate(packages):
            now = int((zone / "energy_uj").read_text())
            total += (now - last[place]) % (ranges[place] + 1)
            last[place] = now
        return total / 1e6

    return Meter("RAPL", joules)
