"""Table columns, each described once; each output is a view of them.

Outputs are CSV, Markdown, LaTeX, page and terminal.

A table is a frame and a sequence of `Column`. A column without a heading is in the CSV file only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pandas as pd

from suite.report import words
from suite.report.fairness import SET
from suite.report.frames import CONDITIONS, EPOCHS, SCHEDULES, TIMED_CONDITIONS, TIMING

Line = Mapping[Any, Any]
Show = Callable[[Line], str]
View = Literal["markdown", "latex", "page", "terminal"]
DOCUMENTS: tuple[View, ...] = ("markdown", "latex", "page")
SCREEN: tuple[View, ...] = ("markdown", "page")
PAPER: tuple[View, ...] = ("markdown", "latex")
EVERYWHERE: tuple[View, ...] = (*DOCUMENTS, "terminal")


@dataclass(frozen=True, kw_only=True)
class Column:
    """Column of a table.

    `name` is its name in the CSV file; `heading` and `show` are for the other views.
    """

    name: str
    heading: str = ""
    show: Show | None = None
    """Text of a line's cell. The default is the value itself, floats with two digits."""
    number: bool = False
    """The page sorts the column by the value of `name`. Tables align the column to the right."""
    left: bool = False
    """Align a number to the left, since words follow it."""
    varying: bool = False
    """Show the column only if its texts differ."""
    optional: bool = False
    """Show the column only if it has a text."""
    views: tuple[View, ...] = DOCUMENTS
    about: str = ""
    """Tooltip on the page."""

    def text(self, line: Line) -> str:
        """Return the cell of `line`; "" for an absent value."""
        if self.show:
            return self.show(line)
        value = line[self.name]
        return words.number(value) if isinstance(value, float) else "" if value is None else str(value)

    @property
    def right(self) -> bool:
        """Alignment of the cells."""
        return self.number and not self.left


class Text(NamedTuple):
    """Columns of one view and their cells; the frame's labels are headings."""

    columns: list[Column]
    frame: pd.DataFrame

    def drop(self, headings: Collection[str]) -> Text:
        """Return the text without these columns."""
        columns = [column for column in self.columns if column.heading not in headings]
        return Text(columns, self.frame[[column.heading for column in columns]])


def plain(*names: str) -> tuple[Column, ...]:
    """Return columns that are in the CSV file only."""
    return tuple(Column(name=name) for name in names)


def names(columns: Iterable[Column]) -> list[str]:
    """Return the names of the columns."""
    return [column.name for column in columns]


def csv(frame: pd.DataFrame, columns: Iterable[Column]) -> str:
    """Return the frame as CSV; absent values are empty."""
    return frame[names(columns)].to_csv(index=False, float_format="%.10g", lineterminator="\n")


def text(frame: pd.DataFrame, columns: Iterable[Column], view: View = "markdown") -> Text:
    """Return the cells of a view.

    `varying` and `optional` columns without content are left out.
    """
    lines = frame.to_dict("records")
    shown, cells = [], {}
    for column in columns:
        if not column.heading or view not in column.views:
            continue
        values = [column.text(line) for line in lines]
        distinct = {value for value in values if value}
        if len(distinct) >= (2 if column.varying else 1 if column.optional else 0):
            shown.append(column)
            cells[column.heading] = values
    return Text(shown, pd.DataFrame(cells, index=frame.index, columns=list(cells), dtype="object"))


def markdown(frame: pd.DataFrame, columns: Iterable[Column]) -> str:
    """Return a Markdown table. Texts are escaped; the brackets of intervals are not."""
    shown, cells = text(frame, columns)
    for column in shown:
        if not column.number:
            cells[column.heading] = cells[column.heading].map(words.markdown)
    return cells.to_markdown(
        index=False, disable_numparse=True, colalign=["right" if column.right else "left" for column in shown]
    )


# ---- a line for each cell and set of conditions --------------------------------------------------------------------------


def mean(name: str, spread: str, n: str = "") -> Show:
    """Return a text such as "94.31 ± 0.20 (5)"."""
    return lambda line: words.mean_sd(line[name], line[spread], line[n] if n else None)


def _budget(line: Line) -> str:
    return words.budget(line["budget"], line["budget_scope"])


def network(line: Line) -> str:
    """Return data set and model: "digits, resnet8"."""
    return f"{line['data']}, {line['model']}"


def interval(name: str, low: str, high: str, n: str = "") -> Show:
    """Return a text such as "1.31 [1.27, 1.36] (5)"."""
    return lambda line: words.interval(line[name], line[low], line[high], line[n] if n else None)


def _counted(line: Line) -> str:
    """Return what n counts: base networks, or fine-tunings of them."""
    return words.counts_of(line["n"], line["base_n"])


def _fairness(line: Line) -> str:
    level = line["fairness_level"]
    return str(line["fairness"]) if pd.isna(level) else f"{level:.0f}"


def _commit(name: str, heading: str, dirty: str) -> tuple[Column, ...]:
    """Return the column of a commit, marked if `dirty`, and that of `dirty` itself."""
    shown = Column(
        name=name,
        heading=heading,
        show=lambda line: words.commit(line[name], line[dirty]),
        varying=True,
        views=PAPER,
    )
    return shown, Column(name=dirty)


BUDGET = Column(name="budget", heading="budget", show=_budget, number=True, views=EVERYWHERE)
SPEEDUP = (
    *plain("speedup_n", "speedup_untrusted"),
    Column(
        name="speedup_x",
        heading="speed-up x",
        show=words.speedup,
        number=True,
        left=True,
        about="measured: dense time / packed time",
    ),
    Column(name="speedup_low_x", heading="speed-up", show=words.short_speedup, number=True, views=("terminal",)),
    *plain("speedup_high_x", "verdict"),
    Column(
        name="theoretical_x",
        heading="theoretical x",
        number=True,
        views=SCREEN,
        about="dense / packed MACs; no speed-up",
    ),
    Column(name="deployed", heading="deployed", views=SCREEN),
    *plain("cpu_speedup_x"),
    Column(
        name="energy_x",
        heading="energy x",
        show=interval("energy_x", "energy_low_x", "energy_high_x"),
        number=True,
        left=True,
        optional=True,
        about="measured: dense joules / packed joules, from the device's counter",
    ),
    *plain("energy_low_x", "energy_high_x", "dense_mj", "packed_mj", "energy_missing"),
    Column(name="flags", heading="doubtful", optional=True),
)
MEDIAN = Column(name="top1_median_pct", heading="median %", number=True, about="after pruning")
"""Shown only if a median was published."""
TABLE = (
    Column(name="data"),
    Column(name="model", heading="network", show=network, views=("page",)),
    Column(name="split", heading="split", varying=True, views=PAPER),
    *plain("weights", "method"),
    Column(name="settings", heading="method", views=EVERYWHERE),
    Column(name="granularity", heading="granularity"),
    Column(name="groups", heading="groups", number=True),
    BUDGET,
    *plain("budget_scope", "runs"),
    Column(name="n", heading="n", number=True, views=("page",), about="runs"),
    Column(name="base_n", heading="n counts", show=_counted, about="base networks, or fine-tunings of fewer ones"),
    *plain("missing", "failed", "diverged"),
    Column(
        name="base_top1_mean_pct",
        heading="base top-1 %",
        show=mean("base_top1_mean_pct", "base_top1_sd_pp"),
        number=True,
        about="before pruning",
    ),
    *plain("base_top1_sd_pp"),
    Column(
        name="top1_mean_pct",
        heading="pruned top-1 %",
        show=mean("top1_mean_pct", "top1_sd_pp", "n"),
        number=True,
        views=EVERYWHERE,
        about="after pruning and fine-tuning (runs)",
    ),
    *plain("top1_sd_pp", "top1_t95_pp"),
    MEDIAN,
    *plain("selection"),
    Column(
        name="drop_mean_pp",
        heading="drop pp",
        show=mean("drop_mean_pp", "drop_sd_pp"),
        number=True,
        views=EVERYWHERE,
        about="base minus pruned, points",
    ),
    *plain("drop_sd_pp"),
    Column(
        name="control_drop_mean_pp",
        heading="drop to control pp",
        show=mean("control_drop_mean_pp", "control_drop_sd_pp"),
        number=True,
        about="dense network after the same epochs, minus pruned, points",
    ),
    *plain("control_drop_sd_pp", "control_n", "control_plain_epochs"),
    Column(name="macs_cut_pct", heading="FLOPs cut %", number=True, about="of the whole network"),
    Column(
        name="prunable_macs_cut_pct",
        heading="convs cut %",
        number=True,
        about="FLOPs of the prunable convolutions: all but the stem and the shortcuts",
    ),
    Column(name="params_cut_pct", heading="params cut %", number=True),
    Column(name="time_cut_pct", heading="time cut %", number=True, optional=True, about="measured while planning"),
    Column(name="predicted_time_cut_pct", heading="predicted %", number=True, optional=True, about="time cut"),
    *plain("macs", "params", "coarse"),
    *SPEEDUP,
    *plain(*TIMING),
    Column(
        name="timed_device",
        heading="device",
        show=lambda line: str(line["timed_device"] or line["device"]),
        views=SCREEN,
        about="of the timing; of the training if the network was not timed",
    ),
    Column(name="threads", heading="threads", varying=True, views=PAPER),
    *plain("leg"),
    *_commit("timed_commit", "timed commit", "timed_dirty"),
    Column(name="reference", heading="dense runtimes", varying=True, views=PAPER),
    Column(name="fairness_level", heading="fairness", show=_fairness, about="shared by the methods at this budget"),
    *plain("fairness"),
    Column(name=EPOCHS[0], heading="epochs", show=words.epochs, about="base network + learning + fine-tuning"),
    *plain(*EPOCHS[1:]),
    Column(
        name="plain_epochs",
        heading="plain epochs",
        show=lambda line: words.number(line["plain_epochs"], 0),
        number=True,
        about="all training in plain-step equivalents: a learning epoch counts as many as its steps cost",
    ),
    Column(
        name="dose",
        heading="dose",
        show=lambda line: words.significant(line["dose"]),
        number=True,
        optional=True,
        about="summed penalty steps over channel norms; below about 1 no channel becomes small",
    ),
    Column(
        name="group_entropy_nats",
        heading="group entropy",
        show=words.entropy,
        number=True,
        left=True,
        optional=True,
        about="of the learned groups, nats; ln G: nothing was learned",
    ),
    Column(
        name="sparse_share",
        heading="sparse kernels %",
        show=lambda line: words.number(100 * line["sparse_share"], 1),
        number=True,
        optional=True,
        about="of the prunable kernels, after learning: norm below 1 % of the layer's mean norm before",
    ),
    *_commit("commit", "commit", "dirty"),
    Column(name="device", heading="trained on", varying=True, views=PAPER),
    Column(name="tf32", heading="TF32", varying=True, views=PAPER),
    Column(name="data_sha256", heading="data", show=lambda line: line["data_sha256"][:8], varying=True, views=PAPER),
    *plain(*SCHEDULES),
    Column(name="note", heading="note", views=EVERYWHERE),
    *plain("rows"),
)
LATENCY = (
    *plain("data", "model", "settings", "budget", "budget_scope", "asked_device", *TIMING, *TIMED_CONDITIONS),
    *SPEEDUP,
    *plain("dense_ms", "packed_ms", "timed_missing", "timed_failed", *CONDITIONS),
)


def by_timing(frame: pd.DataFrame) -> list[Column]:
    """Return the columns of `timings.table`: method, budget, theoretical, then a column for each timing."""
    fixed = [Column(name="settings", heading="method"), BUDGET]
    theoretical = Column(name="theoretical_x", heading="theoretical x", number=True)
    about = {"again", "line", "settings", "budget", "budget_scope", "theoretical_x"}
    timings = [Column(name=str(name), heading=str(name), number=True, left=True) for name in frame if name not in about]
    return [*fixed, theoretical, *timings]


def table(*, median: bool) -> Sequence[Column]:
    """Return the columns of the table, with the median if it has to be shown."""
    return [column for column in TABLE if column is not MEDIAN or median]


def page(*, median: bool) -> list[Column]:
    """Return the columns of the page's table, the most important ones first."""
    accuracy = (
        "method",
        "budget",
        "pruned top-1 %",
        "speed-up x",
        "median %",
        "network",
        "drop pp",
        "drop to control pp",
    )
    first = (*accuracy, "FLOPs cut %", "theoretical x", "n", "n counts", "note", "dose", "group entropy")
    places = {heading: place for place, heading in enumerate(first)}
    return sorted(table(median=median), key=lambda column: places.get(column.heading, len(first)))


# ---- other tables --------------------------------------------------------------------------------------------------------


def _p(line: Line) -> str:
    p = line["p_holm"]
    return "" if pd.isna(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _pairs_n(line: Line) -> str:
    """Return the runs to compare and what they count."""
    return f"{words.counts_of(line['n'], line['bases'])}{', paired' if line['paired'] else ''}"


def _pair_fairness(line: Line) -> str:
    """Return the level of the pair, and the training of both in plain-step equivalents."""
    level = line["fairness_level"]
    return str(line["fairness"]) if pd.isna(level) else f"{level:.0f} ({line['fairness']})"


PAIRS = (
    *(BUDGET if name == "budget" else Column(name=name) for name in SET),
    Column(name="a", heading="highest mean", show=lambda line: line["a"] + line.get("letter", "")),
    Column(name="b", heading="against"),
    Column(name="family", heading="test", show=lambda line: f"{line['family']}, {line['error']}"),
    *plain("error", "n_a", "n_b"),
    Column(name="n", heading="n", show=_pairs_n),
    *plain("bases", "paired", "a_mean_pct", "b_mean_pct"),
    Column(
        name="difference_pp",
        heading="difference pp",
        show=interval("difference_pp", "difference_low_pp", "difference_high_pp"),
        number=True,
    ),
    *plain("difference_low_pp", "difference_high_pp", "p"),
    Column(name="p_holm", heading="p (Holm)", show=_p, number=True),
    Column(name="probability_of_improvement", heading="P(improvement)", number=True),
    Column(
        name="seeds_needed",
        heading="seeds needed",
        show=lambda line: words.number(line["seeds_needed"], 0),
        number=True,
    ),
    Column(name="fairness_level", heading="fairness", show=_pair_fairness),
    *plain("fairness"),
    Column(name="verdict", heading="verdict"),
)
"""One line for each pair of methods of a comparison set (`pairs`)."""


def _published_method(line: Line) -> str:
    groups: str = f", {line['groups']:.0f} groups" if pd.notna(line["groups"]) else ""
    return f"{line['method']}{groups}" + (f", {line['variant']}" if line["variant"] else "")


def _published_cut(line: Line) -> str:
    return words.number(line["flops_cut_pct"]) + (" of convs" if line["scope"] == "prunable" else "")


def _our_run(line: Line) -> str:
    return (line["settings"] if isinstance(line["settings"], str) else "") + line.get("letter", "")


REPRODUCTION = (
    *plain("data", "model"),
    Column(name="method", heading="method", show=_published_method),
    *plain("variant", "groups"),
    Column(name="flops_cut_pct", heading="FLOPs cut %", show=_published_cut, number=True),
    *plain("scope", "selection", "seen"),
    Column(name="source", heading="published by", show=lambda line: f"{line['source']} ({line['seen']})"),
    Column(name="settings", heading="our run", show=_our_run),
    *plain("budget", "our_cut_pct", "our_selection", "n"),
    Column(name=EPOCHS[0], heading="our epochs", show=words.epochs),
    *plain(*EPOCHS[1:], *SCHEDULES),
    Column(name="quantity", heading="compared", show=lambda line: f"{line['statistic']} {line['quantity']}"),
    *plain("statistic"),
    Column(name="published", heading="published", number=True),
    Column(name="ours", heading="ours", show=interval("ours", "ours_low", "ours_high", "n"), number=True),
    *plain("ours_low", "ours_high"),
    Column(name="base_n", heading="n counts", show=_counted),
    Column(name="difference_pp", heading="difference pp", number=True),
    *plain("difference_low_pp", "difference_high_pp"),
    Column(name="verdict", heading="verdict"),
    Column(name="reason", heading="reason"),
    *plain(*CONDITIONS, "rows"),
)
"""One line for each published number and line beside it (`reproduction`)."""
STEPS = (
    Column(name="data", heading="network", show=network),
    *plain("model"),
    Column(name="training", heading="step"),
    Column(name="settings", heading="method"),
    Column(
        name="device",
        heading="measured",
        show=lambda line: f"{line['device']}, batch {line['batch']}, {line['precision']}",
    ),
    *plain("batch", "precision", "layout", "protocol", "threads", "captured", "loader", "mps", "blocks"),
    Column(name="together", heading="runs", number=True),
    Column(name="how", heading="together by", optional=True),
    *plain("base_ms", "together_ms"),
    Column(name="alone_ms", heading="ms alone", number=True),
    Column(name="steps_per_s", heading="steps/s", number=True),
    *plain("images_per_s"),
    Column(
        name="together_x",
        heading="together x",
        show=interval("together_x", "together_low_x", "together_high_x"),
        number=True,
        optional=True,
    ),
    *plain("together_low_x", "together_high_x"),
    Column(
        name="of_base_x",
        heading="of base x",
        show=interval("of_base_x", "of_base_low_x", "of_base_high_x"),
        number=True,
    ),
    *plain("of_base_low_x", "of_base_high_x"),
    Column(name="macs_x", heading="MACs x", number=True),
    *plain("peak_bytes", "key", "pruned_key"),
)

NOT_FASTER = (
    Column(name="data", heading="network", show=network),
    *plain("model"),
    Column(name="settings", heading="method"),
    BUDGET,
    *plain("budget_scope"),
    Column(name="seed", heading="seed"),
    Column(
        name="asked_device",
        heading="measured",
        show=lambda line: f"{line['asked_device']}, batch {line['batch']}, {line['precision']}",
    ),
    *plain(*TIMING, "timed_device", "leg"),
    Column(name="theoretical_x", heading="theoretical x", number=True),
    Column(
        name="speedup_x",
        heading="speed-up x",
        show=interval("speedup_x", "speedup_low_x", "speedup_high_x"),
        number=True,
    ),
    *plain("speedup_low_x", "speedup_high_x"),
    Column(name="realised_share", heading="realised share", number=True),
    Column(name="verdict", heading="verdict"),
    Column(name="deployed", heading="deployed"),
    Column(name="flags", heading="doubtful"),
    *plain("key", "pruned_key"),
)
"""One line for each measurement with fewer MACs and no speed-up (`not_faster`)."""
CLAIMS = tuple(Column(name=name, heading=name) for name in ("claim", "source", "evidence", "n", "verdict"))
"""One line for each claim under test (`claims`)."""
WINNERS = (
    *plain("data", "model"),
    Column(name="method", heading="method"),
    Column(name="trials", heading="trials", show=lambda line: f"{line['complete']} of {line['trials']}"),
    *plain("complete"),
    Column(name="settings", heading="best settings"),
    Column(name="finetune_schedule", heading="fine-tuning"),
    Column(name="top1_mean_pct", heading="top-1 %", show=mean("top1_mean_pct", "top1_sd_pp", "n"), number=True),
    *plain("top1_sd_pp", "n"),
    Column(name="base_n", heading="n counts", show=_counted),
    Column(name="first_top1_mean_pct", heading="recipe's top-1 %", number=True),
    Column(name="gain_pp", heading="gain pp", number=True),
    *plain("commit", "rows"),
)
"""One line for each method of a tuning grid (`winners`)."""
