"""Timing loops on a clock that the test sets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from conftest import run_named

from suite import timing
from suite.timing import fastest, least_ms, rounds, seconds_per_run, warm_up


def test_seconds_are_those_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now, runs = itertools.count(step=6.0), list[int]()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))
    assert seconds_per_run(lambda: runs.append(1), "cpu", repeats=3) == 2.0
    assert len(runs) == 3


@pytest.mark.parametrize(
    "times", [itertools.repeat(0.01), (2.0**-n for n in range(500)), itertools.cycle([1.0] * 10 + [2.0] * 10)]
)
def test_warming_up_ends(
    clock: dict[str, Iterator[float]], times: Iterator[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times are steady, fall without end, or alternate without end; each call of the clock takes 10 ms."""
    now = itertools.count(step=0.01)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))
    clock["run"] = times
    assert warm_up(run_named("run"), "cpu", 0.5) >= 0
    assert 0.5 <= next(now) <= 3


def test_warming_up_waits_for_steady_times(clock: dict[str, Iterator[float]], monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count(step=0.01)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))
    clock["run"] = itertools.chain((1 / (n + 1) for n in range(100)), itertools.repeat(0.01))
    assert warm_up(run_named("run"), "cpu", 0.5) == 0.01


def test_rounds_rotate_through_every_order(clock: dict[str, Iterator[float]]) -> None:
    clock |= {name: itertools.repeat(1.0) for name in "abc"}
    runs = {name: run_named(name) for name in "abc"}
    assert ["".join(times) for times in itertools.islice(rounds(runs, "cpu"), 2)] == ["abc", "abc"]
    orders = ["".join(times) for times in itertools.islice(rounds(runs, "cpu", permute=True), 12)]
    assert sorted(orders[:6]) == sorted(map("".join, itertools.permutations("abc")))
    assert orders[6:] == orders[:6]


def test_the_fastest_has_the_least_median(clock: dict[str, Iterator[float]]) -> None:
    """A single short time does not make a run the fastest."""
    clock |= {
        "steady": itertools.repeat(0.003),
        "once": itertools.chain([0.004] * 12, [0.001], itertools.repeat(0.004)),
    }
    clock["steady"] = itertools.repeat(0.003)
    name, milliseconds = fastest({key: run_named(key) for key in clock}, "cpu")
    assert name == "steady"
    assert milliseconds == pytest.approx({"steady": 3, "once": 4})


def test_the_least_time_of_a_run_is_within_the_round_limits(
    clock: dict[str, Iterator[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = itertools.count(step=1.0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))
    for seconds, count in ((0, 2), (2.5, 4), (100, 5)):
        clock["run"] = iter([0.009 - n / 1000 for n in range(9)])
        assert least_ms({"run": run_named("run")}, "cpu", seconds=seconds, counts=range(2, 6)) == {
            "run": pytest.approx(10 - count)
        }
