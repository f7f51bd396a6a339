"""Latency budgets: bad inputs, tables and their files, corrections by measurement, the row of a run."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny_grid
import torch
from benchmarks import prediction
from tiny_grid import call
from torch import nn

import suite
from suite import cli, models, records
from suite import pack as packing
from suite.cudagraph import captured
from suite.graph import Graph
from suite.measure import executions, latency_budget, layer_table, layer_times
from suite.measure.layer_times import TERMS, LayerTable
from suite.pack.runtimes import why_not
from suite.plan import Budget, Planner, PruningPlan, Runtime, Timing
from suite.run import Context, execute
from suite.run.folder import failure
from suite.schedule import Schedule
from suite.select import filter_planner
from suite.timing import Run

TIMING = Timing(batch=2, protocol="quick")
DEVICE = records.device_name("cpu")
MODEL = models.build("resnet8", 10).eval()


def budget(share: float = 0.4, **changes: Any) -> Budget:
    return Budget(**{"share": share, "scope": "latency", "timing": TIMING, **changes})


def graph_of(model: nn.Module = MODEL, size: int = 8) -> Graph:
    graph = Graph(model, (3, size, size))
    graph.times = table_of(graph)
    return graph


def table_of(graph: Graph, timing: Timing = TIMING, device: str = DEVICE) -> LayerTable:
    """A layer takes a thousandth of filters x channels milliseconds, and a tenth of the network's time is no layer's."""
    layers = layer_times.geometries(graph)
    costs = {geometry: tuple(1e-3 if name == "macs" else 0.0 for name in TERMS) for geometry in layers.values()}
    layers_ms = sum(conv.filters * conv.channels / 1000 for conv in graph.convs.values())
    times: dict[str, Any] = {"dense_ms": layers_ms / 0.9, "rest_ms": layers_ms / 9}
    about: dict[str, Any] = {"provenance": {"device": device}, "threads": torch.get_num_threads()}
    return LayerTable(timing=timing, layers=layers, costs=costs, **times, **about)


def planner_of(graph: Graph) -> Planner:
    scores = {name: torch.arange(conv.filters).float() for name, conv in graph.convs.items()}
    return filter_planner(graph, scores, ranking="layer")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"timing": None}, "a budget has no timing: add timing=Timing"),
        ({"scope": "network"}, "a budget of scope 'network' has a timing: drop"),
        ({"refill": True}, "refill=True fills a budget of MACs"),
        ({"scope": "time"}, "'time' is unknown; choose network, prunable or latency|network, prunable, latency"),
        ({"share": 1.0}, "it is the share of"),
        ({"timing": {"batch": 2}}, r"timing = \{'batch': 2\}: it takes Timing"),
    ],
)
def test_a_bad_latency_budget_is_refused_in_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        budget(**changes)
    assert "\n" not in str(refusal.value)


def test_a_budget_of_time_that_cannot_be_reached_names_the_most() -> None:
    graph = graph_of()
    with pytest.raises(ValueError, match=r"cannot be met: this method removes at most \d+\.\d+% of the time here"):
        latency_budget.meet(planner_of(graph), MODEL, graph, budget(0.95))


def test_time_without_a_table_is_refused() -> None:
    graph = Graph(MODEL, (3, 8, 8))
    with pytest.raises(ValueError, match="there is none here: give the run a latency budget"):
        graph.cut(PruningPlan({}), "latency")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finds no CUDA device here"):
        latency_budget.table_for(MODEL, graph_of(), Timing(device="cuda"), tmp_path)


def test_a_table_is_measured_once_and_only_for_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, measured = graph_of(), []

    def measure(model: nn.Module, graph: Graph, timing: Timing) -> LayerTable:
        measured.append(timing)
        return table_of(graph, timing)

    monkeypatch.setattr(latency_budget, "_measured_table", measure)
    tables = [latency_budget.table_for(MODEL, graph, TIMING, tmp_path) for _ in range(2)]
    assert (tables[0], len(measured)) == (tables[1], 1)
    explicit = dataclasses.replace(TIMING, threads=torch.get_num_threads())
    assert latency_budget.table_for(MODEL, graph, explicit, tmp_path).layers == tables[0].layers
    assert len(measured) == 1
    latency_budget.table_for(MODEL, graph_of(size=16), TIMING, tmp_path)
    latency_budget.table_for(MODEL, graph, dataclasses.replace(TIMING, batch=3), tmp_path)
    assert (len(measured), len(list(tmp_path.glob("*.json")))) == (3, 3)
    for path in tmp_path.glob("*.json"):
        layer_times.save(table_of(graph, device="another CPU"), path)
    with pytest.raises(ValueError, match="has the layer times of another CPU, and this machine is"):
        latency_budget.table_for(MODEL, graph, TIMING, tmp_path)


def test_the_command_measures_a_table_once_and_prints_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latency_budget, "_measured_table", lambda model, graph, timing: table_of(graph, timing))
    options = ("--model", "resnet8", "--dataset", "digits", "--batch", 2, "--protocol", "quick", "--results", tmp_path)
    for cost in (" plans in ", ": there already"):
        assert call(layer_table.main, *options) == 0
        path, about = capsys.readouterr().out.splitlines()
        assert Path(path).parent == tmp_path / latency_budget.FOLDER
        assert cost in about
    table = layer_times.load(Path(path))
    assert (table.timing.batch, table.timing.threads) == (2, cli.cores())
    for bad, message in (
        (("--threads", 0), "--threads 0: it takes 1 or more"),
        (("--batch", 0), "batch"),
        (("--model", "resnet9"), "resnet9"),
        (("--dataset", "nothing"), "nothing"),
    ):
        assert call(layer_table.main, *options, *bad) == 2
        assert message in capsys.readouterr().err


def test_the_command_asks_for_threads_on_a_cpu_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Timing] = []

    def table_for(model: nn.Module, graph: Graph, timing: Timing, folder: Path) -> LayerTable:
        asked.append(timing)
        return table_of(graph, timing)

    monkeypatch.setattr(latency_budget, "table_for", table_for)
    for device in ("cpu", "cuda"):
        options = ("--model", "resnet8", "--dataset", "digits", "--results", tmp_path, "--device", device)
        assert call(layer_table.main, *options) == 0
    assert [timing.threads for timing in asked] == [cli.cores(), 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plans", "0"], "--batch, --plans and --train take 1 or more"),
        (["--methods", "--model", "resnet56"], "--methods: the methods' base network is a resnet20_a"),
        (["--seconds", "0"], "--seconds 0: the table alone took longer, and no plan was timed; give more"),
        (["--model", "resnet9"], "resnet9"),
    ],
)
def test_the_benchmark_of_predictions_refuses_bad_input_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty = prediction.pd.DataFrame(columns=["kind", "predicted", "measured"])
    monkeypatch.setattr(prediction, "measure", lambda *_: empty)
    monkeypatch.setattr("sys.argv", ["prediction", *arguments, "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        prediction.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_benchmark_of_predictions_draws_the_kinds_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two plans are of two kinds."""
    lines = prediction.pd.DataFrame({"kind": prediction.KINDS[:2], "predicted": [0.5, 0.88], "measured": [0.5, 0.8]})
    monkeypatch.setattr(prediction, "measure", lambda *_: lines)
    monkeypatch.setattr("sys.argv", ["prediction", "--plans", "2", "--results", str(tmp_path)])
    assert prediction.main() == 0
    out = capsys.readouterr().out
    assert "all random: 2 plans, error of time left: % median 5.0, 95th percentile 9.5, bias +5.0" in out
    assert prediction.KINDS[2] not in out
    assert {path.suffix for path in (tmp_path / "prediction").iterdir()} == {".csv", ".png", ".pdf"}


def test_a_table_is_of_one_runtime_and_one_list_of_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, folder = graph_of(), Path("tables")
    path = latency_budget.table_path(graph, TIMING, folder)
    assert path.name.startswith("cpu_1threads_fp32_batch2_contiguous_")
    other = latency_budget.table_path(graph, dataclasses.replace(TIMING, runtime="onnxruntime"), folder)
    assert other.name.startswith("cpu_1threads_onnxruntime_fp32_batch2_contiguous_")
    monkeypatch.setattr(layer_times, "TERMS", (*TERMS, "another"))
    assert latency_budget.table_path(graph, TIMING, folder) != path


def test_a_runtime_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="no time is measured here: openvino is not installed"):
        latency_budget.table_for(MODEL, graph_of(), dataclasses.replace(TIMING, runtime="openvino", precision="bf16"))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_budget_of_time_in_another_runtime_is_planned_and_measured_there(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = dataclasses.replace(TIMING, batch=64, runtime=runtime)
    if reason := why_not(runtime, "cpu", "fp32"):
        pytest.skip(f"{runtime}: {reason}")
    monkeypatch.setattr(layer_times, "PLANS", 6)
    graph = graph_of()
    graph.times = table = latency_budget.table_for(MODEL, graph, timing)
    assert table.timing.runtime == runtime
    assert all(sum(costs) > 0 for costs in table.costs.values())
    compiled: list[str] = []
    real = executions.compiled

    def spy(module: nn.Module, inputs: Any, runtime: Runtime, precision: str) -> Any:
        compiled.append(runtime)
        return real(module, inputs, runtime, precision)

    monkeypatch.setattr(executions, "compiled", spy)
    selection = latency_budget.meet(planner_of(graph), MODEL, graph, budget(0.1, timing=timing))
    assert set(compiled) == {runtime}
    assert selection.measured_cut is not None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_budget_of_time_on_a_gpu_is_measured_in_captured_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_times, "PLANS", 6)
    timing = Timing(device="cuda", batch=64, precision="bf16", layout="channels_last", protocol="quick")
    model = copy.deepcopy(MODEL).to("cuda")
    graph = Graph(model, (3, 32, 32))
    graph.times = latency_budget.table_for(model, graph, timing, tmp_path)
    (file,) = tmp_path.glob("cuda_bf16_batch64_channels_last_*.json")
    assert layer_times.load(file) == graph.times
    runs: list[Run] = []

    def spy(run: Run) -> Run:
        runs.append(run)
        return captured(run)

    monkeypatch.setattr(latency_budget, "captured", spy)
    planner = planner_of(graph)
    share = graph.cut(planner(1.0), "latency") / 2
    selection = latency_budget.meet(planner, model, graph, budget(share, timing=timing))
    assert selection.cut > 0
    assert selection.measured_cut is not None
    assert len(runs) >= 2 * (1 + selection.corrections), "the dense and the packed network of each attempt"


@pytest.mark.parametrize(("factor", "corrections", "coarse"), [(1.0, 0, False), (1.15, 1, False), (0.8, 1, False)])
def test_the_predicted_share_is_corrected_by_the_measured_one(
    factor: float, corrections: int, coarse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured time is `factor` times the predicted one."""
    graph = graph_of()
    monkeypatch.setattr(
        latency_budget, "measured_cut", lambda model, graph, plan, timing: 1 - factor * (1 - graph.cut(plan, "latency"))
    )
    selection = latency_budget.meet(planner_of(graph), MODEL, graph, budget(0.4))
    assert selection.measured_cut == pytest.approx(0.4, abs=latency_budget.CLOSE)
    assert selection.cut == pytest.approx(1 - 0.6 / factor, abs=0.03)
    assert (selection.corrections, selection.coarse) == (corrections, coarse)


def test_between_two_plans_on_both_sides_the_correction_interpolates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured time falls twice as fast as predicted time, on which a correction in proportion overshoots."""
    graph = graph_of()

    def measured(model: nn.Module, graph: Graph, plan: PruningPlan, timing: Timing) -> float:
        return 2.5 * graph.cut(plan, "latency") - 0.5

    monkeypatch.setattr(latency_budget, "measured_cut", measured)
    selection = latency_budget.meet(planner_of(graph), MODEL, graph, budget(0.4))
    assert selection.measured_cut == pytest.approx(0.4, abs=latency_budget.CLOSE)
    assert not selection.coarse


def test_the_timing_decides_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, used, before = graph_of(), list[int](), torch.get_num_threads()

    def alternate(*_: Any) -> None:
        used.append(torch.get_num_threads())
        raise ZeroDivisionError

    monkeypatch.setattr(latency_budget.latency, "alternate", alternate)
    timing = dataclasses.replace(TIMING, threads=before + 1)
    with pytest.raises(ZeroDivisionError):
        latency_budget.measured_cut(MODEL, graph, PruningPlan({}), timing)
    assert (used, torch.get_num_threads()) == ([before + 1], before)
    assert f"cpu_{before + 1}threads_" in latency_budget.table_path(graph, timing, Path()).name


def test_weights_that_are_denormal_are_timed_as_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    """In copies of the packed network, of an empty plan too: the caller's network stays as it is."""
    model, least = copy.deepcopy(MODEL), torch.finfo(torch.float32).tiny
    with torch.no_grad():
        weight = next(conv.weight for conv in model.modules() if isinstance(conv, nn.Conv2d))
        weight[0] = least / 1000
    graph, timed, real = graph_of(model), list[nn.Module](), packing.tuned

    def tuned(packed: packing.PackedNetwork, *images: Any, **options: Any) -> Any:
        timed.append(packed)
        return real(packed, *images, **options)

    monkeypatch.setattr(packing, "tuned", tuned)
    images = executions.random_images(TIMING, (3, 8, 8))
    layer_times.prepared(model, graph, PruningPlan({}), images, TIMING, "groups")
    latency_budget._fastest(model, graph, PruningPlan({}), TIMING)
    assert len(timed) == 2
    for packed in timed:
        assert all(((one == 0) | (one.abs() >= least)).all() for one in packed.parameters())
    assert (weight[0] == least / 1000).all()


def test_the_closest_plan_is_coarse_if_no_correction_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, shares = graph_of(), iter([0.30, 0.36, 0.30])
    monkeypatch.setattr(latency_budget, "measured_cut", lambda *_: next(shares))
    selection = latency_budget.meet(planner_of(graph), MODEL, graph, budget(0.4))
    assert (selection.measured_cut, selection.corrections, selection.coarse) == (0.36, 2, True)


def test_a_budget_of_macs_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of()
    monkeypatch.setattr(latency_budget, "measured_cut", lambda *_: 1 / 0)
    selection = latency_budget.meet(planner_of(graph), MODEL, graph, Budget(share=0.4))
    assert (selection.measured_cut, selection.time_cuts()) == (None, {})


def test_prune_takes_a_budget_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a made table and a measured plan; the random state is that of a call without measurements."""
    monkeypatch.setattr(latency_budget, "CORRECTIONS", 0)
    monkeypatch.setattr(latency_budget, "_measured_table", lambda model, graph, timing: table_of(graph, timing))
    result = suite.prune(MODEL, torch.zeros(1, 3, 8, 8), method="l1_filter", budget=budget(0.2))
    after = torch.rand(1)
    suite.prune(MODEL, torch.zeros(1, 3, 8, 8), method="l1_filter", budget=0.2, seed=0)
    assert torch.equal(after, torch.rand(1))
    assert 0 < result.report.macs_cut_pct < 100
    assert result.report.predicted_time_cut_pct is not None
    assert "% cut, predicted" in str(result.report)


def test_a_table_is_measured_beside_the_dense_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_times, "PLANS", 2)
    monkeypatch.setattr(layer_times, "REPEATS", 1)
    state = torch.get_rng_state()
    table = latency_budget.table_for(MODEL, graph_of(), TIMING)
    assert table.dense_ms > 0
    assert table.provenance["device"] == DEVICE
    assert torch.equal(state, torch.get_rng_state())


def test_the_row_of_a_run_has_both_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_budget, "_measured_table", lambda model, graph, timing: table_of(graph, timing))
    monkeypatch.setattr(latency_budget, "measured_cut", lambda model, graph, plan, timing: graph.cut(plan, "latency"))
    short = Schedule(epochs=0, **tiny_grid.SETTINGS)
    stage = dataclasses.replace(tiny_grid.run_of("l1_filter", finetune=short), budget=budget())
    context = Context(results=tmp_path, threads=1)
    for needed in (*stage.needs, stage):
        assert execute(needed, context) == "done", failure(stage, context)
    row = records.read(records.rows_folder(tmp_path) / f"{stage.key}.json")
    assert isinstance(row, records.PrunedRow)
    assert "40.00% of the time" in row.label
    assert (row.budget_scope, row.time_corrections, row.coarse) == ("latency", 0, False)
    assert row.time_cut_pct == row.predicted_time_cut_pct == pytest.approx(40, abs=2)
    assert row.stage["budget"]["timing"] == {"batch": 2, "protocol": "quick"}
    assert len(list((tmp_path / latency_budget.FOLDER).glob("*.json"))) == 1
