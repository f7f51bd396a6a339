"""Optional loggers of training curves: TensorBoard and Weights & Biases.

SUITE_LOGGER names them (`tensorboard`, `wandb`, or both with a comma); none by default. They get each epoch's numbers and change
nothing else: rows, checkpoints and random states are the same with and without.
"""

from __future__ import annotations

import importlib
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from suite.registry import pick

VARIABLE = "SUITE_LOGGER"


class Logger(Protocol):
    """Receiver of the numbers of each epoch."""

    def epoch(self, number: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers of one epoch, counted from 1."""

    def close(self) -> None:
        """Write what is left."""


class _TensorBoard:
    """Event files in FOLDER/tensorboard."""

    package = "torch.utils.tensorboard"

    def __init__(self, folder: Path) -> None:
        self.writer: Any = importlib.import_module(self.package).SummaryWriter(str(folder / "tensorboard"))

    def epoch(self, number: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, number)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    """A run in FOLDER/wandb, offline unless WANDB_MODE names another mode."""

    package = "wandb"

    def __init__(self, folder: Path) -> None:
        mode = os.environ.get("WANDB_MODE", "offline")
        project = os.environ.get("WANDB_PROJECT", "pruning-suite")
        start: Any = importlib.import_module(self.package).init
        self.run: Any = start(project=project, id=folder.name, dir=str(folder), resume="allow", mode=mode)

    def epoch(self, number: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=number)

    def close(self) -> None:
        self.run.finish()


KINDS: dict[str, type[_TensorBoard] | type[_Wandb]] = {"tensorboard": _TensorBoard, "wandb": _Wandb}


class Loggers:
    """The loggers of one training; its folder has the name of its stage."""

    def __init__(self, folder: Path, *, active: bool = True) -> None:
        self.loggers: list[Logger] = []
        if active and (kinds := check()):
            state = random.getstate()
            self.loggers = [kind(folder) for kind in kinds]
            random.setstate(state)

    def epoch(self, number: int, history: Mapping[str, Any]) -> None:
        """Log the numbers of an epoch's history."""
        if self.loggers:
            state = random.getstate()
            numbers = {name: value for name, value in history.items() if isinstance(value, int | float)}
            for logger in self.loggers:
                logger.epoch(number, numbers)
            random.setstate(state)

    def close(self) -> None:
        """Close all loggers."""
        for logger in self.loggers:
            logger.close()


def check() -> list[type[_TensorBoard] | type[_Wandb]]:
    """Return the kinds of loggers. Raises ValueError for an unknown name and a missing package."""
    kinds = []
    for name in filter(None, os.environ.get(VARIABLE, "").replace(" ", "").split(",")):
        kind = pick("logger", name, KINDS)
        try:
            importlib.import_module(kind.package)
        except ImportError as error:
            raise ValueError(f"{VARIABLE}={name} needs a package that is not installed: pip install {name}") from error
        kinds.append(kind)
    return kinds
