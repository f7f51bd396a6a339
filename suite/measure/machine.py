"""Conditions of a measurement: state of the GPU, load of the CPU by other processes.

nvidia-ml-py reads NVML; without it, or without a GPU, the GPU's values are None. All values are plain JSON.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch

from suite import arithmetic

BUSY_CORES = 0.2
"""Cores used by other processes above which a measurement on the CPU is flagged; an idle system uses a few hundredths."""
THROTTLES = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""NVML's reasons for a clock below the highest, by bit. Idleness, set clocks and displays are no throttling."""


@contextmanager
def watched(device: str) -> Iterator[dict[str, Any]]:
    """Record the conditions of a block in the dict that this yields.

    before, after   state of the GPU (`gpu`), None on a CPU
    other_cores     mean number of cores that other processes used during the block
    """
    conditions: dict[str, Any] = {"before": gpu() if device == "cuda" else None}
    started, busy_s, own_s = time.perf_counter(), _busy_s(), _own_s()
    yield conditions
    conditions["after"] = gpu() if device == "cuda" else None
    seconds = max(time.perf_counter() - started, 1e-9)
    other_s = (_busy_s() - busy_s) - (_own_s() - own_s)
    conditions["other_cores"] = round(max(0.0, other_s / seconds), 3)


def flags(
    conditions: Sequence[Mapping[str, Any]], device: str, precisions: Sequence[str] = ("fp32",)
) -> tuple[str, ...]:
    """Return the reasons to doubt measurements in these precisions under these conditions, a phrase each."""
    if device != "cuda":
        other = max(one["other_cores"] for one in conditions)
        busy = f"other processes used {other:.1f} of {len(os.sched_getaffinity(0))} cores"
        slow = [f"this CPU has no {name} instructions" for name in precisions if not arithmetic.computes(name)]
        return (*([busy] if other > BUSY_CORES else []), *slow)
    states = [one[when] or {} for one in conditions for when in ("before", "after")]
    processes = max(state.get("other_processes", 0) for state in states)
    throttles = sorted({name for state in states for name in state.get("throttled", ())})
    return (
        *((f"{processes} other processes on the GPU",) if processes else ()),
        *((f"GPU throttled: {', '.join(throttles)}",) if throttles else ()),
    )


def gpu() -> dict[str, Any] | None:
    """Return NVML's state of the current GPU: clocks, power, throttling, other processes."""
    try:
        import pynvml  # optional, and of no use without a GPU

        pynvml.nvmlInit()
    except (ImportError, OSError):
        return None
    except Exception as error:  # NVMLError, whose class exists only once the import succeeded
        return {"error": str(error)}
    try:
        return _state(pynvml, handle(pynvml))
    except pynvml.NVMLError as error:
        return {"error": str(error)}
    finally:
        pynvml.nvmlShutdown()


def handle(nvml: Any) -> Any:
    """Return NVML's handle of torch's current device; CUDA_VISIBLE_DEVICES may number devices differently."""
    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}")


def _state(nvml: Any, handle: Any) -> dict[str, Any]:
    reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    return {
        "sm_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "power_w": nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        "power_limit_w": nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
        "temperature_c": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "throttled": [name for bit, name in THROTTLES.items() if reasons & bit],
        "driver": _text(nvml.nvmlSystemGetDriverVersion()),
        "other_processes": _other_processes(
            [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
        ),
    }


def _other_processes(pids: list[int]) -> int:
    """Count the processes that are neither this one nor, in a fresh process, its parent.

    In a container NVML may return numbers of another name space: then the number of own processes is subtracted.
    """
    own = {os.getpid()} if multiprocessing.parent_process() is None else {os.getpid(), os.getppid()}
    return len(set(pids) - own) if os.getpid() in pids else max(0, len(pids) - len(own))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _busy_s() -> float:
    """Return the busy seconds, since boot, of the cores that this process may use."""
    per_core = psutil.cpu_times(percpu=True)
    cores = [per_core[core] for core in os.sched_getaffinity(0) if core < len(per_core)]
    return sum(
        sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0) for times in cores
    )


def _own_s() -> float:
    times = psutil.Process().cpu_times()
    return times.user + times.system
