"""Several processes with one stage: leases, ranks, takeovers."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shutil
import socket
import sys
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_grid import contents, log_of, results, the

from suite import lease, progress
from suite.plan import PruningPlan
from suite.progress import Interrupted, Superseded, Watch
from suite.run import Context, execute, failure, is_done, pruned_stage
from suite.run.execute import DECISIONS
from suite.run.folder import check_files
from suite.run.workspace import Workspace
from suite.select import Selection
from suite.stages import Stage


def do(stage: Stage, context: Context, queue: Any) -> None:
    """In another process."""
    torch.set_num_threads(1)
    began = is_done(stage, context)
    queue.put((began, execute(stage, context)))


def test_two_processes_with_one_stage_leave_one_good_output(copied: Context, finished: Context) -> None:
    stage = the("pruned", "dsp")
    shutil.rmtree(copied.folder(stage))
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    processes = [fork.Process(target=do, args=(stage, copied, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=100) for _ in processes]
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    assert [outcome for _, outcome in found] == ["done", "done"], failure(stage, copied)
    assert results(copied, [stage]) == results(finished, [stage])
    assert len(log_of(stage, copied)) == 0, "nothing went wrong in either"


def test_who_waits_for_another_process_can_be_stopped(copied: Context) -> None:
    stage = the("pruned", "dsp")
    (copied.folder(stage) / "done.json").unlink()

    class Now(Watch):
        must_stop = True

    with held(copied.folder(stage)):
        began = time.monotonic()
        assert execute(stage, copied, Now()) == "interrupted"
        assert time.monotonic() - began < lease.LEASE_S
    assert execute(stage, copied) == "done"


def test_rank_0_broadcasts_its_decision_while_another_process_has_the_lease(
    copied: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broadcast comes twice a second, so that no rank reaches its time-out; the other ranks follow the decision."""
    stage = the("pruned", "dsp")
    (copied.folder(stage) / "done.json").unlink()
    broadcast: list[int] = []

    def told(value: int) -> int:
        broadcast.append(value)
        return value

    monkeypatch.setattr("suite.distributed.broadcast", told)

    class Later(Watch):
        @property
        def must_stop(self) -> bool:
            return len(broadcast) >= 2

    with held(copied.folder(stage)):
        assert execute(stage, copied, Later()) == "interrupted"
    assert [DECISIONS[number] for number in broadcast] == ["wait", "wait", "interrupted"]
    monkeypatch.setattr("suite.distributed.is_first", lambda: False)
    for decision, outcome in (("interrupted", "interrupted"), ("done", "done")):
        numbers = iter([DECISIONS.index("wait"), DECISIONS.index("wait"), DECISIONS.index(decision)])
        monkeypatch.setattr("suite.distributed.broadcast", lambda value, numbers=numbers: next(numbers))
        assert execute(stage, copied) == outcome
        assert next(numbers, None) is None


@pytest.mark.parametrize("kind", ["base", "learned", "pruned"])
def test_only_rank_0_writes(copied: Context, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    stage = the(kind, "" if kind == "base" else "dsp")
    shutil.rmtree(copied.folder(stage))
    before = contents(copied.results)
    monkeypatch.setattr("suite.distributed.is_first", lambda: False)
    monkeypatch.setattr("suite.distributed.broadcast", lambda value: DECISIONS.index("begin"))
    assert execute(stage, copied) == "done"
    assert contents(copied.results) == before


def test_what_goes_wrong_before_the_attempt_is_a_status(copied: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a device that is gone, or a task."""
    stage = the("pruned", "dsp")
    (copied.folder(stage) / "done.json").unlink()

    def broken(value: object) -> None:
        raise RuntimeError("Connection closed by peer")

    for name in ("suite.distributed.broadcast", "suite.records.provenance"):
        with monkeypatch.context() as patched:
            patched.setattr(name, broken)
            assert execute(stage, copied) == "failed", name
        why = failure(stage, copied)
        assert why is not None
        assert why["reason"].startswith("RuntimeError: Connection closed by peer"), name


def held(folder: Path) -> AbstractContextManager[Any]:
    """The lease of the stage, held by this thread."""
    return lease.held(folder / ".lease", waiting=lambda owner: pytest.fail(owner), lost=lambda: None)


def hold_and_wait(folder: Path, queue: Any) -> None:
    """In another process: hold the lease until it is killed."""
    with held(folder):
        queue.put(lease.owner(folder / ".lease"))
        time.sleep(600)


def test_the_lease_of_a_killed_process_is_taken_over_at_once(copied: Context) -> None:
    stage = the("pruned", "dsp")
    (copied.folder(stage) / "done.json").unlink()
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    process = fork.Process(target=hold_and_wait, args=(copied.folder(stage), queue))
    process.start()
    assert queue.get(timeout=60) == f"process {process.pid} on {socket.gethostname()}"
    process.kill()
    process.join(20)
    began = time.monotonic()
    assert execute(stage, copied) == "done"
    assert time.monotonic() - began < lease.LEASE_S
    assert not (copied.folder(stage) / ".lease").exists()


@pytest.mark.parametrize("alive", [False, True])
def test_an_owner_on_another_host_is_given_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: bool) -> None:
    """An owner keeps its lease while it touches the file; afterwards another process takes it."""
    monkeypatch.setattr(lease, "LEASE_S", 5.0)
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.2)
    path, lost = tmp_path / ".lease", threading.Event()
    with lease.held(path, waiting=pytest.fail, lost=lost.set):
        text = path.read_text().replace(f"host={socket.gethostname()}", "host=elsewhere")
        if not alive:
            os.utime(path)
            path.unlink()
        path.write_text(text)
        waits: list[str] = []

        def waiting(owner: str) -> None:
            waits.append(owner)
            if alive and len(waits) > 14:  # longer than the lease
                raise TimeoutError

        with contextlib.suppress(TimeoutError), lease.held(path, waiting=waiting, lost=lambda: None):
            assert not alive
    assert len(waits) >= 3
    assert "on elsewhere" in waits[0]
    assert lost.is_set() is not alive


@pytest.mark.parametrize("end", ["finishes", "fails", "saves", "stops"])
def test_a_process_that_wakes_after_a_takeover_writes_nothing(
    copied: Context, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Between two of its steps another process has taken the lease over, and done the stage."""
    stage = the("pruned", "dsp")
    folder = copied.folder(stage)
    (folder / "done.json").unlink()
    before = {path.name for path in folder.iterdir()}

    def suspended(work: Workspace[Any]) -> None:
        text = (folder / ".lease").read_text()
        token = re.search(r"token=(\w+)", text)
        assert token is not None
        (folder / ".lease").write_text(text.replace(token[1], "0" * len(token[1])))
        work.watch.report("fine-tuning", share=0.5)
        if end == "finishes":
            work.finish(("packed.safetensors",))
        elif end == "fails":
            raise RuntimeError("too late")
        elif end == "stops":
            raise Interrupted("stopped")
        else:
            work.save_history([])

    monkeypatch.setattr(sys.modules["suite.run.execute"], "do_pruned", suspended)
    assert execute(stage, copied) == "interrupted"
    assert {path.name for path in folder.iterdir()} - {".lease", "log.txt"} <= before
    assert not (folder / "failed.json").exists()
    assert not (folder / "done.json").exists()


def test_a_plan_that_comes_after_a_takeover_is_not_written(tmp_path: Path) -> None:
    """It could differ from the plan of the process that has the stage now."""
    watch, path = Watch(), tmp_path / "plan0.safetensors"
    watch.holds = lambda: False
    selection = Selection(plan=PruningPlan({}), knob=0.0, cut=0.0, coarse=False)
    with pytest.raises(Superseded):
        pruned_stage._selected(path, lambda: selection, set(), watch)
    assert not path.exists()


def test_two_processes_that_meet_the_same_damage_say_the_same(copied: Context) -> None:
    stage = the("base")
    (copied.folder(stage) / "final.safetensors").write_bytes(b"damaged")
    for _ in range(2):
        with pytest.raises(ValueError, match=f"of {stage.key} is damaged; run the same command again"):
            check_files(stage, copied)


def test_a_process_with_several_stages_reports_on_each_alone(tmp_path: Path) -> None:
    watch = Watch(tmp_path / "one.json")
    watch.report("learning", epoch=9, share=0.9)
    watch.started -= 3600
    watch.begin(tmp_path / "two.json")
    watch.report("learning", epoch=1, share=0.1)
    about = progress.read(tmp_path / "two.json")
    assert about["share_before"] == 0.1
    assert about["seconds"] < 60


@pytest.mark.parametrize("content", [b"", b"half a"])
def test_a_lease_file_without_an_owner_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """A crash may leave such a file between its creation and its first write."""
    monkeypatch.setattr(lease, "LEASE_S", 1.0)
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.2)
    (tmp_path / ".lease").write_bytes(content)
    waits: list[str] = []

    def waiting(owner: str) -> None:
        waits.append(owner)
        assert len(waits) < 20, "never taken over"

    with lease.held(tmp_path / ".lease", waiting=waiting, lost=lambda: None):
        assert lease.owner(tmp_path / ".lease")
