"""Columns of the tables below a grid's table: pairs, published numbers, training steps, claims, winners."""

from __future__ import annotations

import pandas as pd

from suite.report import words
from suite.report.columns import BUDGET, Column, Line, counted, interval, mean, network, plain
from suite.report.frames import CONDITIONS, EPOCHS, SCHEDULES, TIMING
from suite.report.statistics.fairness import SET


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
    Column(name="a", heading="higher as tested", show=lambda line: line["a"] + line.get("letter", "")),
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
    Column(name="base_n", heading="n counts", show=counted),
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
    Column(name="time_goes", heading="where time goes", optional=True),
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
    Column(name="base_n", heading="n counts", show=counted),
    Column(name="first_top1_mean_pct", heading="recipe's top-1 %", number=True),
    Column(name="gain_pp", heading="gain pp", number=True),
    *plain("commit", "rows"),
)
"""One line for each method of a tuning grid (`winners`)."""
