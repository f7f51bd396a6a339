"""Claims under test, with evidence so far and verdict.

Sources are the abstract and the released rows of a paper.

The rows are in `suite/report/papers/`: the method whose abstract is among them, and what its authors published of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from suite import grids
from suite.report import columns, frames, words
from suite.report.columns import further_columns
from suite.report.frames import CONDITIONS, TIMED_CONDITIONS, TIMING
from suite.report.statistics import cells, inference, published, reproduction
from suite.report.statistics.pairs import FOR_A_CLAIM

NOT_RUN, OPEN, SUPPORTED, CONTRADICTED = "not run", "open", "supported", "contradicted"
COLUMNS = columns.names(further_columns.CLAIMS)
NOTES = (
    "Without loss, by one-sided tests at 5 % (the ends of a 90 % interval) against a margin of half a point, stated before any "
    'run: "supported" if the upper end of the drop is at most the margin, "contradicted" if the lower end lies above the margin; '
    "epochs that the test set has chosen do not count, nor do coarse runs and cuts below the claimed one. "
    "Acceleration, for each GPU, batch and precision: "
    '"supported" if, at the same budget, the speed-up lies above the speed-up of every method that removes whole channels or '
    'filters, interval against interval; "contradicted" if it lies below all of them. Released rows: '
    f"{words.REPRODUCTION}. A claim takes {FOR_A_CLAIM} base networks, which n counts: with fewer, as with fine-tunings of one "
    'public network, or if lines disagree, the verdict is "open". Methods that are known from an abstract alone are no evidence.'
)
SHORT_PP = 0.05
"""Points by which a cut may lie below the claimed one, for rounding."""
_ABSTRACT = "abstract"
Judged = tuple[str, int, str]
"""Evidence, number of base networks, verdict."""
WHOLE = ("filter", "channel")
"""Granularities that remove channels of the whole layer."""


def table(results: Path, *, smoke: bool = False) -> pd.DataFrame:
    """Return one line for each claim, from the rows of all grids in `results`.

    Smoke rows are no evidence.
    """
    numbers = published.load()
    abstract = numbers[numbers["source"].str.startswith(_ABSTRACT)]
    every_grid = [] if smoke else [frames.load(grid, results, smoke=False) for grid in _grids()]
    lines = [cells.table(each) for each in every_grid]
    claims: list[dict[str, Any]] = []
    for row in abstract.to_dict("records"):
        claims += [_no_loss(row, every_grid, lines), *_acceleration(row, every_grid)]
    released = numbers[numbers["method"].isin(abstract["method"]) & numbers["top1_pct"].notna()]
    claims += [_released(row, every_grid, lines) for row in released.to_dict("records")]
    return pd.DataFrame(claims, columns=COLUMNS)


def claimed_methods() -> list[str]:
    """Return the methods that the claims are about, by the suite's names."""
    numbers = published.load()
    return list(dict.fromkeys(numbers.loc[numbers["source"].str.startswith(_ABSTRACT), "ours"]))


def _grids() -> Iterator[grids.Grid]:
    for name in grids.names():
        try:
            grid = grids.load(name)
            grids.runs_of(grid)
        except ValueError:  # a broken grid has no evidence; whoever reports it is told what is wrong
            continue
        yield grid


# ---- without loss ----------------------------------------------------------------------------------------------------


def _no_loss(row: dict[Any, Any], every_grid: Sequence[frames.Frames], lines: Sequence[pd.DataFrame]) -> dict[str, Any]:
    about = {
        "claim": f"{row['model']} on {row['data']}: {row['flops_cut_pct']:.2f} % of the FLOPs removed without accuracy loss",
        "source": row["source"],
    }
    cut = reproduction.CUT[row["scope"]]
    judged: list[Judged] = []
    seen: set[str] = set()
    for each, of_grid in zip(every_grid, lines, strict=True):
        own = of_grid[of_grid[["data", "model", "method"]].eq([row["data"], row["model"], row["ours"]]).all(axis=1)]
        own = own[(own["n"] > 0) & (own["split"] == "all") & (own["selection"] != reproduction.BEST_ON_TEST)]
        own = own[~own["rows"].isin(seen)].drop_duplicates("line")
        seen |= set(own["rows"])
        away = own[cut] - row["flops_cut_pct"]
        near = own[(away >= -SHORT_PP) & (away <= reproduction.NEAR_PP) & (own["coarse"] == 0)]
        runs = each.runs.set_index("key")
        for line in near.to_dict("records"):
            part = runs.loc[line["rows"].split()]
            drop = (part["base_top1_pct"] - part["pruned_top1_pct"]).tolist()
            interval = inference.t_interval(drop, alpha=2 * inference.ALPHA)
            text = f"{line['settings']}, {line[cut]:.2f} % cut: drop {line['drop_mean_pp']:.2f} points"
            bases = part["base_key"].nunique()
            judged.append(
                (f"{_with(interval, text)} (n = {words.counts_of(len(drop), bases)})", bases, _loss(interval))
            )
    return {**about, **_summed(judged, "no run is done at this cut")}


def _loss(one_sided: inference.Interval) -> str:
    """Return the verdict on a drop from its two one-sided 95 % intervals."""
    low, high = one_sided
    return SUPPORTED if high <= reproduction.MARGIN_PP else CONTRADICTED if low > reproduction.MARGIN_PP else OPEN


# ---- acceleration ----------------------------------------------------------------------------------------------------


def _acceleration(row: dict[Any, Any], every_grid: Sequence[frames.Frames]) -> Iterator[dict[str, Any]]:
    """Yield the claim for each GPU, batch and precision.

    Without a GPU the claim is yielded once, not run, with the measurements on CPUs.
    """
    claim = "Better acceleration on a GPU than channel pruning, at the same share of FLOPs removed"
    source = "abstract of the paper"
    every = pd.concat([_speeds(each, row["ours"]) for each in every_grid] or [pd.DataFrame(columns=_SPEEDS)])
    compared = every.drop_duplicates()
    on_gpu = ~compared["timed_device"].astype(str).str.startswith("cpu")
    if not on_gpu.any():
        evidence = ["nothing timed on a GPU", *([_counted(compared, "CPU")] if len(compared) else [])]
        yield {"claim": claim, "source": source, "evidence": "; ".join(evidence), "n": 0, "verdict": NOT_RUN}
    for (device, batch, precision), part in compared[on_gpu].groupby(["timed_device", "batch", "precision"], sort=True):
        outcomes = part["outcome"].unique().tolist()
        verdict = {"faster": SUPPORTED, "slower": CONTRADICTED}.get(outcomes[0], OPEN) if len(outcomes) == 1 else OPEN
        n = int(part["n"].min())
        yield {
            "claim": f"{claim} ({device}, batch {batch:.0f}, {precision})",
            "source": source,
            "evidence": _counted(part, "GPU"),
            "n": n,
            "verdict": verdict if n >= FOR_A_CLAIM else OPEN,
        }


_SPEEDS = ["timed_device", "outcome", "n", "rows", "rows_other", *TIMING, "leg", "threads"]


def _speeds(of_grid: frames.Frames, method: str) -> pd.DataFrame:
    """Compare the method's speed-up with those of whole-channel methods.

    The outcome is "faster", "slower" or "no difference".
    """
    lines = cells.accuracy_lines(of_grid.runs)
    timed = lines.merge(cells.latency_lines(of_grid, lines), on="line")
    timed = timed[timed["speedup_x"].notna() & (timed["coarse"] == 0)]
    keys = ["data", "model", "split", "budget", "budget_scope", *CONDITIONS, *TIMING, *TIMED_CONDITIONS]
    rivals = timed[timed["granularity"].isin(WHOLE) & (timed["method"] != method) & (timed["evidence"] != "abstract")]
    both = timed[timed["method"] == method].merge(rivals, on=keys, suffixes=("", "_other"))
    outcome = pd.Series("no difference", index=both.index, dtype="object")
    outcome[both["speedup_low_x"] > both["speedup_high_x_other"]] = "faster"
    outcome[both["speedup_high_x"] < both["speedup_low_x_other"]] = "slower"
    counts = ["speedup_n", "speedup_n_other", "base_n", "base_n_other"]
    about = both[[name for name in _SPEEDS if name in both]]
    return about.assign(outcome=outcome, n=both[counts].min(axis=1))[_SPEEDS]


def _counted(part: pd.DataFrame, where: str) -> str:
    counts = ", ".join(f"{number} {outcome}" for outcome, number in part["outcome"].value_counts().items())
    devices = " and ".join(words.different(part["timed_device"]))
    return f"on a {where} ({devices}), {len(part)} comparisons with whole-channel methods at the same budget: {counts}"


# ---- released rows ---------------------------------------------------------------------------------------------------


def _released(
    row: dict[Any, Any], every_grid: Sequence[frames.Frames], lines: Sequence[pd.DataFrame]
) -> dict[str, Any]:
    groups = f", {row['groups']:.0f} groups" if pd.notna(row["groups"]) else ""
    scope = " of the prunable convolutions" if row["scope"] == "prunable" else ""
    about = {
        "claim": f"{row['model']} on {row['data']}{groups}: {row['top1_pct']:.2f} % with {row['flops_cut_pct']:.2f} % of the "
        f"FLOPs{scope} removed" + (f" ({row['runs']}, {row['selection']})" if row["runs"] else ""),
        "source": row["source"],
    }
    one = pd.DataFrame([row])
    beside = [
        reproduction.table(each.runs, of_grid.drop_duplicates("line"), one)
        for each, of_grid in zip(every_grid, lines, strict=True)
    ]
    every = pd.concat(beside) if beside else pd.DataFrame(columns=reproduction.COLUMNS)
    every = every[(every["n"] == 0) | ~every.duplicated("rows")]
    alike = every[(every["n"] > 0) & ~every["verdict"].str.endswith(reproduction.MARKED)]
    judged = [
        (
            _with(
                (line["ours_low"], line["ours_high"]),
                f"{line['settings']}, {line['statistic']} {line['quantity'].removesuffix(' %').removesuffix(' pp')} "
                f"{line['ours']:.2f} {'points' if line['quantity'].endswith('pp') else '%'}",
            )
            + f" (n = {words.counts_of(line['n'], line['base_n'])})"
            + f": {line['reason']}" * (line["verdict"] == reproduction.NOT_JUDGED),
            int(line["base_n"]),
            line["verdict"],
        )
        for line in alike.to_dict("records")
    ]
    reasons = [reason for reason in words.different(every["reason"]) if reason != "no run is done"]
    without = "; ".join(dict.fromkeys(reasons)) or "no run is done"
    if alike.empty and len(marked := every[every["n"] > 0]):
        return {**about, "evidence": without, "n": int(marked["base_n"].max()), "verdict": reproduction.NOT_JUDGED}
    return {**about, **_summed(judged, without)}


# ---- what all share --------------------------------------------------------------------------------------------------


def _with(interval: inference.Interval, text: str) -> str:
    return text if pd.isna(interval[0]) else f"{text} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _summed(judged: Sequence[Judged], without: str) -> dict[str, Any]:
    """Combine evidence, base networks and verdict of all lines.

    Different verdicts give "open".
    """
    if not judged:
        return {"evidence": without, "n": 0, "verdict": NOT_RUN}
    verdicts = {verdict if n >= FOR_A_CLAIM or verdict == reproduction.NOT_JUDGED else OPEN for _, n, verdict in judged}
    evidence = "; ".join(text for text, _, _ in judged)
    return {
        "evidence": evidence,
        "n": min(n for _, n, _ in judged),
        "verdict": verdicts.pop() if len(verdicts) == 1 else OPEN,
    }
