"""Row types: the columns of each kind of row.

A column is None or empty in rows of versions that did not record it, and if its value could not be read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypedDict

from suite.jsonfile import Hex, Name

Status = Literal["done", "diverged", "failed"]
Leg = Literal["eager", "graph"]
How = Literal["graph", "turns", "processes"]


class Provenance(TypedDict, total=False):
    """Names of a row's provenance that reports read; a row has others, too."""

    commit: str | None
    dirty: bool | None
    device: str | None
    emulated: list[str]
    tf32: bool | None
    data_sha256: str | None
    base_sha256: str | None
    code: str
    finished: str
    files: dict[str, str]
    learned_device: str
    learned: dict[str, float | str | bool | None]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Columns of every row.

    If the status is not "done", `reason` gives the reason and all result fields are None.
    """

    kind: ClassVar[str]
    key: str
    label: str
    status: Status
    reason: str = ""
    stage: dict[str, Any]
    """Full identity of the stage."""
    data: str
    model: str
    method: str
    settings: str
    """Method with its settings other than the defaults; equal in runs that differ in seed only."""
    granularity: str
    groups: int
    budget: float
    budget_scope: str
    seed: int
    split: str
    smoke: bool
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PrunedRow(Row):
    """A pruned, fine-tuned network.

    Accuracies are of the last epoch, on the test set, which is read once.
    """

    kind: ClassVar[str] = "pruned"
    result_fields: ClassVar[tuple[str, ...]] = (
        "base_top1_pct",
        "pruned_top1_pct",
        "macs",
        "params",
        "macs_cut_pct",
        "prunable_macs_cut_pct",
        "plan_sha256",
        "weights_sha256",
    )
    """Columns that must be equal in two rows of one run."""

    base_top1_pct: float | None = None
    pruned_top1_pct: float | None = None
    drop_pp: float | None = None
    """Base minus pruned accuracy; positive is worse."""
    dense_macs: int | None = None
    macs: int | None = None
    executed_macs: int | None = None
    """MACs of the execution used in training: more than `macs` if groups are merged."""
    macs_cut_pct: float | None = None
    prunable_macs_cut_pct: float | None = None
    dense_params: int | None = None
    params: int | None = None
    params_cut_pct: float | None = None
    coarse: bool | None = None
    """True if the run is compared with none: its cut exceeds a budget of MACs, or misses a budget of time, by too much."""
    predicted_time_cut_pct: float | None = None
    """Share of the dense network's time that the table of layer times predicts to be removed, for a latency budget."""
    time_cut_pct: float | None = None
    """Measured share of the dense network's time that is removed, for a latency budget, measured while planning."""
    time_corrections: int | None = None
    """Plans that were measured and replaced until `time_cut_pct` was close to the budget."""
    selection: str = "last"
    """Kept epoch: "last", "best_validation" or "best_test". "best_test" is comparable with published rows of that kind only."""
    unsupported_ops: tuple[str, ...] = ()
    """Operators not counted by fvcore; none of them is a convolution or a linear layer."""
    base_epochs: int | None = None
    learning_epochs: int | None = None
    finetune_epochs: int | None = None
    seconds: float | None = None
    """Time of fine-tuning and measuring in this stage; not a result."""
    plan_sha256: str | None = None
    weights_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class MeasuredRow(Row):
    """Measured times of the networks of one run; no two measurements are equal."""

    result_fields: ClassVar[tuple[str, ...]] = ()

    pruned_key: str
    device: str
    batch: int
    precision: str
    layout: str
    protocol: str


@dataclass(frozen=True, kw_only=True)
class TimedRow(MeasuredRow):
    """Latency of a packed network beside its dense one.

    The two alternate in one process ("quick") or in three ("full").
    """

    kind: ClassVar[str] = "timed"

    leg: Leg | None = None
    """"eager" or, on a GPU, "graph": one captured CUDA graph."""
    execution: str | None = None
    """Measured packed execution: the fastest of `executions_ms`, or "tuned" if each layer has its own ("full")."""
    layers: dict[str, Any] = field(default_factory=dict)
    """Memory layout and number of layers per execution, of "dense" and "packed", if layers were tuned."""
    runtime_layers: dict[str, Any] = field(default_factory=dict)
    """Runtime -> network -> number of layers per execution, in other runtimes than torch. {} in earlier rows."""
    executions_ms: dict[str, float] = field(default_factory=dict)
    dense_execution: str | None = None
    dense_executions_ms: dict[str, float] = field(default_factory=dict)
    """Measured dense execution, and the times of all that were tried."""
    runtimes: dict[str, str] = field(default_factory=dict)
    """Runtimes of "dense" and "packed" in the measurement."""
    reference: tuple[str, ...] = ()
    """Runtimes that both networks tried; the dense network in the fastest is the reference. () in earlier rows."""
    reference_missing: dict[str, str] = field(default_factory=dict)
    """Runtime that was not tried -> reason."""
    blocks: int | None = None
    attempts: int | None = None
    """Measurements until the null test passed; the test fails by chance in about one of twenty."""
    dense_ms: float | None = None
    dense_ms_q1: float | None = None
    dense_ms_q3: float | None = None
    dense_ms_p5: float | None = None
    dense_ms_p95: float | None = None
    packed_ms: float | None = None
    packed_ms_q1: float | None = None
    packed_ms_q3: float | None = None
    packed_ms_p5: float | None = None
    packed_ms_p95: float | None = None
    speedup_x: float | None = None
    """Median over blocks of dense time / packed time; with several processes, the median over processes."""
    speedup_low_x: float | None = None
    speedup_high_x: float | None = None
    """Bootstrap 95 % interval of `speedup_x`; with several processes, from the lowest to the highest end."""
    eager_speedup_x: float | None = None
    eager_speedup_low_x: float | None = None
    eager_speedup_high_x: float | None = None
    """Speed-up and interval of the eager leg, launch cost included."""
    theoretical_x: float | None = None
    """Dense MACs / packed MACs. Not a speed-up."""
    null_x: float | None = None
    null_low_x: float | None = None
    null_high_x: float | None = None
    """Dense against dense, measured alike. The measurement is not trusted if this interval misses 1. With several
    processes, the interval of the process with the worst failure."""
    cpu_speedup_x: float | None = None
    cpu_speedup_low_x: float | None = None
    cpu_speedup_high_x: float | None = None
    """Dense / packed in CPU time of the measuring process, a second clock; None on a GPU."""
    dense_cpu_ms: float | None = None
    packed_cpu_ms: float | None = None
    energy: dict[str, Any] = field(default_factory=dict)
    """Millijoules an image and their ratio (`suite.measure.energy`), or why they are missing. {} in earlier rows."""
    int8: dict[str, Any] = field(default_factory=dict)
    """Both networks in int8 by ONNX Runtime, by the full protocol: milliseconds, ratio, null test, verdict of its own and the
    logits' error (`suite.measure.int8`), or why they are missing. {}: not asked for."""
    losses: dict[str, Any] = field(default_factory=dict)
    """Time that each layer takes beyond its share of MACs, with the cause (`suite.measure.losses`), or why it is missing. {}: not
    asked for, or an earlier row."""
    verdict: str | None = None
    """"faster", "slower", "no difference" or "not trusted", as written at the time; reports decide again from the
    intervals and the flags (`measure.claim`)."""
    deployed: str | None = None
    """Network to deploy: the packed execution, or "dense" if packing is slower."""
    processes: tuple[dict[str, Any], ...] = ()
    """Ratio and null test with intervals, and the machine's conditions (`measure.machine`), per process and leg."""
    flags: tuple[str, ...] = ()
    """Reasons to doubt the measurement: other processes, a throttled GPU. Empty if there are none."""
    cudnn_benchmark: bool | None = None
    dense_peak_bytes: int | None = None
    packed_peak_bytes: int | None = None
    """Weights plus the peak allocation of a forward pass ("full" protocol)."""
    bound_ms: float | None = None
    """Least possible time of the packed network on this machine (`measure.bounds`, "full" protocol)."""
    dense_bound_ms: float | None = None
    """Least possible time of the dense network: `dense_bound_ms` / `bound_ms` is the speed-up bound of the machine."""
    of_bound: float | None = None
    """`bound_ms` / `packed_ms`: reached share of the physical limit."""


@dataclass(frozen=True, kw_only=True)
class StepsRow(MeasuredRow):
    """Training steps of one run alone, and of several equal runs together on one device.

    Times are wall-clock medians of alternating blocks, loading included if `loader` is True.
    """

    kind: ClassVar[str] = "steps"

    training: str
    """"base", "learning" or "finetune": a step on the dense network, with the method's learner, or on the packed network."""
    together: int
    how: How | None = None
    """"graph": branches of one CUDA graph; "turns": one after the other in one process; "processes"; None if one run is
    alone."""
    captured: bool | None = None
    """True if the step alone is a captured CUDA graph."""
    mps: bool | None = None
    """True if NVIDIA's Multi-Process Service served the processes."""
    loader: bool | None = None
    """True if each step loads its batch; False if one random batch is repeated."""
    threads: int | None = None
    blocks: int | None = None
    base_ms: float | None = None
    """A step of one run on the dense network, alone."""
    alone_ms: float | None = None
    """A step of one run, alone."""
    together_ms: float | None = None
    """A step of each of the runs, together."""
    steps_per_s: float | None = None
    """Steps per second of all runs together."""
    images_per_s: float | None = None
    together_x: float | None = None
    together_low_x: float | None = None
    together_high_x: float | None = None
    """Throughput of all runs together / of one run alone, with its bootstrap 95 % interval."""
    of_base_x: float | None = None
    of_base_low_x: float | None = None
    of_base_high_x: float | None = None
    """Time of a step alone / of a step on the dense network."""
    macs_x: float | None = None
    """MACs of the network / MACs of the dense network: the promised `of_base_x` of fine-tuning."""
    peak_bytes: int | None = None
    """Peak memory of this process on a GPU."""


class File(TypedDict):
    """Size and checksum of a file in a stage's folder."""

    bytes: int
    sha256: Hex


class Done(TypedDict):
    """Content of `done.json`; further names are the stage's."""

    label: str
    files: dict[Name, File]
    result: dict[str, Any]
    row: dict[str, Any] | None


ROW_TYPES: dict[str, type[Row]] = {row_type.kind: row_type for row_type in (PrunedRow, TimedRow, StepsRow)}
