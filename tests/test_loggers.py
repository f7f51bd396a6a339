"""Optional loggers of training curves."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from suite import loggers

EPOCH = {"train_top1_pct": 50.0, "lr": 0.1, "note": "text"}


RUNS: list[FakeRun] = []


class FakeRun:
    """A run of Weights & Biases that draws random numbers, as a logger may."""

    def __init__(self, **about: Any) -> None:
        self.about, self.finished = about, False
        self.logged: list[tuple[int, dict[str, float]]] = []
        RUNS.append(self)
        random.random()

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.logged.append((step, numbers))
        random.random()

    def finish(self) -> None:
        self.finished = True


def test_there_is_no_logger_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(loggers.VARIABLE, raising=False)
    started = loggers.Loggers(tmp_path)
    started.epoch(1, EPOCH)
    assert started.loggers == []
    assert list(tmp_path.iterdir()) == []


def test_an_epoch_is_logged_offline_and_random_numbers_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package: Any = ModuleType("wandb")
    package.init = FakeRun
    RUNS.clear()
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setenv(loggers.VARIABLE, "wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    state = random.getstate()
    started = loggers.Loggers(tmp_path / "learned-0123456789ab")
    started.epoch(3, EPOCH)
    started.close()
    assert random.getstate() == state
    (run,) = RUNS
    assert run.about["mode"] == "offline"
    assert run.about["id"] == "learned-0123456789ab"
    assert run.logged == [(3, {"train_top1_pct": 50.0, "lr": 0.1})]
    assert run.finished


def test_wandb_itself_writes_a_run_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb: Any = pytest.importorskip("wandb", reason="wandb is not installed: it brings 24 packages of 90 MB")
    monkeypatch.setenv(loggers.VARIABLE, "wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    folder = tmp_path / "learned-0123456789ab"
    folder.mkdir()
    state = random.getstate()
    started = loggers.Loggers(folder)
    started.epoch(3, EPOCH)
    started.close()
    assert random.getstate() == state
    wandb.teardown()  # waits for its process, which writes the file
    (run,) = folder.glob("wandb/offline-run-*/run-learned-0123456789ab.wandb")
    assert b"train_top1_pct" in run.read_bytes()


def test_tensorboard_gets_each_number_of_an_epoch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reader: Any = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    monkeypatch.setenv(loggers.VARIABLE, "tensorboard")
    state = random.getstate()
    started = loggers.Loggers(tmp_path)
    started.epoch(1, EPOCH)
    started.epoch(2, {**EPOCH, "lr": 0.05})
    started.close()
    assert random.getstate() == state
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["train_top1_pct", "lr"]
    assert [(event.step, round(event.value, 6)) for event in events.Scalars("lr")] == [(1, 0.1), (2, 0.05)]


def test_unknown_and_missing_loggers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(loggers.VARIABLE, "tensorbord")
    with pytest.raises(ValueError, match=r"unknown logger 'tensorbord' \(did you mean tensorboard"):
        loggers.check()
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv(loggers.VARIABLE, "wandb")
    with pytest.raises(ValueError, match="SUITE_LOGGER=wandb needs a package that is not installed: pip install wandb"):
        loggers.check()
