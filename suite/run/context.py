"""Where and on what stages run."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from suite import data as datasets
from suite import weights
from suite.stages import Base, Stage


@dataclass(frozen=True, kw_only=True)
class Context:
    """Folders, device and limits of a process that runs stages.

    No field enters a stage's identity. Results depend on `device` by rounding only.
    """

    results: Path
    data: Path | None = None
    device: str = "cpu"
    threads: int = 0
    """CPU threads of a stage; 0: one per core."""
    max_minutes: float | None = None

    def folder(self, stage: Stage) -> Path:
        """Return the stage's folder, `results/work/KEY`."""
        return self.results / "work" / stage.key

    def lease(self, stage: Stage) -> Path:
        """Return the lease of the process that works on the stage."""
        return self.folder(stage) / ".lease"

    def progress(self, stage: Stage) -> Path:
        """Return the report of the process that works on the stage."""
        return self.folder(stage) / "progress.json"

    def dataset(self, base: Base) -> datasets.Dataset:
        """Return a run's data set, normalised as its base weights expect."""
        return _dataset(base.data, base.weights, self.data)


@functools.lru_cache(maxsize=4)
def _dataset(name: str, public: str, folder: Path | None) -> datasets.Dataset:
    dataset = datasets.load(name, folder)
    normalization = weights.normalization(public) if public else None
    return dataset.with_normalization(*normalization) if normalization else dataset
