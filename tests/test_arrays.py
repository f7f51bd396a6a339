"""Stages as arrays of jobs: each once, what is needed first, nothing waits for what it does not need."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import tiny_grid
from hypothesis import given
from hypothesis import strategies as st
from tiny_grid import base, run_of

from suite import records
from suite.launch import arrays, record, snapshot, work
from suite.launch.arrays import Array
from suite.run import Context, fail, given_up
from suite.stages import Stage, Timed, Timing, in_order

RUNS = [
    run_of(method, budget, of=base(seed))
    for seed in (0, 1, 2)
    for method in ("l1_filter", "l2_filter", "dsp", "slimming")
    for budget in (0.3, 0.5, 0.7)
]
STAGES = in_order([*RUNS, *(Timed(pruned=run, timing=Timing(protocol="quick")) for run in RUNS)])


def of(stages: list[Stage] = STAGES, pending: dict[str, str] | None = None, **options: int) -> list[Array]:
    about = {"side_by_side": 1, "most": 1000, "chained": False, **options}
    return arrays.arrays_of(stages, pending or {}, **about)  # type: ignore[arg-type]


@given(st.integers(1, 5), st.integers(1, 7), st.booleans(), st.sets(st.sampled_from(range(len(STAGES)))))
def test_every_stage_once_after_what_it_needs(side_by_side: int, most: int, chained: bool, done: set[int]) -> None:
    stages = [stage for number, stage in enumerate(STAGES) if number not in done]
    wanted = {stage.key for stage in stages}
    seen: list[str] = []
    for array in of(stages, side_by_side=side_by_side, most=most, chained=chained):
        assert 1 <= len(array.tasks) <= most
        assert set(array.after) <= set(seen), "a dependency is submitted before"
        members = [stage for task in array.tasks for stage in task]
        for stage in members:
            missing = {need.key for need in stage.needs if need.key in wanted}
            assert missing <= (set(seen) if chained else set(array.after))
        assert {isinstance(stage, Timed) for stage in members} == {array.timing}
        assert all(len(task) <= (1 if array.timing else side_by_side) for task in array.tasks)
        seen += [stage.key for stage in members]
    assert sorted(seen) == sorted(wanted)


def test_stages_that_wait_for_the_same_are_an_array() -> None:
    found = of()
    shapes = [({stage.kind for task in array.tasks for stage in task}, len(array.tasks)) for array in found]
    assert shapes[0] == ({"base"}, 3)
    assert shapes[1:4] == [({"learned", "pruned"}, 8)] * 3, "what needs one base network only"
    assert shapes[4:10] == [({"pruned"}, 3)] * 6, "the budgets of what was learned"
    assert {str(kinds) for kinds, _ in shapes[10:]} == {"{'timed'}"}
    assert sorted(count for _, count in shapes[10:]) == [3] * 6 + [6] * 3, "an array of runs, then their latency"
    assert [array.whole for array in found] == [False] * 10 + [True] * 9


def test_what_is_with_slurm_already_is_waited_for() -> None:
    first = STAGES[0]
    found = of([stage for stage in STAGES if stage is not first], pending={first.key: "7"})
    assert [array.after for array in found if first in array.tasks[0][0].needs and first.key in array.after]


def test_a_limit_of_jobs_makes_a_chain() -> None:
    found = of(chained=True, most=10)
    assert found[0].after == ()
    for before, array in itertools.pairwise(found):
        assert array.whole
        assert array.after == (before.tasks[-1][0].key,)


def test_a_chain_begins_behind_what_is_with_slurm_already() -> None:
    """Each array waits for the one before it, so all of them wait for the earlier launch's jobs."""
    pending = {stage.key: str(number) for number, stage in enumerate(STAGES[:3])}
    found = of(STAGES[3:], pending, chained=True, most=10)
    assert found[0].after == tuple(pending)
    assert found[0].whole
    assert [array.after for array in found[1:]] == [(before.tasks[-1][0].key,) for before in found[:-1]]


def test_three_equal_failures_leave_a_stage_and_what_needs_it_alone(tmp_path: Path) -> None:
    context = Context(results=tmp_path)
    learned = next(stage for stage in STAGES if stage.kind == "learned")
    reasons = ["out of memory: 12 MB", "out of memory: 13 MB", "no such file", "out of memory: 14 MB"]
    for number, reason in enumerate(reasons):
        assert given_up(learned, context) is None, number
        fail(learned, context, "failed", reason)
    why = "given up after 3 equal failures: out of memory: 14 MB; --retry-failed tries it again"
    assert given_up(learned, context) == why
    found = work.find(STAGES, context, retry_failed=False, only_timing=False)
    behind = [s for s in STAGES if learned in s.needs or any(learned in need.needs for need in s.needs)]
    assert found.left_alone.keys() == {learned.key, *(stage.key for stage in behind)}
    assert len(behind) == 6
    assert not work.find(STAGES, context, retry_failed=True, only_timing=False).left_alone


def test_failures_that_do_not_count(tmp_path: Path) -> None:
    for _ in range(5):
        fail(STAGES[0], Context(results=tmp_path), "failed", "its job ended as CANCELLED", counts=False)
    assert given_up(STAGES[0], Context(results=tmp_path)) is None


def test_only_timing_measures_what_is_done(tmp_path: Path) -> None:
    found = work.find(STAGES, Context(results=tmp_path), retry_failed=False, only_timing=True)
    assert (found.todo, found.waiting, found.done) == ((), len(RUNS), 0)


def test_what_changed_in_a_grid_is_said() -> None:
    before = record.begin("mine", "local", STAGES, snapshot="", jobs={})
    assert work.changes(None, STAGES) == ""
    assert work.changes(before, STAGES) == ""
    other = [*STAGES[1:], base(7)]
    said = work.changes(before, other)
    assert f"1 new ({base(7).label}), 1 gone ({STAGES[0].label})" in said
    assert f"the rows of the other {len(STAGES) - 1} stay valid" in said


@pytest.mark.parametrize("text", ["", "{", "[]", '{"grid": "mine"}'])
def test_a_launch_file_is_whole_or_none(tmp_path: Path, text: str) -> None:
    launch = record.begin("mine", "slurm", tiny_grid.stages(), snapshot="abc", jobs={"base-1": "3_4"})
    record.write(launch, tmp_path)
    assert record.read(tmp_path, "mine") == launch
    assert record.read(tmp_path, "other") is None
    (record.folder(tmp_path) / "mine.json").write_text(text)
    assert record.read(tmp_path, "mine") is None


def test_a_snapshot_follows_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = snapshot.take(tmp_path)
    assert snapshot.take(tmp_path) == first
    assert (first / "suite" / "launch" / "snapshot.py").read_bytes() == Path(snapshot.__file__).read_bytes()
    assert not list(first.rglob("__pycache__"))
    said = records.source()
    monkeypatch.setattr("suite.records.origin.ROOT", first)
    monkeypatch.setattr(records, "ROOT", first)
    monkeypatch.setattr("suite.records.origin.ROOT", first)
    assert records.source() == {**said, "snapshot": first.name}
    (first / "suite" / "files.py").write_text("changed")
    other = snapshot.take(tmp_path)
    assert other != first
    assert [path.name for path in (tmp_path / "snapshots").iterdir() if path.name.startswith(".")] == []


def test_halves_of_an_array_wait_as_the_whole_did() -> None:
    whole = of(most=1000)[-1]
    first, second = arrays.halves(whole)
    assert first.tasks + second.tasks == whole.tasks
    assert first.after == second.after == whole.after
    chained = of(chained=True, most=1000)[-1]
    first, second = arrays.halves(chained)
    assert (first.after, second.after) == (chained.after, (first.tasks[-1][0].key,))
