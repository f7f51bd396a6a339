"""The grid of random plans on a GPU: equal cuts of two kinds, nothing trained, random images."""

from __future__ import annotations

import torch

from baselines.random_groups import random_groups_planner
from suite import data, grids
from suite.contract import Budget
from suite.graph import Graph
from suite.models import build
from suite.select import meet
from suite.stages import Timed

GRID = grids.load("gpu_speed")


def test_groups_and_filters_of_each_model_have_the_same_budget_and_no_training() -> None:
    runs = grids.runs_of(GRID)
    models = {run.base.model for run in runs}
    assert {(run.base.model, run.budget) for run in runs} == {(run.base.model, run.budget) for run in runs[::2]}
    assert {run.method for run in runs} == {"random_groups", "random_filter"}
    assert len(runs) == 2 * len(models)
    for run in runs:
        assert run.base.schedule is not None
        assert (run.base.schedule.epochs, run.finetune.epochs, run.learned) == (0, 0, None)


def test_all_latency_is_measured_on_a_gpu_by_the_full_protocol_but_a_smoke_run_needs_none() -> None:
    runs = grids.runs_of(GRID)
    timings = [stage.timing for stage in grids.stages_of(GRID, runs) if isinstance(stage, Timed)]
    assert len(timings) == 4 * len(runs)
    assert {(timing.device, timing.protocol) for timing in timings} == {("cuda", "full")}
    smoke = grids.stages_of(GRID, grids.runs_of(GRID, smoke=True), smoke=True)
    assert {stage.timing.device for stage in smoke if isinstance(stage, Timed)} == {"cpu"}


def test_random_groups_remove_what_the_budget_says() -> None:
    graph = Graph(build("resnet8", 10), (3, 32, 32))
    first, again, second = (meet(random_groups_planner(graph, 2, seed), graph, Budget(share=0.5)) for seed in (0, 0, 1))
    assert 0.5 <= graph.cut(first.plan) < 0.56
    assert max(len(layer.groups) for layer in first.plan.canonical().values()) == 2
    assert first.plan == again.plan != second.plan


def test_synthetic_images_are_the_same_each_time() -> None:
    first, second = (data.load("synthetic_imagenet") for _ in range(2))
    assert (first.classes, first.input_shape) == (1000, (3, 224, 224))
    assert first.checksum == second.checksum
    images, labels = next(iter(first.test(4, "cpu")))
    assert abs(float(images.mean())) < 0.1
    assert abs(float(images.std()) - 1) < 0.1
    assert len(torch.unique(labels)) > 1
