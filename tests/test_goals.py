"""The benchmark of the goals compares networks in one runtime, and judges no ratio across runtimes."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import pytest
from benchmarks import goals
from benchmarks.goals import ONNX, OPENVINO, TUNED, Goal, Side

from baselines.random_groups import random_groups_planner
from suite import arithmetic, models
from suite import pack as packing
from suite.graph import Graph
from suite.measure import executions, networks
from suite.measure.claim import Interval
from suite.measure.latency import ORDERS
from suite.plan import Budget
from suite.select import meet

PRUNING = Goal("resnet18", 8, Side(), Side(0.6, 2), 1.6)
RUNTIMES = Goal("resnet50", 1, Side(), Side(), 0.95, (ONNX, TUNED))
EVEN = (1.0, 0.99, 1.01)


def test_both_networks_of_a_pair_are_in_one_runtime() -> None:
    """The pair of the fastest runtimes is an extra one, and only if they differ."""
    above, below = {TUNED: 3.0, ONNX: 1.0, OPENVINO: 2.0}, {TUNED: 3.0, ONNX: 2.0, OPENVINO: 1.0}
    same = [(ONNX, ONNX), (OPENVINO, OPENVINO), (TUNED, TUNED)]
    assert goals.pairs(PRUNING, above, below) == [*same, (ONNX, OPENVINO)]
    assert goals.pairs(PRUNING, above, above) == same


def test_a_runtime_that_one_network_lacks_has_no_pair_of_its_own() -> None:
    assert goals.pairs(PRUNING, {TUNED: 2.0, ONNX: 1.0}, {TUNED: 2.0}) == [(TUNED, TUNED), (ONNX, TUNED)]
    assert goals.pairs(PRUNING, {ONNX: 0.0}, {}) == []


def test_a_goal_about_two_runtimes_has_this_pair_alone() -> None:
    assert goals.pairs(RUNTIMES, {ONNX: 0.0}, {TUNED: 0.0}) == [(ONNX, TUNED)]
    assert goals.pairs(RUNTIMES, {ONNX: 0.0}, {}) == []


@pytest.mark.parametrize(
    ("pair", "ratio", "null", "state"),
    [
        ((ONNX, ONNX), (1.8, 1.7, 1.9), EVEN, "met"),
        ((ONNX, ONNX), (1.4, 1.3, 1.5), EVEN, "missed"),
        ((ONNX, ONNX), (1.6, 1.5, 1.7), EVEN, "open"),
        ((ONNX, ONNX), (1.8, 1.7, 1.9), (0.9, 0.85, 0.95), "open"),  # the measurement was disturbed
        ((ONNX, ONNX), (1.8, 1.7, 1.9), (1.0, 0.95, 1.15), "open"),  # the null test is as wide as the effect
        ((ONNX, OPENVINO), (1.8, 1.7, 1.9), EVEN, ""),
    ],
)
def test_only_an_undisturbed_ratio_in_one_runtime_decides(
    pair: tuple[str, str], ratio: Interval, null: Interval, state: str
) -> None:
    assert goals.verdict_and_state(PRUNING, pair, ratio, null)[1] == state


def test_the_line_across_runtimes_has_that_name_in_place_of_a_verdict() -> None:
    ratio = (1.8, 1.7, 1.9)
    assert goals.verdict_and_state(PRUNING, (ONNX, OPENVINO), ratio, EVEN) == ("across runtimes", "")
    assert goals.verdict_and_state(RUNTIMES, (ONNX, TUNED), ratio, EVEN) == ("faster", "met")


def test_a_precision_has_the_runtimes_that_compute_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executions, "why_not", lambda name, *_: "is not there" if name == "tensorrt" else "")
    monkeypatch.setattr(arithmetic, "cpu_flags", lambda: frozenset(["amx_bf16"]))
    assert goals.usable("fp32") == ((TUNED, ONNX, OPENVINO), {})
    assert goals.usable("bf16") == ((OPENVINO,), {})
    assert goals.usable("int8") == ((ONNX,), {})
    monkeypatch.setattr(executions, "why_not", lambda name, *_: "is not installed")
    assert goals.usable("fp32") == ((TUNED,), dict.fromkeys((ONNX, OPENVINO), "is not installed"))


def test_bf16_is_refused_if_the_cpu_computes_in_fp32(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(arithmetic, "cpu_flags", lambda: frozenset(["avx2"]))
    monkeypatch.setattr(sys, "argv", ["goals", "--precision", "bf16"])
    with pytest.raises(SystemExit):
        goals.main()
    line = "--precision bf16: openvino computes in fp32 on a CPU that has none of amx_bf16, avx512_bf16. Take --precision fp32"
    assert line in capsys.readouterr().err


def test_the_int8_leg_of_both_networks_is_in_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    networks.save_dense("resnet8", 10, (3, 32, 32), tmp_path / "dense")
    images = executions.random_images(goals._timing("int8", 2), (3, 32, 32))
    runs, missing = goals._runs(networks.load(str(tmp_path / "dense")), images, "int8", (ONNX,))
    assert (set(runs), missing) == ({ONNX}, {})

    def refused(*_: object, **__: object) -> None:
        raise ValueError("no int8 form here: an operator")

    monkeypatch.setattr(goals.int8, "prepared", refused)
    made = goals._runs(networks.load(str(tmp_path / "dense")), images, "int8", (ONNX,))
    assert made == ({}, {ONNX: "no int8 form here: an operator"})


def test_a_pruned_network_in_bf16_is_at_least_as_fast_as_the_dense_one() -> None:
    assert goals.of_precision(PRUNING, "bf16").at_least == 1.0 != PRUNING.at_least
    assert goals.of_precision(PRUNING, "fp32") == PRUNING
    between = dataclasses.replace(PRUNING, above=Side(0.7))
    assert goals.of_precision(between, "bf16") == between


def test_a_packed_file_is_compared_with_its_dense_network(tmp_path: Path) -> None:
    model = models.build("resnet20", 10).eval()
    graph = Graph(model, (3, 16, 16))
    plan = meet(random_groups_planner(graph, 2, 0), graph, Budget(share=0.5)).plan
    packing.save(
        packing.pack(model, graph, plan),
        tmp_path / "p",
        model="resnet20",
        classes=10,
        input_shape=(3, 16, 16),
        about={},
    )
    goal = goals.of_file(tmp_path / "p")
    assert (goal.model, goal.below.groups, goal.above, goal.packed) == ("resnet20", 2, Side(), tmp_path / "p")
    assert goal.below.removed == pytest.approx(0.5, abs=0.05)
    options = argparse.Namespace(batch=2, precision="fp32", runtimes=(TUNED,), round_to=1, blocks=ORDERS)
    lines, missing = goals.measure(goal, options, tmp_path)
    assert len(lines) == 1
    assert not missing
