"""Figures of single runs: structure after a plan, and curves of learning."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle

from suite import methods, models, pack
from suite.contract import ConvPlan, PruningPlan
from suite.files import write_json
from suite.graph import Graph
from suite.grids import Grid, cross, runs_of
from suite.report import __main__
from suite.report.figures import learning, structure, style
from suite.report.frames import CONDITIONS
from suite.schedule import Schedule
from suite.stages import Base, Learned, identity


def graph_of(name: str) -> Graph:
    with torch.device("meta"):
        model = models.build(name, 10)
    return Graph(model, (3, 32, 32))


def random_plan(graph: Graph, groups: int, seed: int = 0) -> PruningPlan:
    """Random groups that keep random channels; closing convolutions lose filters too."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, conv in graph.convs.items():
        if conv.prunable:
            group = torch.randint(groups, (conv.filters,), generator=generator)
            kept_GI = torch.rand(groups, conv.channels, generator=generator) < 0.5
            kept_O = torch.rand(conv.filters, generator=generator) < (0.7 if conv.role == "closing" else 1)
            layers[name] = ConvPlan(group, kept_GI, kept_O)
    return PruningPlan(layers)


def main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["suite.report", *map(str, arguments)])
    return __main__.main()


# ---- structure -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 3, 8])
@pytest.mark.parametrize("name", ["resnet8", "vgg6", "resnet20_a", "resnet50"])
def test_what_is_drawn_adds_up_to_the_macs_of_the_plan(name: str, groups: int) -> None:
    graph = graph_of(name)
    plan = random_plan(graph, groups)
    rows = structure.layers(plan, graph)
    gone = sum(row.removed_macs * row.conv.macs for row in rows if row.conv.prunable)
    assert gone / graph.dense_macs.prunable == pytest.approx(graph.cut(plan, "prunable"))
    assert [row.conv.name for row in rows] == list(graph.convs)
    assert all(list(row.groups) == sorted(row.groups, key=lambda group: (-group[1], -group[0])) for row in rows)


def test_filled_areas_are_the_shares_that_are_left() -> None:
    graph = graph_of("resnet8")
    plan = random_plan(graph, 3)
    with style.new_figure(entries=0) as figure:
        structure.draw(figure, plan, graph)
        figure.canvas.draw()
    rows = structure.layers(plan, graph)
    empty = {to_rgba(structure.REMOVED_CHANNELS), to_rgba(structure.REMOVED_FILTERS["facecolor"])}
    left = [0.0] * len(rows)
    for patch in figure.axes[0].patches:
        assert isinstance(patch, Rectangle)
        if patch.get_facecolor() not in empty:
            left[round(patch.get_y())] += patch.get_width() * patch.get_height() / structure.FILLED
    assert left == pytest.approx([1 - row.removed_macs for row in rows])
    dots = sum(np.shape(points.get_offsets())[0] for points in figure.axes[1].collections)
    assert dots == sum(len(row.groups) for row in rows)


def test_an_empty_plan_removes_nothing() -> None:
    rows = structure.layers(PruningPlan({}), graph_of("resnet8"))
    assert {row.groups for row in rows} == {((1.0, 1.0),)}
    assert {(row.removed_filters, row.removed_macs) for row in rows} == {(0.0, 0.0)}


def test_a_group_that_reads_nothing_is_removed_filters() -> None:
    graph = graph_of("resnet8")
    conv = graph.convs["stage_1.0.conv_b"]
    kept_GI = torch.ones(2, conv.channels, dtype=torch.bool)
    kept_GI[1] = False
    group = torch.arange(conv.filters) % 4 // 3  # a quarter of the filters in group 1
    plan = PruningPlan({conv.name: ConvPlan(group, kept_GI, torch.ones(conv.filters, dtype=torch.bool))})
    row = next(row for row in structure.layers(plan, graph) if row.conv.name == conv.name)
    assert row.groups == ((0.75, 1.0),)
    assert row.removed_filters == 0.25


@pytest.mark.parametrize("plan_of", ["a filter a group", "all of a layer gone"])
def test_extreme_plans_are_drawn(plan_of: str, tmp_path: Path) -> None:
    graph = graph_of("resnet8")
    conv = graph.convs["stage_2.0.conv_a"]
    mask = torch.rand(conv.filters, conv.channels, generator=torch.Generator().manual_seed(0)) < 0.5
    layer = ConvPlan.from_mask(mask if plan_of == "a filter a group" else torch.zeros_like(mask))
    paths = structure.write(PruningPlan({conv.name: layer}), graph, "a $caption$ with _marks_", tmp_path / "figure")
    assert [path.name for path in paths] == ["figure.png", "figure.pdf"]
    assert all(path.stat().st_size > 1000 for path in paths)


def test_the_same_plan_gives_the_same_bytes(tmp_path: Path) -> None:
    graph = graph_of("vgg6")
    first, second = (structure.write(random_plan(graph, 2), graph, "", tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_plan_of_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="no convolution of this network"):
        structure.layers(random_plan(graph_of("vgg6"), 2), graph_of("resnet8"))


@pytest.fixture
def packed_run(tmp_path: Path) -> Path:
    """A packed network where a run would leave it."""
    torch.manual_seed(0)
    model = models.build("resnet8", 10)
    graph = Graph(model, (3, 32, 32))
    path = tmp_path / "work" / "pruned-0123456789ab" / "packed.safetensors"
    path.parent.mkdir(parents=True)
    packed = pack.pack(model, graph, random_plan(graph, 2))
    about = {"label": "digits/resnet8 mine 50.00% seed 0"}
    pack.save(packed, path, model="resnet8", classes=10, input_shape=(3, 32, 32), about=about)
    return path


def test_a_run_is_drawn_by_key_and_by_file(
    packed_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for wanted in ("pruned-0123456789ab", packed_run):
        assert main(monkeypatch, "--structure", wanted, "--results", tmp_path) == 0
        figure = tmp_path / "structure" / "pruned-0123456789ab.png"
        assert str(figure) in capsys.readouterr().out
        figure.unlink()


def test_a_grid_has_the_structure_of_its_first_grouped_run_that_can_be_read(
    packed_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = tmp_path / "work" / "pruned-00000000000d" / "packed.safetensors"
    damaged.parent.mkdir()
    damaged.write_text("no tensors")
    shared = {"data": "digits", "model": "resnet8", "status": "done", "label": "a run", "short": "a method"}
    made = {**dict.fromkeys(CONDITIONS, "same"), "removes": True}
    about = {
        **shared,
        **made,
        "budget": 0.5,
        "budget_scope": "network",
        "granularity": "intra_channel",
        "seed": 1,
        "removes": True,
    }
    whole = {**about, "key": "pruned-0000000000ff", "granularity": "filter", "seed": 0}
    runs = [whole, {**about, "key": damaged.parent.name, "seed": 0}, {**about, "key": packed_run.parent.name}]
    (picture,) = structure.draw_all(pd.DataFrame(runs), tmp_path, tmp_path / "grid")
    assert [path.name for path in picture.paths] == ["structure_digits_resnet8.png", "structure_digits_resnet8.pdf"]
    assert "a run, pruned-0123456789ab" in picture.caption
    assert "n = 1 run" in picture.caption
    assert f"no structure of {damaged.parent.name} is drawn" in caplog.text
    for none in ({"status": "failed"}, {"removes": False}):  # the dense control has no structure worth a figure
        assert structure.draw_all(pd.DataFrame(runs).assign(**none), tmp_path, tmp_path / "grid") == []


def test_bad_input_is_one_line(packed_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    text = tmp_path / "text.safetensors"
    text.write_text("no tensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(packed_run.read_bytes()[:-100])
    wrong: dict[str, list[object]] = {
        "--structure": [
            "nowhere.safetensors",
            tmp_path,
            "",
            text,
            damaged,
            "pruned-ffffffffffff",
            "learned-0123456789ab",
        ],
        "--learning": ["nope", "", "learned-nope", "learned-ffffffffffff", "pruned-0123456789ab", "quickstart"],
    }
    for option, values in wrong.items():
        for value in values:
            assert main(monkeypatch, option, value, "--results", tmp_path) == 2, value
            error = capsys.readouterr().err
            assert error.startswith("suite.report: "), value
            assert error.count("\n") == 1, error


def test_one_thing_is_asked_for_at_a_time(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for arguments in ([], ["--grid", "quickstart", "--learning", "quickstart"]):
        with pytest.raises(SystemExit):
            main(monkeypatch, *arguments)


# ---- learning --------------------------------------------------------------------------------------------------------

SHORT = Schedule(epochs=3, lr=0.1, weight_decay=0.0)


def learned_stages(method: str = "slimming", seeds: tuple[int, ...] = (0, 1), **changes: Any) -> list[Learned]:
    """Two settings of a method, each with some seeds."""
    bases = [Base(data="digits", model="resnet8", schedule=SHORT, seed=seed) for seed in seeds]
    runs = [
        run
        for value in (1e-4, 2e-4)
        for run in cross(bases=bases, method=method, budgets=(0.5,), finetune=SHORT, learning=SHORT, lam=value)
    ]
    return [run.learned for run in runs if run.learned]


def log(stage: Learned, results: Path, epochs: int = 3, **numbers: float) -> None:
    """The folder of a finished stage whose log has these numbers in every epoch."""
    folder = results / "work" / stage.key
    entries = [{"epoch": e + 1, "loss": 1.0, "train_top1_pct": 50.0, "lr": 0.1, **numbers} for e in range(epochs)]
    folder.mkdir(parents=True)
    (folder / "history.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    write_json(folder / "done.json", {"stage": identity(stage), "label": stage.label})


def test_the_log_says_which_panels_there_are(tmp_path: Path) -> None:
    stages = learned_stages()
    for index, stage in enumerate(stages):
        log(stage, tmp_path, spread_nats=1.0 + index)
    logs, missing = learning.of_stages(stages, tmp_path)
    assert missing == 0
    with style.new_figure(entries=0) as figure:
        learning.draw(figure, logs)
        figure.canvas.draw()
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["spread (nats)", "loss", "train top-1 (%)"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["lam=0.0001", "lam=0.0002"]
    thick = [line for line in figure.axes[0].get_lines() if line.get_linewidth() > 1]
    assert [list(line.get_ydata()) for line in thick] == [[1.5] * 3, [3.5] * 3]  # type: ignore[arg-type]
    assert len(figure.axes[0].get_lines()) == 2 + 4  # the means, the seeds


def test_stages_of_other_schedules_are_lines_of_their_own() -> None:
    short = learned_stages()
    long = [Learned(**{**vars_of(stage), "schedule": Schedule(epochs=6, lr=0.1, weight_decay=0.0)}) for stage in short]
    names = learning._lines([*short, *long])
    assert names[:4] == ["lam=0.0001"] * 2 + ["lam=0.0002"] * 2
    assert names[4:] == ["lam=0.0001 [schedule 2]"] * 2 + ["lam=0.0002 [schedule 2]"] * 2


def vars_of(stage: Learned) -> dict[str, Any]:
    return {name: getattr(stage, name) for name in ("base", "settings", "seed", "budget")}


def test_a_grid_is_drawn_with_what_has_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    grid = tmp_path / "mine.py"
    grid.write_text(
        "from suite.grids import Grid, cross\nfrom suite.schedule import Schedule\nfrom suite.stages import Base\n"
        "S = Schedule(epochs=3, lr=0.1, weight_decay=0.0)\n"
        "BASES = [Base(data='digits', model='resnet8', schedule=S, seed=seed) for seed in (0, 1)]\n"
        "GRID = Grid(title='', about='', runs=lambda: cross(\n"
        "    bases=BASES, method='slimming', budgets=(0.5,), finetune=S, learning=S, lam=1e-4))\n"
    )
    log(learned_stages()[0], tmp_path, penalty=2.0)
    assert main(monkeypatch, "--learning", grid, "--results", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "1 of 2 learned stages have not finished" in printed
    assert (tmp_path / "mine" / "learning_digits_resnet8_slimming.pdf").is_file()


def test_a_stage_of_no_epochs_has_nothing_to_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taught = learned_stages()[0]
    control = Learned(
        base=taught.base,
        settings=methods.get("dense_control")(),
        schedule=replace(SHORT, epochs=0),
        seed=0,
        budget=None,
    )
    stages = [taught, control]
    monkeypatch.setattr(learning, "stages_of", lambda *_: stages)
    log(taught, tmp_path)
    log(control, tmp_path, epochs=0)
    assert main(monkeypatch, "--learning", "mine", "--results", tmp_path) == 0
    assert "1 of 2 learned stages learn for 0 epochs and have no curve" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "mine").glob("*.png")] == ["learning_digits_resnet8_slimming.png"]
    stages.remove(taught)
    for name, about in (("mine", "all 1 learned stages of mine learn"), (control.key, f"{control.key} learns")):
        assert main(monkeypatch, "--learning", name, "--results", tmp_path) == 0
        assert capsys.readouterr().out == f"{about} for 0 epochs: there is nothing to draw\n"


def test_one_stage_is_drawn_by_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = learned_stages()[0]
    log(stage, tmp_path, penalty=2.0)
    assert main(monkeypatch, "--learning", stage.key, "--results", tmp_path) == 0
    assert (tmp_path / "learning" / f"{stage.key}.png").is_file()


def test_a_damaged_log_is_named(tmp_path: Path) -> None:
    stage = learned_stages()[0]
    log(stage, tmp_path)
    for text in ("{not json\n", "", '{"a": 1}\n'):
        (tmp_path / "work" / stage.key / "history.jsonl").write_text(text)
        with pytest.raises(ValueError, match=r"history\.jsonl"):
            learning.of_stage(stage.key, tmp_path)


def test_a_grid_without_learning_has_no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    base = Base(data="digits", model="resnet8", schedule=SHORT, seed=0)
    grid = Grid(
        title="", about="", runs=lambda: cross(bases=[base], method="l2_filter", budgets=(0.5,), finetune=SHORT)
    )
    assert runs_of(grid)
    monkeypatch.setattr("suite.grids.load", lambda name: grid)
    with pytest.raises(ValueError, match="no method of the grid"):
        learning.stages_of("mine", smoke=False)


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    structure.write(PruningPlan({}), graph_of("resnet8"), "", tmp_path / "figure")
    assert dict(matplotlib.rcParams) == before
