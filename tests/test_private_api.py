"""Private functions of libraries: each is there in the installed version, and the way on without it gives the same."""

from __future__ import annotations

import pytest

from suite import private_api


def test_submitits_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    present = private_api.sbatch_parameters()
    assert {"time", "gpus_per_node", "signal_delay_s", "additional_parameters"} <= present
    monkeypatch.delattr("submitit.slurm.slurm._make_sbatch_string")
    assert private_api.sbatch_parameters() == present
