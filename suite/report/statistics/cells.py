"""Statistics of cells.

A cell whose rows differ in a condition becomes several lines; the conditions are columns.

Definitions
    mean, sd      over the n runs of a line; sd is the sample standard deviation (n - 1), absent for n = 1
    base          over the different base networks among them: one public network has no spread
    drop          base minus pruned, paired run by run
    control drop  dense control minus pruned, paired by base network and seed; of several controls that of the same
                  fine-tuning schedule, else of the nearest plain-step equivalents
    speed-up      the median over the runs whose measurement is trusted (`measure.claim`), with the lowest lower and the highest
                  upper end of their own 95 % intervals. The range covers every measured network, not
                  seeds that were not run
    verdict       "faster" or "slower" if every trusted run is, "not trusted" if no run is trusted, else "no difference"
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from suite.measure import claim
from suite.report import words
from suite.report.frames import CONDITIONS, ENERGY, EPOCHS, FACTS, SCHEDULES, TIMED_CONDITIONS, TIMING, Frames
from suite.report.statistics import fairness, inference

STATUSES = ["done", "diverged", "failed", "missing"]
SERIES = [
    "data",
    "model",
    "split",
    "weights",
    "method",
    "settings",
    "short",
    "start",
    "evidence",
    "removes",
    "series",
    "granularity",
    "groups",
    "fields",
    *SCHEDULES,
]
_LINE = ["cell", *CONDITIONS]
UNLEARNED = 0.99
"""Share of ln G from which on a group entropy counts as unlearned."""


def table(frames: Frames) -> pd.DataFrame:
    """Return one line for each cell and set of conditions, in the grid's order.

    The latency is that of the grid's first timing.

    A cell without a finished run has one line with its counts and no numbers.
    """
    lines = accuracy_lines(frames.runs)
    first = latency_lines(frames, lines)
    first = first[first["timing"] == 0].drop(columns="timing")
    both = lines.merge(first, on="line", how="left", validate="one_to_many")
    text = [*TIMED_CONDITIONS, "precision", "layout", "protocol", "verdict", "deployed", "flags", "energy_missing"]
    both[text] = both[text].astype("object").fillna("")
    both["unlearned"] = is_unlearned(both)
    both["note"] = _notes(both)
    both["mark"] = both["other_code"].gt(0).map({True: words.OTHER_CODE, False: ""})
    return both


def latency(frames: Frames) -> pd.DataFrame:
    """Return one line for each cell, set of conditions and timing."""
    lines = accuracy_lines(frames.runs)
    about = ["line", "data", "model", "settings", "budget", "budget_scope", *CONDITIONS]
    both = lines[about].merge(latency_lines(frames, lines), on="line", how="inner")
    labels = [words.timing(line) for line in both.to_dict("records")]
    return both.assign(timing_label=pd.Series(labels, index=both.index, dtype="object"))


# ---- accuracy --------------------------------------------------------------------------------------------------------


def accuracy_lines(runs: pd.DataFrame) -> pd.DataFrame:
    """Return cells with mean, sd and n of their rows; `line` numbers the lines."""
    cells = runs.drop_duplicates("cell")[["cell", "budget", "budget_scope", *SERIES]]
    counts = runs.groupby(["cell", "status"]).size().unstack(fill_value=0).reindex(columns=STATUSES, fill_value=0)
    counts["runs"] = counts.sum(axis=1)
    lines = cells.merge(counts.drop(columns="done").reset_index(), on="cell")
    done = runs[runs["status"] == "done"]
    lines = lines.merge(_statistics(done), on="cell", how="left")
    lines = lines.merge(fairness.of_sets(done), on=fairness.SET, how="left")
    for apart, word in ((lines["start"] == "init", fairness.OWN_START), (lines["coarse"].gt(0), fairness.COARSE)):
        lines.loc[apart, "fairness_level"] = np.nan
        lines.loc[apart, "fairness"] = word
    text = [*CONDITIONS, "rows", "selection", "fairness", "versions"]
    lines[text] = lines[text].fillna("")
    counts_of_runs = ["n", "coarse", "other_code", "base_n"]
    lines[counts_of_runs] = lines[counts_of_runs].fillna(0).astype(int)
    lines["line"] = np.arange(len(lines))
    return lines


def _statistics(done: pd.DataFrame) -> pd.DataFrame:
    drop = done["base_top1_pct"] - done["pruned_top1_pct"]
    coarse = done["coarse"].eq(True)
    result = (
        done.assign(drop_pp=drop, coarse=coarse)
        .merge(_controls(done), on="key", how="left")
        .groupby(_LINE, sort=False)
        .agg(
            n=("key", "size"),
            top1_mean_pct=("pruned_top1_pct", "mean"),
            top1_sd_pp=("pruned_top1_pct", "std"),
            top1_median_pct=("pruned_top1_pct", "median"),
            drop_mean_pp=("drop_pp", "mean"),
            drop_sd_pp=("drop_pp", "std"),
            control_drop_mean_pp=("control_drop_pp", "mean"),
            control_drop_sd_pp=("control_drop_pp", "std"),
            control_n=("control_drop_pp", "count"),
            control_plain_epochs=("control_plain_epochs", "mean"),
            plain_epochs=("plain_epochs", "mean"),
            macs_cut_pct=("macs_cut_pct", "mean"),
            prunable_macs_cut_pct=("prunable_macs_cut_pct", "mean"),
            params_cut_pct=("params_cut_pct", "mean"),
            time_cut_pct=("time_cut_pct", "mean"),
            predicted_time_cut_pct=("predicted_time_cut_pct", "mean"),
            macs=("macs", "mean"),
            params=("params", "mean"),
            coarse=("coarse", "sum"),
            other_code=("other_code", "sum"),
            selection=("selection", "first"),
            **{name: (name, "mean") for name in (*EPOCHS, *FACTS)},
            versions=("files", _versions),
            rows=("key", " ".join),
        )
    )
    base = done.drop_duplicates([*_LINE, "base_weights"]).groupby(_LINE, sort=False)["base_top1_pct"]
    result = result.join(base.agg(base_n="size", base_top1_mean_pct="mean", base_top1_sd_pp="std"))
    result["top1_t95_pp"] = inference.t_half_width(result["top1_sd_pp"], result["n"])
    return result.reset_index()


def _controls(done: pd.DataFrame) -> pd.DataFrame:
    """Return `key`, `control_drop_pp` and `control_plain_epochs` of the runs with a dense control."""
    keys = ["data", "model", "split", "base_weights", "seed", *CONDITIONS]
    about = ["finetune_schedule", "plain_epochs", "pruned_top1_pct"]
    removes = done["removes"].astype(bool)
    beside = done.loc[removes, ["key", *keys, *about]].merge(
        done.loc[~removes, [*keys, *about]], on=keys, suffixes=("", "_of_control")
    )
    beside = beside.assign(
        other=beside["finetune_schedule"] != beside["finetune_schedule_of_control"],
        away=(beside["plain_epochs"] - beside["plain_epochs_of_control"]).abs(),
        control_drop_pp=beside["pruned_top1_pct_of_control"] - beside["pruned_top1_pct"],
    ).rename(columns={"plain_epochs_of_control": "control_plain_epochs"})
    nearest = beside.sort_values(["other", "away"], kind="stable").drop_duplicates("key")
    return nearest[["key", "control_drop_pp", "control_plain_epochs"]]


def _versions(files: pd.Series) -> str:
    """Return a remark such as "2 versions of baselines/mine.py", or "".

    There is no remark if the rows used equal plug-in files.
    """
    hashes: dict[str, set[str]] = {}
    for path, sha256 in itertools.chain.from_iterable(files):
        hashes.setdefault(path, set()).add(sha256)
    return ", ".join(f"{len(every)} versions of {path}" for path, every in hashes.items() if len(every) > 1)


# ---- latency ---------------------------------------------------------------------------------------------------------


def latency_lines(frames: Frames, lines: pd.DataFrame) -> pd.DataFrame:
    """Return speed-ups of each line, timing and set of conditions.

    Latencies of runs without a finished row are left out.
    """
    measured = frames.timings.merge(_line_of_run(frames.runs, lines), on="pruned_key", how="inner")
    keys = ["line", "timing", "asked_device", *TIMING]
    timings = measured[keys].drop_duplicates()
    counts = (
        measured.groupby(["line", "timing", "status"])
        .size()
        .unstack(fill_value=0)
        .reindex(columns=STATUSES, fill_value=0)
        .rename(columns={"failed": "timed_failed", "missing": "timed_missing"})
        .drop(columns=["done", "diverged"])
        .reset_index()
    )
    done = _speedups(measured[measured["status"] == "done"])
    result = timings.merge(counts, on=["line", "timing"]).merge(done, on=["line", "timing"], how="left")
    result[TIMED_CONDITIONS] = result[TIMED_CONDITIONS].fillna("")
    result["verdict"] = result["verdict"].fillna("")
    result["deployed"] = result["deployed"].fillna("")
    result[["flags", "energy_missing"]] = result[["flags", "energy_missing"]].fillna("")
    counted = ["speedup_n", "speedup_untrusted"]
    result[counted] = result[counted].fillna(0).astype(int)
    return result


def _line_of_run(runs: pd.DataFrame, lines: pd.DataFrame) -> pd.DataFrame:
    done = runs.loc[runs["status"] == "done", ["key", *_LINE]].rename(columns={"key": "pruned_key"})
    return done.merge(lines[["line", *_LINE]], on=_LINE)[["pruned_key", "line"]]


def _speedups(done: pd.DataFrame) -> pd.DataFrame:
    keys = ["line", "timing", *TIMED_CONDITIONS]
    trusted = done["claim"] != "not trusted"
    values = ["speedup_x", "speedup_low_x", "speedup_high_x", "dense_ms", "packed_ms", *ENERGY]
    masked = done.assign(**{name: done[name].where(trusted) for name in values}, untrusted=~trusted)
    result = masked.groupby(keys, sort=False).agg(
        speedup_n=("speedup_x", "count"),
        speedup_untrusted=("untrusted", "sum"),
        speedup_x=("speedup_x", "median"),
        speedup_low_x=("speedup_low_x", "min"),
        speedup_high_x=("speedup_high_x", "max"),
        theoretical_x=("theoretical_x", "mean"),
        dense_ms=("dense_ms", "median"),
        packed_ms=("packed_ms", "median"),
        cpu_speedup_x=("cpu_speedup_x", "median"),
        **{name: (name, {"energy_low_x": "min", "energy_high_x": "max"}.get(name, "median")) for name in ENERGY},
        energy_missing=("energy_missing", lambda reasons: "; ".join(dict.fromkeys(filter(None, reasons)))),
        flags=("flags", lambda flags: "; ".join(dict.fromkeys(filter(None, flags)))),
        verdict=("claim", _verdict),
    )
    return result.join(_deployed(done, keys)).reset_index()


def _verdict(claims: pd.Series) -> str:
    """Return the claim of the trusted runs together."""
    trusted = sorted({*claims} - {"not trusted"})
    return "not trusted" if not trusted else trusted[0] if len(trusted) == 1 else "no difference"


def _deployed(done: pd.DataFrame, keys: list[str]) -> pd.Series:
    """Name the deployed execution: "groups", or "groups x2, dense x1" if runs differ."""
    counts = done.groupby([*keys, "deployed"], sort=False).size().rename("count").reset_index("deployed")
    counts["kinds"] = counts.groupby(keys)["deployed"].transform("size")
    text = counts["deployed"] + (" x" + counts["count"].astype(str)).where(counts["kinds"] > 1, "")
    return text.groupby(keys, sort=False).agg(", ".join).rename("deployed")


def problems(frames: Frames) -> pd.DataFrame:
    """Return failures by status and reason.

    `runs` counts the runs or latency measurements; `labels` names them.
    """
    both = pd.concat([frames.runs, frames.timings.assign(status="timing " + frames.timings["status"])])
    wrong = both[both["status"].isin(["failed", "diverged", "timing failed", "timing diverged"])]
    wrong = wrong.assign(reason=wrong["reason"].astype("object").replace("", "no reason given"))
    groups = wrong.groupby(["status", "reason"], sort=False)["label"]
    return groups.agg(runs="size", labels=list).reset_index()


# ---- what a reader must know -----------------------------------------------------------------------------------------


def _notes(lines: pd.DataFrame) -> pd.Series:
    """Give the reasons why numbers are absent or not to be compared."""
    none = lines["n"] == 0
    notes = [
        _when(none & (lines["missing"] == lines["runs"]), "not run"),
        _counted(lines["missing"].where(lines["missing"] < lines["runs"], 0), lines["runs"], "not run"),
        _counted(lines["failed"], lines["runs"], "failed"),
        _counted(lines["diverged"], lines["runs"], "diverged"),
        _counted(lines["coarse"], lines["n"], "coarse"),
        _when(is_unlearned(lines), "no groups learned"),
        _control_epochs(lines),
        _when(
            lines["finetune_epochs"].gt(0) & lines["removes"].astype(bool) & lines["control_n"].eq(0),
            "no dense control",
        ),
        _when(lines["selection"] == "best_validation", "best epoch on validation"),
        _when(lines["selection"] == "best_test", "best epoch on test"),
        _when(lines["dirty"] == "yes", "dirty"),
        lines["versions"],
        _when(~none & lines["asked_device"].isna(), "not timed"),
        _counted(lines["timed_missing"], lines["n"], "not timed"),
        _counted(lines["timed_failed"], lines["n"], "timing failed"),
        _counted(lines["speedup_untrusted"], lines["speedup_untrusted"] + lines["speedup_n"], "not trusted"),
        _when(lines["flags"].map(lambda flags: claim.is_busy([flags])), "timed on a busy machine"),
        _when((lines["timed_dirty"] == "yes") & (lines["dirty"] != "yes"), "timed dirty"),
    ]
    return pd.concat(notes, axis=1).apply(lambda texts: "; ".join(text for text in texts if text), axis=1)


def is_unlearned(lines: pd.DataFrame) -> pd.Series:
    """Return True for lines whose mean group entropy is ln G: no group was learned."""
    return (lines["groups"] > 1) & (lines["group_entropy_nats"] >= UNLEARNED * np.log(lines["groups"].clip(lower=2)))


def _control_epochs(lines: pd.DataFrame) -> pd.Series:
    """Return the control's training if it differs from that of the line, else ""."""
    plain, control = lines["plain_epochs"], lines["control_plain_epochs"]
    differs = (plain - control).abs() > plain.map(fairness.tolerance)
    return ("control: " + control.map(lambda value: words.number(value, 0)) + " plain epochs").where(differs, "")


def _when(condition: pd.Series, text: str) -> pd.Series:
    return pd.Series(np.where(condition, text, ""), index=condition.index)


def _counted(count: pd.Series, total: pd.Series, text: str) -> pd.Series:
    """Return "text (2 of 3)", or "text" if the count is the total."""
    count, total = count.fillna(0).astype(int), total.fillna(0).astype(int)
    some = text + " (" + count.astype(str) + " of " + total.astype(str) + ")"
    return some.where(count < total, text).where(count > 0, "")
