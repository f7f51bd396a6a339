"""What else went on while something was measured: on a GPU clocks, throttling, power and other processes; load of the CPU.

NVML is read by nvidia-ml-py; without it, or without a GPU, there is nothing to say about one. All values are plain JSON.
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

BUSY_CORES = 0.2
"""What other processes may take of the CPU before a measurement on it is flagged; an idle system takes a few hundredths."""
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
    """A dict that holds, after the block, `before` and `after` of the GPU (None without one) and `other_cores` of the CPU.

    other_cores   cores that other processes used on average during the block
    """
    found: dict[str, Any] = {"before": gpu() if device == "cuda" else None}
    started, busy_s, own_s = time.perf_counter(), _busy_s(), _own_s()
    yield found
    found["after"] = gpu() if device == "cuda" else None
    seconds = max(time.perf_counter() - started, 1e-9)
    others_s = (_busy_s() - busy_s) - (_own_s() - own_s)
    found["other_cores"] = round(max(0.0, others_s / seconds), 3)


def flags(found: Sequence[Mapping[str, Any]], device: str) -> tuple[str, ...]:
    """Why measurements under these conditions are doubtful, a phrase each; () when nothing is known against them."""
    if device != "cuda":
        other = max(conditions["other_cores"] for conditions in found)
        return (f"other processes used {other:.1f} of {os.cpu_count()} cores",) if other > BUSY_CORES else ()
    states = [conditions[when] or {} for conditions in found for when in ("before", "after")]
    others = max(state.get("other_processes", 0) for state in states)
    throttles = sorted({name for state in states for name in state.get("throttled", ())})
    return (
        *((f"{others} other processes on the GPU",) if others else ()),
        *((f"GPU throttled: {', '.join(throttles)}",) if throttles else ()),
    )


def gpu() -> dict[str, Any] | None:
    """The current GPU by NVML: clocks in MHz, power in W, what throttles it, how many other processes are on it."""
    try:
        import pynvml  # optional, and of no use without a GPU

        pynvml.nvmlInit()
    except (ImportError, OSError):
        return None
    except Exception as error:  # NVMLError, whose class exists only once the import succeeded
        return {"error": str(error)}
    try:
        return _state(pynvml, _handle(pynvml))
    except pynvml.NVMLError as error:
        return {"error": str(error)}
    finally:
        pynvml.nvmlShutdown()


def _handle(nvml: Any) -> Any:
    """NVML's handle of torch's current device, which CUDA_VISIBLE_DEVICES may have given another number."""
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
        "other_processes": _others([process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]),
    }


def _others(pids: list[int]) -> int:
    """How many of the processes are not ours; a fresh process has its parent's context beside its own.

    In a container NVML may give the numbers of another name space: then ours are just taken off the count.
    """
    ours = {os.getpid()} if multiprocessing.parent_process() is None else {os.getpid(), os.getppid()}
    return len(set(pids) - ours) if os.getpid() in pids else max(0, len(pids) - len(ours))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _busy_s() -> float:
    """Seconds that all cores together have been busy since the start of the system."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def _own_s() -> float:
    times = psutil.Process().cpu_times()
    return times.user + times.system
