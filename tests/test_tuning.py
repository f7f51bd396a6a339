"""Tuning: as many trials for every method, the recipe first; the winner is the best complete trial on the validation part."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pandas as pd
import pytest

from suite import grids, methods
from suite.grids._tuning import trials
from suite.report import winners
from suite.stages import Pruned


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
        assert settings[0] == kind.for_task(found[0].base.data, found[0].base.model), "the recipe is the first trial"
        combinations = 1
        for values in kind.search.values():
            combinations *= len(values)
        assert len(settings) in (min(6, combinations), min(6, combinations + 1)), method
        assert len(found) == len(settings) * len({run.seed for run in found})


def test_trials_differ_and_are_always_the_same_ones() -> None:
    kind = methods.get("slimming")
    found = trials(kind, "digits", "vgg6", 10)
    assert found == trials(kind, "digits", "vgg6", 10)
    assert found[:2] == trials(kind, "digits", "vgg6", 2)
    assert len({kind.for_task("digits", "vgg6", **changes) for changes in found}) == len(found)


def runs(**top1: list[float | None]) -> pd.DataFrame:
    """A method's trials by their settings; None is a run that is not done."""
    return pd.DataFrame(
        [
            {
                **{"data": "d", "model": "m", "method": "x", "series": number, "settings": settings},
                **{"status": "missing" if value is None else "done", "pruned_top1_pct": value},
                **{"commit": "c", "key": f"{settings}{seed}"},
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


def test_settings_are_not_chosen_on_the_test_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the grid quickstart reads the test set"):
        winners.report("quickstart", tmp_path)
    with pytest.raises(ValueError, match="no trial of tuning is complete"):
        winners.report("tuning", tmp_path)
