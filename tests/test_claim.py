"""The lie detector: an unchanged network is never called faster or slower, on synthetic times and under a real load."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from suite import timing
from suite.measure import latency, machine
from suite.measure.claim import verdict
from suite.measure.latency import Measurement, alternate, combine
from suite.measure.protocol import Protocol

LOADS = json.loads((Path(__file__).parent / "busy_loads.json").read_text())
QUICK = Protocol(warmup_s=0, seconds=0, min_blocks=18, precision=None)
Noise = Callable[[np.random.Generator, int], np.ndarray]


@pytest.mark.parametrize(
    ("ratio", "null", "cpu", "flags", "claim"),
    [
        ((1.12, 1.03, 1.33), (1.05, 0.909, 1.327), None, (), "no difference"),
        ((0.9, 0.87, 0.93), (1.0, 0.99, 1.01), None, (), "slower"),
        ((0.9, 0.87, 0.93), (1.0, 0.9, 1.1), None, (), "no difference"),
        ((1.03, 1.02, 1.04), (1.0, 0.99, 1.01), None, (), "faster"),
        ((2.0, 1.9, 2.1), (1.0, 0.99, 1.01), None, ("other processes used 1.8 of 2 cores",), "not trusted"),
        ((0.5, 0.4, 0.6), (1.0, 0.99, 1.01), None, ("1 other processes on the GPU",), "not trusted"),
        ((2.0, 1.9, 2.1), (1.0, 0.99, 1.01), None, ("GPU throttled: power cap",), "faster"),
        ((2.0, 1.9, 2.1), (1.0, 0.99, 1.01), (0.9, 0.8, 0.99), (), "not trusted"),
        ((2.0, 1.9, 2.1), (1.0, 0.99, 1.01), (1.0, 0.9, 1.1), (), "faster"),
        ((0.5, 0.4, 0.6), (1.0, 0.99, 1.01), (1.2, 1.1, 1.3), (), "not trusted"),
        ((float("nan"),) * 3, (float("nan"),) * 3, None, (), "not trusted"),
    ],
)
def test_claims(
    ratio: tuple[float, float, float],
    null: tuple[float, float, float],
    cpu: tuple[float, float, float] | None,
    flags: tuple[str, ...],
    claim: str,
) -> None:
    assert verdict(ratio, null, cpu=cpu, flags=flags) == claim


def heavy_tailed(random: np.random.Generator, count: int) -> np.ndarray:
    return 1 + 0.3 * random.pareto(1.5, count)


def bursts(random: np.random.Generator, count: int) -> np.ndarray:
    """Times double for a third of the runs, in stretches that are longer than a block."""
    return 1 + np.repeat(random.random(-(-count // 8)) < 0.3, 8)[:count] + random.normal(0, 0.01, count)


def steady(random: np.random.Generator, count: int) -> np.ndarray:
    return 1 + random.normal(0, 0.02, count)


@pytest.mark.parametrize("noise", [steady, heavy_tailed, bursts])
def test_no_claim_about_an_unchanged_network_on_synthetic_times(noise: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.time, "process_time", lambda: 0.0)
    monkeypatch.setattr(latency, "median_interval", quick_interval)
    claims: Counter[str] = Counter()
    for seed in range(300):
        times = endless(noise, seed)
        monkeypatch.setattr(timing, "seconds_per_run", lambda run, device, repeats=1, times=times: next(times))
        claims[alternate(same, same, "cpu", QUICK).verdict] += 1
    assert claims["faster"] == claims["slower"] == 0
    assert claims["no difference"] > 200  # the null test alone fails about once in twenty


def test_a_tenth_is_found_where_the_machine_is_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.time, "process_time", lambda: 0.0)
    times = {"dense": endless(steady, 1), "packed": (value / 1.1 for value in endless(steady, 2))}
    monkeypatch.setattr(timing, "seconds_per_run", lambda run, device, repeats=1: next(times[run()]))
    assert alternate(lambda: "dense", lambda: "packed", "cpu", QUICK).verdict == "faster"
    assert alternate(lambda: "packed", lambda: "dense", "cpu", QUICK).verdict == "slower"


def same() -> str:
    return "same"


def endless(noise: Noise, seed: int) -> Iterator[float]:
    return itertools.chain.from_iterable(noise(np.random.default_rng([seed, part]), 600) for part in itertools.count())


def quick_interval(ratios: np.ndarray) -> tuple[float, float, float]:
    """Bootstrap as `latency.median_interval` does, with fewer samples: the test takes thousands of intervals."""
    picks = np.random.default_rng(0).integers(0, len(ratios), (200, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)


def test_processes_are_combined_with_their_flags_and_both_clocks() -> None:
    ms = np.ones(6)
    one = Measurement(dense_ms=ms, packed_ms=ms, ratio=(1.3, 1.2, 1.4), null=(1, 0.99, 1.01), cpu=(1.3, 1.2, 1.4))
    wide = Measurement(dense_ms=ms, packed_ms=ms, ratio=(1.3, 1.2, 1.4), null=(1, 0.8, 1.2), cpu=(1.1, 1.0, 1.2))
    assert combine([one, one]).verdict == "faster"
    assert (combine([one, wide]).null, combine([one, wide]).verdict) == ((1, 0.8, 1.2), "no difference")
    assert combine([one, wide]).cpu == (1.2000000000000002, 1.0, 1.4)


# ---- a real load -----------------------------------------------------------------------------------------------------


def keep_busy(busy_s: float, idle_s: float) -> None:
    """Use a core for `busy_s`, then none for `idle_s`, until the process is ended."""
    while True:
        end = time.perf_counter() + busy_s
        while time.perf_counter() < end:
            pass
        time.sleep(idle_s)


@pytest.mark.slow
@torch.inference_mode()
def test_no_claim_about_an_unchanged_network_under_a_real_load() -> None:
    network, images = (
        nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)).eval(),
        torch.randn(8, 16, 32, 32),
    )
    protocol = Protocol(warmup_s=0.02, seconds=0.3, min_blocks=18, precision=None)
    spawn, claims = multiprocessing.get_context("spawn"), []
    for load in LOADS:
        workers = [spawn.Process(target=keep_busy, args=tuple(cycle), daemon=True) for cycle in load["cycles_s"]]
        for worker in workers:
            worker.start()
        try:
            for _ in range(30 // len(LOADS)):
                with machine.watched("cpu") as conditions:
                    found = alternate(lambda: network(images), lambda: network(images), "cpu", protocol)
                flags = machine.flags([conditions], "cpu")
                claims.append(
                    (load["name"], found.verdict, verdict(found.ratio, found.null, cpu=found.cpu, flags=flags))
                )
        finally:
            for worker in workers:
                worker.kill()
                worker.join()
    print("\n", Counter(claims))
    assert len(claims) == 30
    assert not [claim for claim in claims if {*claim[1:]} & {"faster", "slower"}]
