"""Two tasks do what one process does with the whole batch; stopped, they go on with the same bits.

They run on the loopback with gloo.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import tiny_grid
import torch
import torch.distributed as dist
import torch.nn.functional as F
from images import write_images
from safetensors.torch import load_file
from tiny_grid import base, free_port, run_of
from torch import nn
from torch.testing import assert_close

from dsp import DSP
from suite import data, distributed, models, records
from suite.contract import Task
from suite.graph import Graph
from suite.run import Context, execute, failure
from suite.run.execute import DECISIONS
from suite.run.folder import skipped_by
from suite.run.workspace import BASE, Workspace
from suite.schedule import Schedule
from suite.stages import Base, Stage, in_order
from suite.train import seed_everything, top1_pct
from suite.trainer import Trainer

SHORT = Schedule(epochs=2, epoch_images=256, lr=0.05, weight_decay=5e-4, batch=64)
RUN = run_of("dsp", of=base(schedule=SHORT, model="resnet8"), finetune=SHORT, learning=SHORT)
STAGES = in_order([RUN])
LONG = replace(RUN, base=replace(RUN.base, schedule=replace(SHORT, epochs=2000)))
"""Its base network trains until it is stopped."""
HEAD = f"""
import sys
sys.path.insert(0, {str(tiny_grid.FILE.parent)!r})
from suite.grids import Grid
from test_distributed import RUN
GRID = Grid(title="Two tasks", about="", runs=lambda: [RUN], timings=())
"""


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "two.py"
    path.write_text(HEAD)
    return path


def jobs(tasks: int) -> list[dict[str, str]]:
    """Return the environment that srun gives each task."""
    shared = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return [{**shared, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(tasks)]


def start(tasks: int, *arguments: object) -> list[subprocess.Popen[str]]:
    """`python ...` as tasks in the environment that srun gives."""
    ours = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tiny_grid.FILE.parent.parent)}
    return [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", *map(str, arguments)],
            env={**ours, **job},
            cwd=tiny_grid.FILE.parent.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for job in jobs(tasks)
    ]


def srun(tasks: int, *arguments: object) -> list[tuple[int, str]]:
    """Exit status and output of each task of `python ...`."""
    running = start(tasks, *arguments)
    try:
        outputs = [process.communicate(timeout=300)[0] for process in running]
        return [(process.returncode, output) for process, output in zip(running, outputs, strict=True)]
    finally:
        for process in running:
            process.kill()


def stage_options(grid: Path, results: Path, stage: Stage = RUN) -> tuple[object, ...]:
    """`-m suite.run` of the stage."""
    options = ("--grid", grid, "--stage", stage.key, "--results", results, "--device", "cpu", "--threads", 1)
    return "-m", "suite.run", *options


def run_stage(tasks: int, grid: Path, results: Path, *more: object) -> list[tuple[int, str]]:
    """`python -m suite.run` in each task."""
    return srun(tasks, *stage_options(grid, results), *more)


class NormAct(nn.BatchNorm2d):
    """Calls the function itself, as layers of timm do."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        statistics = self.running_mean, self.running_var
        return F.relu(F.batch_norm(input, *statistics, self.weight, self.bias, self.training, 0.1, self.eps))


def of_vectors(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "a subclass": lambda: NormAct(4),
    "of vectors": lambda: of_vectors(nn.BatchNorm1d(4)),
    "not affine": lambda: nn.BatchNorm2d(4, affine=False),
    "cumulative": lambda: nn.BatchNorm2d(4, momentum=None),
    "of the batch": lambda: nn.BatchNorm2d(4, track_running_stats=False),
}


def normalised(norm: nn.Module, device: str) -> dict[str, Any]:
    """Its state after two steps, and the gradients of the images and parameters, summed over the tasks."""
    norm.double().to(device)
    torch.manual_seed(0)
    images = torch.randn(8, 4, 3, 3, dtype=torch.float64) + torch.arange(8)[:, None, None, None]
    images = images.to(device).requires_grad_()
    for _ in range(2):
        norm(images[distributed.share()]).pow(3).sum().backward()
    gradients = [tensor.grad for tensor in (images, *norm.parameters()) if tensor.grad is not None]
    return {"state": norm.state_dict(), "gradients": [distributed.all_sum(gradient) for gradient in gradients]}


def train(path: Path, device: str, job: dict[str, str]) -> None:
    """In a task: two steps of DSP's group learning in double precision, written by each task."""
    os.environ.update(job)
    torch.set_num_threads(1)
    with distributed.process_group(device):
        rank = torch.tensor([distributed.share().start or 0], device=device)
        distributed.broadcast_in_place([rank])
        assert rank == 0
        seed_everything(0)
        dataset, model = data.load("digits"), models.build("resnet8", 10).double().to(device)
        graph = Graph(model, dataset.input_shape)
        task = Task(train_epoch=lambda epoch: iter(()), samples=lambda n: (torch.zeros(0), torch.zeros(0)), seed=0)
        learner = DSP(groups=2, second_order="exact").learner(model, graph, task)
        batches = dataset.train("all", batch=64, seed=0, device=device, limit=128, share=distributed.share())
        trainer = Trainer(model.train(), batches, SHORT, learner=learner)
        for images, labels in batches.epoch(0):
            trainer.advance(images.double(), labels)
        trainer.end_epoch()
        tested = ((images.double(), labels) for images, labels in dataset.test(50, device, distributed.share()))
        found = {"model": model.state_dict(), "logits": learner.state_dict()["logits"], "history": trainer.history}
        found["top1_pct"] = top1_pct(model, tested)
        found["norms"] = {name: normalised(make(), device) for name, make in NORMS.items()}
        of_batch = of_vectors(nn.BatchNorm1d(4, track_running_stats=False))  # a trace calls the replaced function, too
        Graph(nn.Sequential(nn.Conv2d(3, 4, 3), NormAct(4), of_batch, nn.Linear(4, 10)), dataset.input_shape)
        torch.save(found, f"{path}.{distributed.share().start or 0}")


def in_tasks(tasks: int, function: Callable[..., None], *arguments: object) -> None:
    """`function(*arguments, job)` in a process for each task."""
    context = multiprocessing.get_context("forkserver")  # imports once for all tasks
    context.set_forkserver_preload(["suite.run"])
    processes = [context.Process(target=function, args=(*arguments, job)) for job in jobs(tasks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0] * tasks


TWO_GPUS = [
    pytest.mark.cuda,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs a GPU for each of two tasks"),
]


@pytest.mark.parametrize(
    ("tasks", "device"),
    [
        (2, "cpu"),
        pytest.param(4, "cpu", marks=pytest.mark.slow),
        pytest.param(2, "cuda", marks=TWO_GPUS),
    ],
)
def test_tasks_take_the_steps_of_the_whole_batch(tasks: int, device: str, tmp_path: Path) -> None:
    """Weights, BN statistics, losses and accuracies to rounding; the groups are those of each task."""
    train(tmp_path / "alone", device, {})
    in_tasks(tasks, train, tmp_path / "together", device)
    alone, *ranks = (
        torch.load(path, weights_only=True, map_location="cpu")
        for path in (tmp_path / "alone.0", *(tmp_path / f"together.{rank}" for rank in range(tasks)))
    )
    assert_close(ranks[0]["model"], alone["model"], rtol=0, atol=1e-9)
    assert_close(ranks[0]["logits"], alone["logits"], rtol=0, atol=1e-9)
    assert_close(ranks[0]["norms"], alone["norms"], rtol=0, atol=1e-9)
    for rank in ranks:
        assert_close([rank["norms"], rank["model"]], [ranks[0]["norms"], ranks[0]["model"]], rtol=0, atol=0)
        assert_close(rank["logits"], ranks[0]["logits"], rtol=0, atol=0)
        assert all(
            torch.equal(rank["logits"][name].argmax(0), alone["logits"][name].argmax(0)) for name in alone["logits"]
        )
    assert any(logits.abs().max() > 1e-3 for logits in alone["logits"].values()), "nothing was learned"
    assert ranks[0]["history"] == [pytest.approx(entry) for entry in alone["history"]]
    assert ranks[0]["top1_pct"] == alone["top1_pct"]


FEW = Schedule(epochs=1, lr=0.01, weight_decay=0.0, batch=4)
OF_FILES = run_of("l1_filter", of=Base(data="tinyimagenet20", model="resnet8", schedule=FEW, seed=0), finetune=FEW)
SKIP = {"SUITE_BAD_IMAGES": "skip", "SUITE_WORKERS": "0"}


def run_of_files(context: Context, job: dict[str, str]) -> None:
    """In a task: the run of image files, of which the unreadable ones are skipped."""
    os.environ.update(job | SKIP)
    with distributed.process_group("cpu"):
        assert execute(OF_FILES, context) == "done"


def test_a_row_counts_the_images_that_any_task_or_earlier_stage_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base stage skips a training image in another process, and rank 1 of two tasks skips a test image."""
    write_images(tmp_path / "tinyimagenet20" / "train", {"a": 4, "b": 4})
    write_images(tmp_path / "tinyimagenet20" / "val", {"a": 2, "b": 2})
    for name, value in SKIP.items():
        monkeypatch.setenv(name, value)
    context = Context(results=tmp_path / "results", data=tmp_path, threads=1)
    trained, tested = (tmp_path / "tinyimagenet20" / name for name in ("train/b/2.png", "val/a/1.png"))
    content = trained.read_bytes()
    trained.write_bytes(b"")
    assert execute(OF_FILES.base, context) == "done", failure(OF_FILES.base, context)
    assert skipped_by(OF_FILES.base, context) == ["train/b/2.png"]
    trained.write_bytes(content)
    tested.write_bytes(b"")
    in_tasks(2, run_of_files, context)
    row = records.read(records.rows_folder(context.results) / f"{OF_FILES.key}.json")
    assert row is not None
    assert (row.provenance["tasks"], row.provenance["skipped_images"]) == (2, 2)
    assert skipped_by(OF_FILES, context) == ["train/b/2.png", "val/a/1.png"]


def file(stage: Stage, results: Path, name: str) -> Path:
    return Context(results=results).folder(stage) / name


def outputs(results: Path) -> dict[str, Any]:
    """The weights of all stages and what the learner found."""
    found: dict[str, Any] = {}
    for stage in STAGES:
        for name in ("final.safetensors", "packed.safetensors"):
            if file(stage, results, name).exists():
                found[f"{stage.kind}/{name}"] = load_file(file(stage, results, name))
    state = torch.load(file(STAGES[1], results, "state.pt"), weights_only=True)
    return {**found, "logits": state["logits"]}


@pytest.mark.slow
def test_stopped_tasks_go_on_with_the_same_bits(grid: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    done = run_stage(2, grid, whole)
    assert [status for status, _ in done] == [0, 0], done
    assert done[1][1] == "", "the first task speaks for all"
    assert [path.name for path in whole.glob("rows/*")] == [f"{RUN.key}.json"]
    row = records.read(records.rows_folder(whole) / f"{RUN.key}.json")
    assert isinstance(row, records.PrunedRow)
    assert (row.status, row.provenance["tasks"]) == ("done", 2)

    starts = [run_stage(2, grid, stopped, "--max-minutes", minutes) for minutes in (0, 0.02, 60)]
    assert [[status for status, _ in tasks] for tasks in starts] == [[75, 75], [75, 75], [0, 0]], starts
    assert_close(outputs(stopped), outputs(whole), rtol=0, atol=0)
    again = records.read(records.rows_folder(stopped) / f"{RUN.key}.json")
    assert [getattr(again, name) for name in row.result_fields] == [getattr(row, name) for name in row.result_fields]


def test_an_average_of_nothing_asks_no_other_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_group", distributed._Group(rank=1, ranks=3))
    distributed.average([])
    distributed.average([None])


def test_a_batch_that_cannot_be_shared_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(distributed, "_group", distributed._Group(rank=1, ranks=3))
    work = Workspace(STAGES[0], Context(results=tmp_path))
    with pytest.raises(ValueError, match="a batch of 64 images cannot be shared evenly by 3 tasks; take a number that"):
        work.batches(SHORT, BASE)


def test_a_rank_that_refuses_its_stage_logs_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(distributed, "_group", distributed._Group(rank=1, ranks=3))
    monkeypatch.setattr(distributed, "broadcast", lambda value: DECISIONS.index("begin"))
    monkeypatch.setattr(dist, "barrier", lambda: None)
    assert execute(STAGES[0], Context(results=tmp_path, threads=1)) == "failed"
    [record] = caplog.records
    assert record.exc_info is None
    assert "task stopped: a batch of 64 images cannot be shared evenly by 3 tasks" in record.getMessage()


@pytest.mark.slow
def test_a_killed_task_stops_the_others(grid: Path, tmp_path: Path) -> None:
    """The reason names the task."""
    grid.write_text(grid.read_text().replace("RUN", "LONG"))
    running = start(2, *stage_options(grid, tmp_path / "two", LONG.base))
    try:
        tiny_grid.wait_for(lambda: [*(tmp_path / "two").glob("work/*/train*.pt")])
        running[1].kill()
        output = running[0].communicate(timeout=60)[0]
    finally:
        for process in running:
            process.kill()
    assert running[0].returncode == 1, output
    assert f"task 1 of 2 ended ({socket.gethostname()}, process {running[1].pid}" in output


@pytest.mark.slow
def test_one_task_goes_on_where_two_stopped(grid: Path, tmp_path: Path) -> None:
    """It gets the remaining batches, and its weights are those of one process, up to rounding."""
    stage = STAGES[0]
    for step in (1, 2):
        stopped = srun(2, *stage_options(grid, tmp_path / "two", stage), "--max-minutes", 0)
        assert [status for status, _ in stopped] == [75, 75], stopped
        assert torch.load(file(stage, tmp_path / "two", "train.pt"), weights_only=True)["step"] == step
    vectors = []
    for name in ("two", "alone"):
        context = Context(results=tmp_path / name, threads=1)
        assert execute(stage, context) == "done", failure(stage, context)
        for part in ("init", "final"):
            state = load_file(file(stage, context.results, f"{part}.safetensors"))
            vectors.append(torch.cat([tensor.double().flatten() for _, tensor in sorted(state.items())]))
    init, two, same_init, alone = vectors
    assert torch.equal(init, same_init)
    assert (two - alone).norm() < 0.05 * (alone - init).norm(), "rounding grows with the steps, to 0.03 here"


def in_group(monkeypatch: pytest.MonkeyPatch, ranks: int) -> dist.Store:
    """Make this process rank 0 of a group with a store, without other processes."""
    store = dist.HashStore()
    for rank in range(ranks):
        store.set(f"task/{rank}", f"node{rank}, process {rank}, log /logs/{rank}")
    monkeypatch.setattr(distributed, "_group", distributed._Group(rank=0, ranks=ranks, store=store))
    monkeypatch.setattr(distributed, "GRACE_S", 0.05)
    return store


def test_a_failed_collective_names_the_task_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    store = in_group(monkeypatch, 3)
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4321")
    monkeypatch.setattr(distributed._group, "rank", 2)
    distributed.publish_end(lost)
    monkeypatch.setattr(distributed._group, "rank", 0)
    silent = "task 1 of 3 ended (node1, process 1, log /logs/1): killed, or its node failed"
    assert distributed.lost_task(lost) == silent
    store.set("ended/1", "MemoryError: no room")
    assert distributed.lost_task(lost) == "task 1 of 3 ended (node1, process 1, log /logs/1): MemoryError: no room"
    assert distributed.lost_task(ValueError("accumulate = 3 does not divide")) == ""


def test_a_task_that_is_missing_is_counted_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The world of this task has two tasks; the other is not started."""
    monkeypatch.setattr(distributed, "RENDEZVOUS_TIMEOUT", timedelta(seconds=0.5))
    job = {"JOB_ID": "1", "STEP_NUM_TASKS": "2", "PROCID": "0", "LOCALID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    with (
        pytest.raises(
            distributed.RendezvousError, match=r"the 2 tasks did not meet at .* 1/2 .*; set MASTER_ADDR"
        ) as error,
        distributed.process_group("cpu"),
    ):
        raise AssertionError("no group of one task")
    assert "\n" not in str(error.value)


def test_two_tasks_of_one_gpu_are_named() -> None:
    distributed.check_gpus(["GPU-a of node0", "GPU-b of node0", "GPU-a of node1"])
    with pytest.raises(distributed.RendezvousError, match="tasks 0 and 2 of 3 have one GPU, GPU-a of node0; start"):
        distributed.check_gpus(["GPU-a of node0", "GPU-b of node0", "GPU-a of node0"])


def meet_on_the_first_gpu(job: dict[str, str]) -> None:
    """In a task: join a group whose tasks all have the first GPU.

    Rank 0's error names them; the others may lose rank 0 first.
    """
    os.environ.update(job | {"SLURM_LOCALID": "0"})
    words = "tasks 0 and 1 of 2 have one GPU" if job["SLURM_PROCID"] == "0" else "tasks"
    with pytest.raises(distributed.RendezvousError, match=words), distributed.process_group("cuda"):
        raise AssertionError("two tasks met on one GPU")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_two_tasks_that_start_on_one_gpu_are_refused() -> None:
    in_tasks(2, meet_on_the_first_gpu)


@pytest.mark.parametrize("tasks", [2, 3, 7])
def test_shares_of_an_evaluation_count_each_image_once(tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = data.load("digits")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(10))
    whole = top1_pct(model, dataset.test(50, "cpu"))
    total = torch.zeros(3, dtype=torch.int64)
    monkeypatch.setattr(distributed, "all_sum", total.add_)  # a sum over the tasks so far, which the last one completes
    accuracies = [top1_pct(model, dataset.test(50, "cpu", slice(rank, None, tasks))) for rank in range(tasks)]
    assert total[1] == dataset.test_size
    assert accuracies[-1] == whole
