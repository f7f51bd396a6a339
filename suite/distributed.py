"""Data-parallel training of one stage by the tasks of a SLURM job step.

Every task runs the whole stage and reads the images `rank::ranks` of each batch. Batch norm takes mean and variance over the
whole batch, gradients (a learner's own too) are averaged before use, accuracies count all images. So the steps are those of
one process with the whole batch: all tasks hold equal weights, the number of tasks changes results by rounding only, and a
checkpoint continues on any number of tasks. Rank 0 alone writes files, holds the stage's lease and decides to begin. A signal
to any task stops all tasks after the same step. If a task ends, the next collective fails in all others, and rank 0
names the task.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from submitit.slurm.slurm import SlurmJobEnvironment
from torch import Tensor

TIMEOUT = timedelta(hours=1)
"""Time limit of a collective: the other ranks wait in one while rank 0 plans."""

RENDEZVOUS_TIMEOUT = timedelta(minutes=5)
"""Time limit for all tasks to join the process group."""
PORTS = range(20_000, 60_000)

GRACE_S = 5.0
"""Time for the other tasks to publish the reason of their end, after a collective has failed."""
COLLECTIVE = re.compile("gloo|nccl|by peer|broken pipe", re.IGNORECASE)
"""Words in the error of a collective that lost a task."""


class RendezvousError(ValueError):
    """Raised if the tasks of a stage cannot form a process group.

    The stage itself is not the cause.
    """


@dataclass
class _Group:
    rank: int = 0
    ranks: int = 1
    store: dist.Store | None = None


_group = _Group()


def tasks() -> int:
    """Return the number of tasks that train this stage."""
    return _group.ranks


def share() -> slice:
    """Return the slice of each batch that this task reads."""
    return slice(_group.rank, None, _group.ranks)


def is_first() -> bool:
    """Return True on rank 0, the one task that writes files."""
    return _group.rank == 0


@contextlib.contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the other tasks of this job step. A no-op if `srun` started one task.

    CPU tensors go over gloo, CUDA tensors over NCCL. The rendezvous is on the first node, at a port derived from the job's
    number; MASTER_ADDR and MASTER_PORT override both. If the first of several nodes has no address, the rendezvous is the host
    of `srun`, which in a batch job is the first node too.

    `F.batch_norm`, which the modules of torch and their subclasses call, is replaced for the duration of the block.
    `nn.SyncBatchNorm` cannot do this: it refuses CPU tensors, and a model would have to be converted to another module type,
    which tracing and packing do not accept.

    Raises RendezvousError if there is no address, if a task is missing after `RENDEZVOUS_TIMEOUT`, or if two tasks have one GPU.
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
        store = dist.TCPStore(host, port, ranks, is_master=job.global_rank == 0, timeout=RENDEZVOUS_TIMEOUT)
        if device == "cuda":
            own = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
            store.set(f"gpu/{job.global_rank}", f"{own} of {socket.gethostname()}")
            check_gpus([store.get(f"gpu/{rank}").decode() for rank in range(ranks)])
        dist.init_process_group(backend, store=store, rank=job.global_rank, world_size=ranks, timeout=TIMEOUT)
    except dist.DistError as error:
        reason = str(error).splitlines()[0]
        raise RendezvousError(
            f"the {ranks} tasks did not meet at {host}:{port} ({reason}); set MASTER_ADDR or MASTER_PORT"
        ) from error
    _group.rank, _group.ranks, _group.store = job.global_rank, ranks, store
    store.set(f"task/{_group.rank}", _place_of_task())
    F.batch_norm = _batch_norm
    try:
        yield
    finally:
        F.batch_norm = _batch_norm_of_one_task
        _group.rank, _group.ranks, _group.store = 0, 1, None
        dist.destroy_process_group()


def check_gpus(gpus: Sequence[str]) -> None:
    """Raise RendezvousError if two tasks have one GPU, which NCCL refuses.

    gpus  name of each task's GPU, by rank
    """
    for rank, gpu in enumerate(gpus):
        if (first := gpus.index(gpu)) < rank:
            raise RendezvousError(
                f"tasks {first} and {rank} of {len(gpus)} have one GPU, {gpu}; start as many tasks as GPUs: "
                "ntasks_per_node = gpus_per_node"
            )


def _place(job: SlurmJobEnvironment) -> tuple[str, int]:
    """Return host and port of the rendezvous. Raises RendezvousError if the host has no address."""
    hosts = [os.environ.get("MASTER_ADDR", "")]
    if not hosts[0]:
        several = int(os.environ.get("SLURM_STEP_NUM_NODES", 1)) > 1
        hosts = [job.hostnames[0], os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "")] if several else ["127.0.0.1"]
    port = os.environ.get("MASTER_PORT") or str(PORTS[int(os.environ["SLURM_JOB_ID"]) % len(PORTS)])
    for host in filter(None, hosts):
        with contextlib.suppress(OSError):
            socket.getaddrinfo(host, port)
            return host, int(port)
    raise RendezvousError(
        f"the first node, {hosts[0]}, has no address on {socket.gethostname()}, or {port} is no port; set MASTER_ADDR and "
        "MASTER_PORT to where the tasks can meet"
    )


def _place_of_task() -> str:
    """Return host, process and, if standard error is a file, log of this task."""
    log = Path("/proc/self/fd/2").resolve()
    return f"{socket.gethostname()}, process {os.getpid()}" + (f", log {log}" if log.is_file() else "")


def publish_end(error: Exception) -> None:
    """Publish the reason of this task's end. A no-op without other tasks."""
    if _group.store is None:
        return
    reason = "" if COLLECTIVE.search(str(error)) else f"{type(error).__name__}: {' '.join(str(error).split())}"
    with contextlib.suppress(RuntimeError):  # rank 0, which holds the store, has ended
        _group.store.set(f"ended/{_group.rank}", reason)


def lost_task(error: Exception) -> str:
    """Return the reason of a failed collective in one line; "" for any other error.

    It names the task that ended, its reason and its log.
    """
    if _group.store is None or not COLLECTIVE.search(str(error)):
        return ""
    reasons: dict[int, str] = {}
    deadline = time.monotonic() + GRACE_S
    while len(reasons) < _group.ranks - 1 and time.monotonic() < deadline:
        for rank in set(range(_group.ranks)) - {_group.rank, *reasons}:
            if _group.store.check([f"ended/{rank}"]):
                reasons[rank] = _group.store.get(f"ended/{rank}").decode()
        time.sleep(0.05)
    silent = sorted(set(range(_group.ranks)) - {_group.rank, *reasons})
    causes = [rank for rank, reason in sorted(reasons.items()) if reason] or silent
    if not causes:
        return ""
    rank = causes[0]
    reason = reasons.get(rank) or "killed, or its node failed"
    return f"task {rank} of {_group.ranks} ended ({_group.store.get(f'task/{rank}').decode()}): {reason}"


def broadcast(value: int) -> int:
    """Return rank 0's value on every rank."""
    if _group.ranks == 1:
        return value
    tensor = torch.tensor(value)
    dist.broadcast(tensor, src=0)
    return int(tensor)


def any_task(value: bool) -> bool:
    """Return True if the value is True on any task."""
    return bool(all_sum(torch.tensor(int(value))))


def union(values: set[str]) -> set[str]:
    """Return the values of all tasks."""
    if _group.ranks == 1:
        return values
    gathered: list[set[str]] = [set() for _ in range(_group.ranks)]
    dist.all_gather_object(gathered, values)
    return set().union(*gathered)


def all_sum(tensor: Tensor) -> Tensor:
    """Return the sum over the tasks; the tensor itself if there is one task."""
    if _group.ranks > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


@torch.no_grad()
def average(tensors: Iterable[Tensor | None]) -> None:
    """Replace the tensors by their means over the tasks, in one all-reduce.

    None entries are skipped.
    """
    if _group.ranks == 1:
        return
    present = [tensor for tensor in tensors if tensor is not None]
    if not present:
        return
    flat = torch.cat([tensor.flatten() for tensor in present])
    dist.all_reduce(flat)
    for tensor, mean in zip(present, (flat / _group.ranks).split([t.numel() for t in present]), strict=True):
        tensor.copy_(mean.view_as(tensor))


@torch.no_grad()
def broadcast_in_place(tensors: Iterable[Tensor]) -> None:
    """Replace the tensors by rank 0's, since each task's own may differ by rounding."""
    if _group.ranks == 1:
        return
    for tensor in tensors:
        source = tensor.contiguous()
        dist.broadcast(source, src=0)
        tensor.copy_(source)


@contextlib.contextmanager
def rank_0_first() -> Iterator[None]:
    """Run the block on rank 0, then on the other ranks.

    So the other ranks can read the files that rank 0 wrote.
    """
    if _group.ranks > 1 and _group.rank > 0:
        dist.barrier()
    yield
    if _group.ranks > 1 and _group.rank == 0:
        dist.barrier()


class _SumOverTasks(torch.autograd.Function):
    """The sum of a tensor over all tasks; gradients are summed, too."""

    @staticmethod
    def forward(ctx: object, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return _SumOverTasks.apply(gradient)


_batch_norm_of_one_task = F.batch_norm


@functools.wraps(F.batch_norm)  # a trace finds the layer of a call by the name of the function
def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise over the images of all tasks, which hold equally many.

    As `F.batch_norm` in eval mode, and in a trace, which has no images.
    """
    if not isinstance(input, Tensor) or input.is_meta or not training:
        return _batch_norm_of_one_task(input, running_mean, running_var, weight, bias, training, momentum, eps)
    images = input.to(torch.promote_types(input.dtype, torch.float32))  # statistics in fp32
    reduced = [dim for dim in range(images.ndim) if dim != 1]
    along_channels = [1, -1, *[1] * (images.ndim - 2)]
    mean_C = _SumOverTasks.apply(images.mean(reduced)) / _group.ranks
    centred = images - mean_C.view(along_channels)
    var_C = _SumOverTasks.apply(centred.square().mean(reduced)) / _group.ranks
    if running_mean is not None and running_var is not None:
        count = images.numel() // len(mean_C) * _group.ranks
        with torch.no_grad():
            running_mean.lerp_(mean_C.to(running_mean.dtype), momentum)
            running_var.lerp_((var_C * (count / (count - 1))).to(running_var.dtype), momentum)
    scale_C = (var_C + eps).rsqrt() if weight is None else (var_C + eps).rsqrt() * weight
    result = centred * scale_C.view(along_channels)
    return (result if bias is None else result + bias.view(along_channels)).to(input.dtype)
