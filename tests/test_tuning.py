"""Tuning has at most six trials for every method, its recipe first.

The winner is the best complete trial on the validation part.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_report import pruned_row
from tiny_grid import call

from suite import contract, grids, methods, records
from suite.contract import Recipe
from suite.grids._tuning import trials
from suite.report import __main__, winners
from suite.report.frames import CONDITIONS
from suite.schedule import Schedule
from suite.stages import Base, Pruned, identity

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", ["tuning", "tuning_digits"])
def test_every_method_has_its_trials_on_the_validation_part(name: str) -> None:
    runs = grids.runs_of(grids.load(name))
    assert {run.base.split for run in runs} == {"tuning"}
    of_method: dict[str, list[Pruned]] = defaultdict(list)
    for run in runs:
        of_method[run.method].append(run)
    for method, found in of_method.items():
        kind = methods.get(method)
        settings = list(dict.fromkeys(run.settings for run in found))
        recipe = kind.recipe(found[0].base.data, found[0].base.model, tuned=False)
        assert isinstance(recipe, Recipe)
        assert settings[0] == kind(**recipe.settings), "first the recipe without winners"
        combinations = 1
        for values in kind.search.values():
            combinations *= len(values)
        assert len(settings) in (min(6, combinations), min(6, combinations + 1)), method
        assert len(found) == len(settings) * len({run.seed for run in found})


@pytest.mark.parametrize("method", sorted(methods.discover()))
def test_a_tuned_recipe_names_the_rows_of_its_trial(method: str) -> None:
    """And the best trial in the tracked rows of the method is that trial."""
    kind = methods.get(method)
    recipe = kind.all_recipes().get(("digits", "resnet8"))
    named = re.findall(r"rows (pruned-\w+) (pruned-\w+)$", recipe.source) if isinstance(recipe, Recipe) else []
    if not named:
        return
    reference = ROOT / "results" / "reference"
    rows = records.read_all(reference, [path.stem for path in records.rows_folder(reference).glob("pruned-*.json")])
    settings = identity(kind.for_task("digits", "resnet8"))
    trials_of: dict[str, list[records.PrunedRow]] = defaultdict(list)
    for row in rows:
        assert isinstance(row, records.PrunedRow)
        if row.split == "tuning" and row.budget == 0.6 and row.method == method:
            trials_of[json.dumps(row.stage["settings"], sort_keys=True)].append(row)
    top1 = {key: sum(row.pruned_top1_pct or 0 for row in trial) for key, trial in trials_of.items()}
    assert top1[json.dumps(settings, sort_keys=True)] == max(top1.values())
    assert {row.key for row in trials_of[json.dumps(settings, sort_keys=True)]} == set(named[0])


def test_trials_differ_and_are_always_the_same_ones() -> None:
    kind = methods.get("slimming")
    found = trials(kind, "digits", "resnet8")
    assert found == trials(kind, "digits", "resnet8")
    assert len({kind(**changes) for changes in found}) == len(found) == 6


def test_the_first_trial_is_the_recipe_of_the_network_without_winners() -> None:
    assert trials(methods.get("slimming"), "cifar10", "resnet20")[0] == {"lam": 1e-5, "ranking": "raw"}
    gkp = methods.get("equal_gkp")
    assert trials(gkp, "digits", "resnet8")[0]["groups"] != gkp.for_task("digits", "resnet8").groups
    assert trials(methods.get("tmi_gkp"), "imagenet", "resnet50") == [], "the method opts out"


def runs(**top1: list[float | None]) -> pd.DataFrame:
    """A method's trials by their settings; None is a run that is not done."""
    return pd.DataFrame(
        [
            {
                **{"data": "d", "model": "m", "method": "x", "series": number, "settings": settings},
                **{"status": "missing" if value is None else "done", "pruned_top1_pct": value},
                **dict.fromkeys(CONDITIONS, "same"),
                "key": f"{settings}{seed}",
                "base_key": seed,
                "finetune_schedule": "",
            }
            for number, (settings, values) in enumerate(top1.items())
            for seed, value in enumerate(values)
        ]
    )


def test_the_best_complete_trial_wins_and_the_recipe_stays_when_it_is_as_good() -> None:
    (line,) = winners.winners(runs(recipe=[80.0, 82.0], b=[83.0, 85.0], c=[99.0, None])).to_dict("records")
    assert (line["settings"], line["trials"], line["complete"], line["rows"]) == ("b", 3, 2, "b0 b1")
    assert (line["top1_mean_pct"], line["first_top1_mean_pct"], line["gain_pp"], line["n"]) == (84.0, 81.0, 3.0, 2)
    (line,) = winners.winners(runs(recipe=[80.0, 80.0], b=[79.0, 81.0])).to_dict("records")
    assert (line["settings"], line["gain_pp"]) == ("recipe", 0)
    assert winners.winners(runs(recipe=[None])).empty


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("place", [1, 2])
def test_trials_of_different_conditions_are_never_compared(condition: str, place: int) -> None:
    mixed = runs(recipe=[80.0, 82.0], b=[83.0, 85.0], c=[99.0, None])
    mixed.loc[4, condition] = "of a run that does not count"
    assert winners.winners(mixed)["settings"].tolist() == ["b"]
    mixed.loc[place, condition] = "another"
    with pytest.raises(ValueError, match=f"under different conditions .{condition} same and another"):
        winners.winners(mixed)


def test_winners_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, *others = grids.runs_of(grids.load("tuning_digits"))
    trial = [run for run in (first, *others) if run.settings == first.settings and run.base.model == first.base.model]
    for run in trial:
        records.write(dataclasses.replace(pruned_row(run, 80 + run.seed), settings=run.method), tmp_path)
    assert call(__main__.main, "--winners", "tuning_digits", "--results", tmp_path) == 0
    assert "trials are not complete and were left out" in capsys.readouterr().out
    (line,) = pd.read_csv(tmp_path / "tuning_digits" / "winners.csv").to_dict("records")
    assert (line["method"], line["n"], line["complete"]) == (first.method, len(trial), 1)
    assert f"## {first.base.data}, {first.base.model}" in (tmp_path / "tuning_digits" / "winners.md").read_text()
    assert call(__main__.main, "--winners", "quickstart", "--results", tmp_path) == 2
    assert "settings are chosen where split='tuning' only" in capsys.readouterr().err


def test_settings_are_not_chosen_on_the_test_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the grid quickstart reads the test set"):
        winners.report("quickstart", tmp_path)
    with pytest.raises(ValueError, match="no trial of tuning is complete"):
        winners.report("tuning", tmp_path)


def test_a_winner_of_the_retraining_sweep_replaces_fields_of_the_fine_tuning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "winners.toml"
    entry = 'finetune = {{ lr = 0.5 }}\n{settings}grid = "retraining"\ntrials = 9\nrows = ["pruned-1"]\n'
    text = '[dsp."cifar10/resnet20"]\n' + entry.format(settings="")
    text += '[l1_filter."cifar10/resnet20"]\n' + entry.format(settings='settings = { ranking = "global" }\n')
    file.write_text(text)
    usual = methods.get("dsp").for_task("cifar10", "resnet20")
    monkeypatch.setattr(contract, "WINNERS", file)
    monkeypatch.setattr(contract, "_winners", contract._winners.__wrapped__)
    short = Schedule(epochs=2, lr=0.1, weight_decay=1e-4)
    base = Base(data="cifar10", model="resnet20", schedule=short, seed=0)
    for method in ("dsp", "l1_filter"):
        tuned, swept = (
            grids.cross(bases=[base], method=method, budgets=[0.5], finetune=short, learning=short, tuned=tuned)[0]
            for tuned in (True, False)
        )
        assert tuned.finetune == dataclasses.replace(short, lr=0.5)
        assert swept.finetune == short
        changes: dict[str, Any] = {"ranking": "global"} if method == "l1_filter" else {}
        expected = methods.get(method).for_task("cifar10", "resnet20", **changes) if changes else usual
        assert tuned.settings == expected, "a sweep of fine-tuning keeps the recipe's settings"
