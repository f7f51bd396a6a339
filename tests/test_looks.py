"""Looks: a method has one colour and mark in all grids, and no two methods share both."""

from __future__ import annotations

from pathlib import Path

import pytest

from suite import grids, methods, registry
from suite.report.figures import looks, style
from suite.report.figures.looks import Look

METHOD = """
from baselines.l1_filter import L1Filter

class Mine(L1Filter):
    pass
"""


def test_no_two_methods_look_alike() -> None:
    seen = {(made["color"], made["marker"]) for made in (Look(name, 0).style() for name in methods.discover())}
    assert len(seen) == len(methods.discover())


def test_the_file_of_looks_names_methods_colours_and_marks() -> None:
    listed = looks._listed()
    assert listed.keys() <= methods.discover().keys()
    assert {colour for colour, _ in listed.values()} <= style.COLOURS.keys()
    assert {mark for _, mark in listed.values()} <= style.MARKS.keys()
    assert len(set(listed.values())) == len(listed)


@pytest.mark.parametrize(
    "name", ["quickstart", "cifar10_short", "imagenet_rehearsal", "latency_budget", "paper_table1"]
)
def test_the_methods_of_a_short_grid_differ_in_colour_and_in_mark(name: str) -> None:
    styles = [Look(method, 0).style() for method in {run.method for run in grids.runs_of(grids.load(name))}]
    for part in ("color", "marker"):
        assert len({made[part] for made in styles}) == len(styles)


def test_variants_of_a_method_share_colour_and_mark_and_differ_in_fill_and_dashes() -> None:
    made = [Look("dsp", variant).style() for variant in range(len(looks.FILLS) * len(style.DASHES))]
    assert len({(look["color"], look["marker"]) for look in made}) == 1
    assert len({(look["fillstyle"], repr(look["linestyle"])) for look in made}) == len(made)
    assert (made[0]["fillstyle"], made[0]["linestyle"]) == ("full", "-")


def test_a_method_of_ones_own_gets_a_pair_that_is_left_and_changes_no_other(tmp_path: Path) -> None:
    before, folders = {name: Look(name, 0).style() for name in methods.discover()}, registry.folders()
    for number in range(8):
        (tmp_path / f"mine{number}.py").write_text(METHOD)
    try:
        registry.add_folder(tmp_path)
        after = {name: Look(name, 0).style() for name in methods.discover()}
    finally:
        registry.set_folders(folders)
    assert after.keys() - before.keys() == {f"mine{number}" for number in range(8)}
    assert {name: after[name] for name in before} == before
    assert len({(look["color"], look["marker"]) for look in after.values()}) == len(after)
