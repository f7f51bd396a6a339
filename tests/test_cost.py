"""The cost of a grid is that of its steps, known without data, weights or a GPU."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from suite import data, grids, models, records
from suite.contract import Budget
from suite.graph import Graph
from suite.launch import cost, dry_run, picture, speed
from suite.methods import get
from suite.run import Context
from suite.run.workspace import Workspace
from suite.schedule import Compute, Schedule
from suite.stages import Base, Learned, Pruned, Stage, Timed, TimedSteps, Timing, identity

SCHEDULE = Schedule(epochs=10, lr=0.1, weight_decay=0.0)
BASE = Base(data="cifar10", model="resnet20", schedule=SCHEDULE, seed=0)
NOWHERE = Context(results=Path("absent"), data=Path("absent"), device="cuda")


def run_of(budget: float, method: str = "l1_filter") -> Pruned:
    return Pruned(
        base=BASE, settings=get(method)(), learning=SCHEDULE, budget=Budget(share=budget), finetune=SCHEDULE, seed=0
    )


@pytest.mark.parametrize("name", ["resnet20", "vgg16"])
def test_macs_without_values_are_those_of_the_graph(name: str) -> None:
    graph = Graph(models.build(name, 10), (3, 32, 32))
    assert speed.size_of(name, 10, (3, 32, 32)).macs == graph.dense_macs.total


def test_sizes_are_those_of_the_data() -> None:
    size = data.size("cifar10", Path("absent"))
    assert (size.classes, size.input_shape, size.train_size("all"), size.train_size("tuning")) == (
        10,
        (3, 32, 32),
        50_000,
        45_000,
    )
    assert not data.present("cifar10", Path("absent"))
    assert data.size("digits", Path("absent")).train == 1437


def test_a_learning_step_of_groups_costs_more_than_a_plain_one() -> None:
    estimate = cost.Estimator.make([], NOWHERE)
    plain = estimate(BASE)
    assert plain.training_macs == 3 * speed.size_of("resnet20", 10, (3, 32, 32)).macs * 50_000 * 10
    learned = estimate(Learned(base=BASE, settings=get("dsp")(), schedule=SCHEDULE, seed=0))
    assert learned.training_macs == pytest.approx(2.1 * plain.training_macs)
    assert learned.seconds == pytest.approx(2.1 * plain.seconds)


def test_lines_share_out_every_stage_and_budgets_the_cost() -> None:
    runs = [run_of(0.3), run_of(0.5), run_of(0.5, "dsp")]
    estimate = cost.Estimator.make(runs, NOWHERE)
    assert runs[2].learned is not None
    todo: list[Stage] = [BASE, *runs, runs[2].learned]
    lines = cost.lines(todo, estimate)
    assert [(line.method, line.budgets, line.stages) for line in lines] == [
        ("base networks", (), 1),
        ("l1_filter", ("30", "50"), 2),
        ("dsp", ("50",), 2),
    ]
    assert lines[1].row.seconds == pytest.approx(lines[1].cost.seconds / 2)
    assert [line.epochs for line in lines] == ["10", "10", "10+10"]
    assert [line.rows for line in lines] == [0, 2, 1]
    weights = sum(
        tensor.numel() * tensor.element_size() for tensor in models.build("resnet20", 10).state_dict().values()
    )
    assert [line.cost.disk_bytes / weights for line in lines] == [2, 2, 2]
    assert sum(line.cost.seconds for line in lines) == pytest.approx(sum(estimate(stage).seconds for stage in todo))


def row_of(run: Pruned, **provenance: object) -> records.PrunedRow:
    about = {name: getattr(run, name) for name in ("key", "label", "method", "seed", "smoke")}
    return records.PrunedRow(
        **about,
        status="done",
        stage=identity(run),
        data="cifar10",
        model="resnet20",
        settings=run.described,
        granularity="filter",
        groups=1,
        budget=0.5,
        budget_scope="network",
        split="all",
        seconds=1000.0,
        base_top1_pct=90.0,
        provenance=provenance,
    )


def test_rows_measured_on_a_gpu_replace_the_stated_speed(tmp_path: Path) -> None:
    run = run_of(0.5)
    records.write(row_of(run, device="NVIDIA L4"), tmp_path)
    estimate = cost.Estimator.make([run], Context(results=tmp_path, device="cuda"))
    assert estimate.device == "NVIDIA L4"
    assert estimate(run).seconds == pytest.approx(1000)
    other = dataclasses.replace(BASE, model="resnet56")  # of which no row is there
    assert estimate(other) == cost.Estimator.make([], NOWHERE)(other)


def test_rows_of_training_steps_give_the_seconds_of_networks_without_rows(tmp_path: Path) -> None:
    grid = grids.load(cost.STEPS_GRID)
    stage = next(
        stage
        for stage in grids.stages_of(grid, grids.runs_of(grid))
        if isinstance(stage, TimedSteps) and (stage.base.model, stage.training) == ("resnet20", "base")
    )
    row = Workspace(stage, Context(results=tmp_path, device="cuda")).row("done", device="NVIDIA L4", base_ms=2.0)
    records.write(row, tmp_path)
    base = dataclasses.replace(BASE, schedule=dataclasses.replace(SCHEDULE, compute=Compute(precision="bf16")))
    estimate = cost.Estimator.make([base], Context(results=tmp_path, device="cuda"))
    assert estimate.device == "NVIDIA L4"
    assert estimate(base).seconds == pytest.approx(10 * 50_000 * 0.002 / 128)
    assert estimate(BASE) == cost.Estimator.make([], NOWHERE)(BASE), "a row in bf16 gives no seconds of fp32"
    assert "rows of gpu_training resnet20 on it" in estimate.source


# ---- on a CPU --------------------------------------------------------------------------------------------------------


@pytest.fixture
def unprobed(monkeypatch: pytest.MonkeyPatch) -> list[speed.Network]:
    """The networks of which a probe was asked; each image takes 2 ms."""
    asked: list[speed.Network] = []

    def probe(networks: Iterable[speed.Network], *, threads: int, jobs: int) -> dict[speed.Network, float]:
        asked.extend(networks)
        return dict.fromkeys(asked, 2e-3)

    monkeypatch.setattr(speed, "probe", probe)
    return asked


def test_a_cpu_is_probed_for_networks_without_rows(tmp_path: Path, unprobed: list[speed.Network]) -> None:
    context = Context(results=tmp_path, threads=1)
    estimate = cost.Estimator.make([BASE, run_of(0.5)], context, jobs=2)
    assert [network.model for network in unprobed] == ["resnet20"]
    assert estimate(BASE).seconds == pytest.approx(10 * 50_000 * 2e-3 + cost.CPU_STAGE_S)
    assert estimate(run_of(0.9)).seconds < estimate(run_of(0.5)).seconds < estimate(BASE).seconds
    assert "a probe of resnet20" in estimate.source
    timed = Timed(pruned=run_of(0.5), timing=Timing(protocol="quick"))
    assert estimate(timed).seconds == 2 * cost.TIMED_S["quick"], "latency is measured alone"


def test_time_here_is_shown_a_row_only_if_it_was_measured(tmp_path: Path, unprobed: list[speed.Network]) -> None:
    context = Context(results=tmp_path, threads=1)
    runs: list[Stage] = [BASE, run_of(0.5), run_of(0.6)]
    stated = cost.Estimator.make(runs, context, probe=False)
    probed = cost.Estimator.make(runs, context)
    assert unprobed
    for estimate, measured in ((stated, False), (probed, True)):
        assert [line.measured for line in cost.lines(runs, estimate)] == [measured] * 2
        console = Console(width=100, record=True, file=io.StringIO())
        pairs = zip(cost.lines(runs, cost.Estimator.make(runs, NOWHERE)), cost.lines(runs, estimate), strict=True)
        console.print(dry_run._table(list(pairs), 1))
        text = console.export_text()
        assert ("here/row" in text, "here, at a stated speed" in text) == (measured, not measured)
        row_s = (estimate(runs[1]) + estimate(runs[2])).seconds / 2
        assert (f"  {picture.minutes(row_s)}  " in text) == measured
    public = dataclasses.replace(BASE, schedule=None, weights="cifar10_resnet20_optionA")
    assert not probed.measures(public)


@pytest.mark.parametrize(
    ("device", "threads", "counts"), [("own", 1, True), ("own", 2, False), ("cpu: another", 1, False)]
)
def test_rows_of_this_kind_of_cpu_replace_the_probe(
    tmp_path: Path, unprobed: list[speed.Network], device: str, threads: int, counts: bool
) -> None:
    run, context = run_of(0.5), Context(results=tmp_path, threads=1)
    name = records.device_name("cpu") if device == "own" else device
    records.write(row_of(run, device=name, threads=threads), tmp_path)
    estimate = cost.Estimator.make([run], context)
    assert unprobed == ([] if counts else [estimate_network()])
    assert (estimate(run).seconds == pytest.approx(1000 + cost.CPU_STAGE_S)) == counts
    assert ("rows of cifar10/resnet20 on it" in estimate.source) == counts


def estimate_network() -> speed.Network:
    return speed.Network("resnet20", 10, (3, 32, 32), "fp32")


def test_a_probe_trains_small_networks_and_leaves_large_ones_and_the_threads() -> None:
    before = torch.get_num_threads()
    small, large = (
        speed.Network("resnet8", 10, (3, 32, 32), "fp32"),
        speed.Network("resnet50", 1000, (3, 224, 224), "fp32"),
    )
    found = speed.probe([large, small], threads=1, jobs=2)
    assert found.keys() == {small}
    assert 0 < found[small] < 1
    assert torch.get_num_threads() == before


def test_the_expectation_is_made_without_a_probe(tmp_path: Path, unprobed: list[speed.Network]) -> None:
    expected = cost.expected([BASE, run_of(0.5)], Context(results=tmp_path))
    assert set(expected) == {BASE.key, run_of(0.5).key}
    assert expected[BASE.key] > expected[run_of(0.5).key] > 0
    assert unprobed == []


def test_an_unknown_layer_to_ignore_is_refused_before_any_training() -> None:
    runs = [
        *grids.cross(bases=[BASE], method="l1_filter", budgets=[0.5], finetune=SCHEDULE, ignored_layers="conv_1"),
        *grids.cross(bases=[BASE], method="l1_filter", budgets=[0.5, 0.6], finetune=SCHEDULE, ignored_layers=["convx"]),
        *grids.cross(bases=[BASE], method="l1_filter", budgets=[0.5], finetune=SCHEDULE, ignored_layers="stage_1"),
    ]
    assert runs[0].described == "l1_filter(without=conv_1)"
    lines = cost.refused([BASE, *runs], NOWHERE)
    assert [line.partition(";")[0] for line in lines] == [
        "cifar10/resnet20: there is no layer 'conv_1' to ignore",
        "cifar10/resnet20: there is no layer 'convx' to ignore",
    ]
