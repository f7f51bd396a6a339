"""One stage by several tasks of a SLURM job step, one GPU each: the same steps as one process with the whole batch takes.

Every task runs the whole stage. Of each batch it sees the images `rank::ranks`; batch norm takes mean and variance over the
whole batch, gradients (a learner's own too) are averaged before anybody uses them, accuracies count all images. So all tasks
hold the same weights, the number of tasks changes results by rounding only, and any checkpoint serves all. Only the first
task writes files, holds the stage's lease and decides whether to begin; a signal to any task stops all after the same step.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from submitit.slurm.slurm import SlurmJobEnvironment
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from suite import files

TIMEOUT = timedelta(hours=1)
"""The other tasks wait for so long while the first plans."""

MEETING = timedelta(minutes=5)
"""All tasks must have come within so long."""
PORTS = range(20_000, 60_000)


class NoMeeting(ValueError):
    """The tasks of a stage did not find each other, which says nothing against the stage."""


@dataclass
class _Group:
    rank: int = 0
    ranks: int = 1


_group = _Group()


def tasks() -> int:
    """How many tasks do this stage together."""
    return _group.ranks


def mine() -> slice:
    """Which images of a batch this task sees."""
    return slice(_group.rank, None, _group.ranks)


def is_first() -> bool:
    """Whether this task writes."""
    return _group.rank == 0


@contextlib.contextmanager
def joined(device: str) -> Iterator[None]:
    """Work together with the other tasks of this job step, if `srun` started several.

    CPU tensors go over gloo, CUDA tensors over NCCL. The tasks meet on the first node, at a port that follows from the job's
    number, unless MASTER_ADDR and MASTER_PORT say otherwise. Where there are several nodes, and its name has no address, that
    is where `srun` was started, which in a batch job is the first node too.

    Raises NoMeeting when there is no address, or when not all come within `MEETING`.
    """
    ranks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if ranks == 1:
        yield
        return
    job = SlurmJobEnvironment()
    if device == "cuda":
        torch.cuda.set_device(job.local_rank % torch.cuda.device_count())
    host, port = _place(job)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    try:
        store = dist.TCPStore(host, port, ranks, is_master=job.global_rank == 0, timeout=MEETING)
        dist.init_process_group(backend, store=store, rank=job.global_rank, world_size=ranks, timeout=TIMEOUT)
    except dist.DistError as error:
        words = str(error).splitlines()[0]
        raise NoMeeting(
            f"the {ranks} tasks did not meet at {host}:{port} ({words}); set MASTER_ADDR or MASTER_PORT"
        ) from error
    _group.rank, _group.ranks = job.global_rank, ranks
    alone, nn.BatchNorm2d.forward = nn.BatchNorm2d.forward, _batch_norm  # type: ignore[assignment, method-assign]
    files.writes = is_first()
    try:
        yield
    finally:
        files.writes = True
        nn.BatchNorm2d.forward = alone  # type: ignore[method-assign]
        _group.rank, _group.ranks = 0, 1
        dist.destroy_process_group()


def _place(job: SlurmJobEnvironment) -> tuple[str, int]:
    """Where the tasks meet: an address that is known here, and a port."""
    hosts = [os.environ.get("MASTER_ADDR", "")]
    if not hosts[0]:
        several = int(os.environ.get("SLURM_STEP_NUM_NODES", 1)) > 1
        hosts = [job.hostnames[0], os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "")] if several else ["127.0.0.1"]
    port = os.environ.get("MASTER_PORT") or str(PORTS[int(os.environ["SLURM_JOB_ID"]) % len(PORTS)])
    for host in filter(None, hosts):
        with contextlib.suppress(OSError):
            socket.getaddrinfo(host, port)
            return host, int(port)
    raise NoMeeting(
        f"the first node, {hosts[0]}, has no address on {socket.gethostname()}, or {port} is no port; set MASTER_ADDR and "
        "MASTER_PORT to where the tasks can meet"
    )


def told(value: int) -> int:
    """The value of the first task."""
    if _group.ranks == 1:
        return value
    said = torch.tensor(value)
    dist.broadcast(said, src=0)
    return int(said)


def anywhere(value: bool) -> bool:
    """Whether any task says so."""
    return bool(summed(torch.tensor(int(value))))


def summed(tensor: Tensor) -> Tensor:
    """The sum over the tasks; the tensor itself when there is one."""
    if _group.ranks > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


@torch.no_grad()
def average(tensors: Iterable[Tensor | None]) -> None:
    """Replace the tensors by their means over the tasks, in one exchange."""
    if _group.ranks == 1:
        return
    there = [tensor for tensor in tensors if tensor is not None]
    flat = torch.cat([tensor.flatten() for tensor in there])
    dist.all_reduce(flat)
    for tensor, mean in zip(there, (flat / _group.ranks).split([t.numel() for t in there]), strict=True):
        tensor.copy_(mean.view_as(tensor))


@torch.no_grad()
def as_first(tensors: Iterable[Tensor]) -> None:
    """Replace the tensors by those of the first task: what each computes alone may differ by rounding."""
    if _group.ranks == 1:
        return
    for tensor in tensors:
        said = tensor.contiguous()
        dist.broadcast(said, src=0)
        tensor.copy_(said)


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """The first task does the block, then the others do: they find the files that it wrote."""
    if _group.ranks > 1 and _group.rank > 0:
        dist.barrier()
    yield
    if _group.ranks > 1 and _group.rank == 0:
        dist.barrier()


def _batch_norm(self: nn.BatchNorm2d, images_BCHW: Tensor) -> Tensor:
    """Batch norm over the images of all tasks, each of which has as many; as torch does it in evaluation."""
    if not self.training:
        return F.batch_norm(
            images_BCHW, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )
    dtype = images_BCHW.dtype
    images_BCHW = images_BCHW.to(
        self.running_mean.dtype if self.running_mean is not None else dtype
    )  # statistics in fp32
    mean_C = all_reduce(images_BCHW.mean((0, 2, 3))) / _group.ranks
    centred_BCHW = images_BCHW - mean_C[:, None, None]
    var_C = all_reduce(centred_BCHW.square().mean((0, 2, 3))) / _group.ranks
    if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
        assert self.momentum is not None, "a cumulative average is in none of the models"
        count = images_BCHW.numel() // len(mean_C) * _group.ranks
        with torch.no_grad():
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_(var_C * (count / (count - 1)), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
    scale_C11 = ((var_C + self.eps).rsqrt() * self.weight)[:, None, None]
    return (centred_BCHW * scale_C11 + self.bias[:, None, None]).to(dtype)
