"""The script of all that needs a GPU, tried without one: it goes on where it stopped, and its plans remove what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_grid import call

from suite.graph import Graph
from suite.measure import gpu
from suite.models import build


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert call(gpu.main) == 2
    assert "no CUDA device that torch can use" in capsys.readouterr().err


@pytest.mark.parametrize("groups", [1, 2])
def test_random_plans_remove_what_they_say(groups: int) -> None:
    graph = Graph(build("resnet8", 10), (3, 32, 32))
    plan = gpu.random_plan(graph, groups, 0.5)
    assert 0.5 <= graph.cut(plan) < 0.56
    assert max(len(layer.groups) for layer in plan.canonical().values()) == groups


def test_pieces_that_are_done_are_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []
    fails = True

    def piece(case: gpu.Case) -> dict[str, Any]:
        done.append(case.name)
        return {
            "verdict": "not trusted",
            "case": case.name,
            "leg": "eager",
            "dense_ms": 1,
            "packed_ms": 1,
            "theoretical_x": 2,
        }

    def stairs(kernel: int, *rest: object) -> dict[str, Any]:
        if fails and kernel == 1:
            raise ValueError("it does not fit")
        done.append(str(kernel))
        return {"kernel": kernel}

    monkeypatch.setattr(gpu, "time_case", piece)
    monkeypatch.setattr(gpu, "climb", stairs)
    asked = ("--device", "cpu", "--smoke", "--results", tmp_path)
    assert call(gpu.main, *asked, "--minutes", -1) == 75
    assert done == []
    assert call(gpu.main, *asked) == 1
    assert capsys.readouterr().err == "suite.measure.gpu: staircase_1x1 failed: it does not fit\n"
    fails = False
    assert call(gpu.main, *asked) == 0
    assert call(gpu.main, *asked) == 0
    names = [case.name for case in gpu.cases("cpu", smoke=True)]
    assert done == [*names, "3", "1"]
    assert json.loads((tmp_path / "smoke" / "gpu" / f"cpu_{names[0]}.json").read_text())["case"] == names[0]


def test_names_tell_cases_apart() -> None:
    found = gpu.cases("cuda", smoke=False)
    assert len({case.name for case in found}) == len(found) == 12
