"""The script of all that needs a GPU, tried without one: it goes on where it stopped, and its plans remove what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_grid import call

from suite.contract import Budget
from suite.graph import Graph
from suite.measure import gpu
from suite.models import build


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert call(gpu.main) == 2
    assert "no CUDA device that torch can use" in capsys.readouterr().err
    assert call(gpu.main, "--device", "cpu") == 2
    assert "it takes hours with networks of this size, or try --device cpu --smoke" in capsys.readouterr().err


@pytest.mark.parametrize("groups", [1, 2])
def test_random_plans_remove_what_they_say(groups: int) -> None:
    graph = Graph(build("resnet8", 10), (3, 32, 32))
    plan = gpu.random_plan(graph, groups, Budget(share=0.5))
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
            "provenance": {"commit": "0123456789"},
        }

    def stairs(kernel: int, *rest: object) -> dict[str, Any]:
        if fails and kernel == 1:
            raise torch.OutOfMemoryError("it does not fit")
        done.append(str(kernel))
        return {"kernel": kernel}

    monkeypatch.setattr(gpu, "time_case", piece)
    monkeypatch.setattr(gpu, "climb", stairs)
    asked = ("--device", "cpu", "--smoke", "--results", tmp_path)
    assert call(gpu.main, *asked, "--minutes", -1) == 75
    assert done == []
    assert call(gpu.main, *asked) == 1
    assert capsys.readouterr().err == "suite.measure.gpu: staircase_1x1 failed: OutOfMemoryError: it does not fit\n"
    fails = False
    assert call(gpu.main, *asked) == 0
    assert call(gpu.main, *asked) == 0
    names = [case.name for case in gpu.cases("cpu", smoke=True)]
    assert done == [*names, "3", "1"]
    assert json.loads((tmp_path / "smoke" / "gpu" / f"cpu_{names[0]}.json").read_text())["case"] == names[0]


def test_what_was_done_is_shown_on_any_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(gpu.main, "--show", "--results", tmp_path) == 2
    assert "has no measurement yet" in capsys.readouterr().err
    row: dict[str, Any] = {
        "case": "it",
        "leg": "graph",
        "dense_ms": 3.0,
        "packed_ms": 2.0,
        "speedup_x": 1.5,
        "speedup_low_x": 1.4,
        "speedup_high_x": 1.6,
        "theoretical_x": 3.0,
        "verdict": "faster",
        "provenance": {"commit": "0123456789"},
        "layers": {"dense": {"executions": {}}, "packed": {"executions": {"whole": 1, "triton_wide": 2, "triton": 3}}},
        "layer_ms": [{}, {"a": {"whole": 2.5, "union": 4.0, "triton": 3.0}, "b": {"whole": 5.0, "triton_wide": 1.0}}],
    }
    also = {"executions_ms": {"groups": 9.0, "tuned": 2.0}, "dense_executions_ms": {"compile": 7.25}}
    (tmp_path / "gpu").mkdir()
    for name, one in {"a": row, "b": {**row, **also}, "c": {"kernel": 1}}.items():
        (tmp_path / "gpu" / f"{name}.json").write_text(json.dumps(one))
    assert call(gpu.main, "--show", "--results", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "1.50 [1.40, 1.60]   3.00          0.50" in printed
    words = [line.split() for line in printed.splitlines()]
    assert ["it", "packed", "2", "7.500", "4.000", "5"] in words
    assert any(line[-2:] == ["faster", "0123456"] for line in words)
    assert ["it", "dense", "7.250"] in words
    assert ["it", "packed", "9.000", "2.000"] in words


def test_names_tell_cases_apart() -> None:
    found = gpu.cases("cuda", smoke=False)
    assert len({case.name for case in found}) == len(found) == 12
