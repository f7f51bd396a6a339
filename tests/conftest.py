"""Fixtures of all tests: folders of real data, and the state of the process."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_grid
import torch
from hypothesis import HealthCheck, settings

from suite import timing
from suite.run import Context
from suite.timing import Run

# The same examples in every run, so that a change is not blamed for an old fault; --hypothesis-profile=new draws others.
settings.register_profile("new", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("new"), derandomize=True)
settings.load_profile("same")

torch.set_num_threads(1)
# The first backward pass of a process decides if autograd has threads of devices, after which no forked process can train. Here
# no test has set up a device yet, real or not.
torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True)
def _exact() -> None:
    """Reset the number of threads, which stages pin, and TF32 before each test."""
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Put back the handlers of the signals that command lines listen to."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def run_named(name: str) -> Run:
    """A run that returns its name, by which `clock` tells runs apart."""
    return lambda: name


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, Iterator[float]]:
    """Name of a run -> the seconds that its next timings return; nothing is really measured."""
    times: dict[str, Iterator[float]] = {}
    monkeypatch.setattr(timing.time, "process_time", lambda: 0.0)
    monkeypatch.setattr(timing, "seconds_per_run", lambda run, device, repeats=1: next(times[run()]))
    return times


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """The whole tiny grid, done once; what changes it works on a copy."""
    torch.set_num_threads(1)
    context = Context(results=tmp_path_factory.mktemp("finished"), threads=1)
    assert tiny_grid.do_all(tiny_grid.stages(), context) == ["done"] * 9
    return context


@pytest.fixture
def copied(finished: Context, tmp_path: Path) -> Context:
    """A copy of the finished grid, which a test may damage."""
    shutil.copytree(finished.results, tmp_path / "results")
    return dataclasses.replace(finished, results=tmp_path / "results")


def _folder(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"needs {what}: set {variable}")
    return Path(value)


@pytest.fixture
def cifar10_folder() -> Path:
    """A data folder with cifar10.npz."""
    folder = _folder("SUITE_DATA", "a data folder with cifar10.npz")
    if not (folder / "cifar10.npz").is_file():
        pytest.skip(f"needs cifar10.npz, which is not in SUITE_DATA = {folder}")
    return folder


@pytest.fixture
def weights_folder() -> Path:
    """A folder with the public weights."""
    return _folder("SUITE_WEIGHTS", "a folder with public weights")
