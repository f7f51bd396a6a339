"""Discovery of method files, and the lists and notes that come of them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from method_cases import (
    FOUND,
    USABLE,
    one_layer,
    order_of_removal,
)

import baselines
from baselines.l1_filter import L1Filter
from suite import grids, methods
from suite.contract import (
    Criterion,
)  # fmt: skip
from suite.methods import Broken
from suite.schedule import Schedule
from suite.stages import Base

BAD = {
    "syntax_error": ("def score(:\n", "SyntaxError"),
    "missing_import": ("import a_library_that_is_not_there\n", "No module named 'a_library_that_is_not_there'"),
    "fails": ("1 / 0\n", "ZeroDivisionError"),
    "leaves": ("import sys\nsys.exit('bye')\n", "SystemExit: bye"),
    "empty": ("", "exactly one subclass of Pruner or Criterion, found 0"),
    "borrowed": ("from baselines.l1_filter import L1Filter\n", "exactly one subclass of Pruner or Criterion, found 0"),
    "two": (
        "from suite.contract import Pruner\nclass A(Pruner):\n    pass\nclass B(Pruner):\n    pass\n",
        "exactly one subclass of Pruner or Criterion, found 2",
    ),
    "no_source": (
        "from suite.contract import Pruner\nclass A(Pruner):\n    granularity = 'filter'\n",
        "A lacks source",
    ),
    "wrong_signature": (
        "from dataclasses import dataclass\nfrom suite.contract import Criterion\n@dataclass(frozen=True, kw_only=True)\n"
        "class A(Criterion):\n    granularity, source = 'filter', 'x'\n    def score(self, model):\n        pass\n",
        "A.score takes (self, model); the contract requires (self, model, graph, state, task)",
    ),
    "brackets": ("raise ValueError('want [O], not [/oops]')\n", "want [O], not [/oops]"),
    "no_dataclass": (
        "from suite.contract import Criterion\nclass A(Criterion):\n    granularity, source = 'filter', 'x'\n"
        "    power: float = 1\n    def score(self, model, graph, state, task):\n        pass\n",
        "A needs @dataclass(frozen=True, kw_only=True) above it",
    ),
    "unknown_granularity": (
        "from suite.contract import Criterion\nclass A(Criterion):\n    granularity, source = 'filtre', 'x'\n",
        "A.granularity is 'filtre'; choose from: filter, channel, intra_channel",
    ),
    "no_score": (
        "from dataclasses import dataclass\nfrom suite.contract import Criterion\n@dataclass(frozen=True, kw_only=True)\n"
        "class A(Criterion):\n    granularity, source = 'filter', 'x'\n",
        "A does not define score",
    ),
    "unknown_search": (
        "from dataclasses import dataclass\nfrom suite.contract import Criterion\n@dataclass(frozen=True, kw_only=True)\n"
        "class A(Criterion):\n    granularity, source, search = 'filter', 'x', {'pwr': (1, 2)}\n",
        "A.search names 'pwr', which is no setting; it has: ranking, scope, per, step",
    ),
    "nothing_said": (
        "from suite.contract import Pruner\nclass A(Pruner):\n    pass\n",
        "A lacks granularity and source",
    ),
}


@pytest.fixture
def more_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Adds a file to the folder of methods, for the length of a test."""
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path)])
    methods.discover.cache_clear()
    names = set(sys.modules)

    def add(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        methods.discover.cache_clear()

    yield add
    methods.discover.cache_clear()
    for name in [name for name in sys.modules if name not in names and name.startswith("baselines.")]:
        del sys.modules[name]
        vars(baselines).pop(name.removeprefix("baselines."), None)


def test_files_that_are_no_method_stop_only_themselves(
    more_methods: Callable[[str, str], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = methods.discover()
    for name, (text, _) in BAD.items():
        more_methods(name, text)
    found = methods.discover()
    assert {name: kind for name, kind in found.items() if name not in BAD} == before
    for name, (_, reason) in BAD.items():
        broken = found[name]
        assert isinstance(broken, Broken)
        assert broken.file == f"baselines/{name}.py"
        assert reason in broken.reason
        with pytest.raises(ValueError, match=f"method {name} cannot be used: baselines/{name}.py: ") as error:
            methods.get(name)
        assert reason in str(error.value)
    base = Base(data="digits", model="vgg6", schedule=Schedule(epochs=1, lr=0.1, weight_decay=0), seed=0)
    with pytest.raises(ValueError, match=r"baselines/two\.py: it must define exactly one"):
        grids.cross(bases=[base], method="two", budgets=[0.5], finetune=Schedule(epochs=1, lr=0.1, weight_decay=0))
    monkeypatch.setattr(sys, "argv", ["methods"])
    assert methods.main() == 1
    shown = capsys.readouterr().out
    for name in BAD:
        assert f"not usable: baselines/{name}.py" in shown
    assert "l1_filter" in shown


def test_all_methods_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["methods"])
    monkeypatch.setenv("COLUMNS", "60")  # names are never cut
    assert methods.main() == 0
    shown = capsys.readouterr().out
    for name in FOUND:
        assert name in shown


def test_a_copy_of_the_template_is_a_method(more_methods: Callable[[str, str], None]) -> None:
    template = Path(baselines.__path__[0]) / "_template.py"
    assert "template" not in FOUND
    assert "_template" not in FOUND
    more_methods("my_own", template.read_text())
    assert set(methods.discover()) == {*FOUND, "my_own"}
    kind = methods.get("my_own")
    settings = kind.for_task("digits", "vgg6")
    assert settings.method_name() == "my_own"
    model, graph = one_layer([[3.0, -1.0], [0.0, 5.0], [1.0, -1.0]])
    assert order_of_removal(settings, model, graph) == [2, 0, 1]


COMPARISONS = ("cifar10_fair", "cifar10_oneshot", "tuning", "tuning_digits")
"""Grids that compare all methods of a kind."""


def test_a_file_that_is_dropped_in_is_in_every_comparison_grid(more_methods: Callable[[str, str], None]) -> None:
    text = (Path(baselines.__path__[0]) / "_template.py").read_text()
    before = {name: {run.method for run in grids.runs_of(grids.load(name))} for name in COMPARISONS}
    more_methods("my_own", text)
    more_methods("my_abstract", text.replace("    granularity =", '    evidence = "abstract"\n    granularity ='))
    for name in COMPARISONS:
        abstract = {"my_abstract"} if name.startswith("tuning") else set()
        now = {run.method for run in grids.runs_of(grids.load(name))}
        assert now - before[name] == {"my_own"} | abstract


def test_rivals_are_chosen_by_their_class_attributes() -> None:
    assert set(methods.rivals(control=True)) == {"random_filter", "uniform_width"}
    assert set(methods.rivals(control=True, needs_reference=True)) == {"random_rates", "l1_rates", "scratch"}
    assert set(methods.rivals(evidence="abstract")) == {"lapp", "group_sparse"}
    assert methods.rivals(evidence="latency") == ("halp", "random_groups")
    assert not set(methods.rivals()) & {"random_groups", "lapp", "group_sparse", "scratch", "dsp"}
    assert "slimming" in methods.rivals(learns=True)
    assert methods.rivals(learns=True, control=True) == ()


@pytest.mark.parametrize("method", USABLE)
def test_a_method_describes_itself(
    method: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["methods", method])
    assert methods.main() == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert methods.get(method).granularity in shown
    for field in dataclasses.fields(methods.get(method)):
        assert f"{field.name} = {field.default!r}" in shown


def test_an_unknown_setting_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="L1Filter has no setting 'power'; it has: ranking, scope, per, step"):
        methods.get("l1_filter").for_task("digits", "vgg6", power=2)


def test_an_unknown_method_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"unknown method 'fpmg' \(did you mean fpgm\?\); choose from: dsp, "):
        methods.get("fpmg")


# ---- scopes and notes ------------------------------------------------------------------------------------------------

SCOPES = {
    **dict.fromkeys(("chip", "fpgm", "fpgm_once", "hrank", "l2_filter", "random_filter", "sfp"), "untied"),
    **dict.fromkeys(("centrality", "greg", "l1_filter", "resrep", "similarity", "taylor", "taylor_once"), "inner"),
    **dict.fromkeys(("depgraph", "group_fisher", "group_sparse", "halp", "hspg", "lapp", "uniform_width"), "coupled"),
}
"""Default scope of each criterion: that of its authors, with the evidence in `source`."""


def test_the_default_scope_of_each_criterion_is_that_of_its_authors() -> None:
    kinds = {name: kind for name, kind in FOUND.items() if not isinstance(kind, Broken) and issubclass(kind, Criterion)}
    assert {name: kind().scope for name, kind in kinds.items()} == SCOPES


def test_notes_have_source_and_deviations_of_each_method_once() -> None:
    first, second, third = methods.notes(["l1_filter", "lapp", "l1_filter", "no_method", "random_filter"])
    assert (first.method, first.source) == ("l1_filter", L1Filter.source)
    assert L1Filter.deviations in first.signed
    assert Criterion.shared_deviations in first.signed
    assert second.signed.startswith("no: written from the abstract")
    assert third.signed == "control, without authors"


def test_a_rows_settings_give_the_cost_of_a_learning_step() -> None:
    assert methods.step_cost({"method": "dsp", "groups": 3}) == 2.1
    assert methods.step_cost({"method": "dsp", "second_order": "none"}) == 1.05
    assert methods.step_cost({"method": "leanflex_gkp"}) == methods.get("equal_gkp")().step_cost
