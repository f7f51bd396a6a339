"""How numbers and conditions are written: in tables, in captions, on the terminal."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

FLOPS = (
    "FLOPs are multiply-accumulates (MACs) of convolutions and linear layers for one image; the share cut is of the whole "
    "network, and that of the prunable convolutions (all but the stem and the shortcuts) stands beside it"
)
SPEEDUP = (
    "speed-up is dense time / packed time: the median over the runs [lowest lower end, highest upper end of the runs' own "
    "95 % intervals] (number of runs). The range covers every network that was measured, not seeds that were not run. A claim "
    "needs an interval apart from the null interval (dense against dense) and an effect larger than the width of the null "
    'interval, else there is "no difference". Runs are left out if the null test failed, if other processes used the device, '
    'or if CPU time shows the opposite; a cell of such runs only is "not trusted"'
)
REPRODUCTION = (
    "a drop is compared if the source states its base accuracy, else the accuracy. Our median stands beside a published median. "
    '"reproduced": the 95 % interval of ours minus published lies within half a point of 0. "below" or "above": all of the '
    'interval lies further away, on that side. "open": neither. A published median has the error of a median of as many runs; '
    'a number whose source states no runs counts as exact. "not run": no line of ours lies within one point of the cut with the '
    "same selection of epochs. A positive difference is in our favour"
)

_MARKDOWN = re.compile(r"([\\`*{}\[\]<>|$~#])")
_LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "$&#_%{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': "''",
        "'": r"\textquotesingle{}",
        "`": r"\textasciigrave{}",
        "±": r"$\pm$",
        "—": "---",
    }
)
_EDGE_UNDERSCORE = re.compile(r"(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")


def markdown(text: str) -> str:
    """`text` so that Markdown shows it as it is, in a table too. An underscore inside a word needs no escape."""
    escaped = _MARKDOWN.sub(r"\\\1", " ".join(text.replace("&", "&amp;").split()))
    return _EDGE_UNDERSCORE.sub(r"\\_", escaped)


def latex(text: str) -> str:
    """`text` so that LaTeX prints it as it is. A sign that pdfTeX's fonts lack is named by its code point."""
    escaped = " ".join(text.split()).translate(_LATEX)
    return "".join(sign if ord(sign) < 0x100 and sign.isprintable() else f"[U+{ord(sign):04X}]" for sign in escaped)


def file_name(*parts: str) -> str:
    """The parts joined by underscores, with letters, digits and `+-.` only."""
    return "_".join(re.sub(r"[^0-9A-Za-z.+-]+", "_", part) for part in parts)


def number(value: float, digits: int = 2) -> str:
    """Fixed digits; "" for what is absent."""
    return "" if pd.isna(value) else f"{value:.{digits}f}"


def mean_sd(mean: float, sd: float, n: int | None = None) -> str:
    """ "94.31 ± 0.20 (5)"; no spread where there is none, "" without a mean."""
    if pd.isna(mean):
        return ""
    spread = "" if pd.isna(sd) else f" ± {sd:.2f}"
    return f"{mean:.2f}{spread}" + ("" if n is None else f" ({n})")


def budget(share: float, scope: str) -> str:
    """ "60.17 %", with the scope where it is not the whole network."""
    return f"{100 * share:.4g} %" + ("" if scope == "network" else f" of {scope}")


def levels(names: Sequence[str]) -> str:
    """ "0 worst; 1 better; ..." """
    return "; ".join(f"{number} {name}" for number, name in enumerate(names))


def epochs(line: Mapping[Hashable, Any] | pd.Series) -> str:
    """ "164 + 120 + 400": spent on the base network, on learning and on fine-tuning; "" without a run."""
    if not line["n"]:
        return ""
    spent = (line["base_epochs"], line["learning_epochs"], line["finetune_epochs"])
    return " + ".join("public" if pd.isna(value) else f"{value:.0f}" for value in spent)


def speedup(line: Mapping[Hashable, Any] | pd.Series) -> str:
    """ "1.31 [1.27, 1.36] (2)", with "no difference" where that is so; "" where nothing was measured."""
    if not line["verdict"] or line["verdict"] == "not trusted":
        return str(line["verdict"])
    low, high = line["speedup_low_x"], line["speedup_high_x"]
    ends = {"faster": low, "slower": high}.get(line["verdict"], 0)
    digits = next(digits for digits in range(2, 10) if round(ends, digits) != 1)  # never an end at 1 that is not there
    text = f"{line['speedup_x']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}] ({line['speedup_n']:.0f})"
    return f"{text}, no difference" if line["verdict"] == "no difference" else text


def commit(name: str, dirty: str) -> str:
    """The short commit, marked when the checkout held changes that are not in it."""
    short = name[:8] if re.fullmatch(r"[0-9a-f]{40}", name) else name
    return short + ("+dirty" if dirty == "yes" else "")


def commits(lines: pd.DataFrame, prefix: str = "") -> pd.Series:
    """`commit` of every line; "" where there is none."""
    pairs = zip(lines[f"{prefix}commit"], lines[f"{prefix}dirty"], strict=True)
    return pd.Series([commit(name, dirty) for name, dirty in pairs], index=lines.index, dtype="object")


def different(values: pd.Series) -> list[str]:
    """The different values that are there, in order."""
    return [str(value) for value in values.dropna().unique() if value != ""]


def counts(lines: pd.DataFrame) -> str:
    """ "60 runs: 57 done, 2 failed, 1 not run." """
    cells = lines.drop_duplicates("cell")
    kinds = {name: int(cells[name].sum()) for name in ("runs", "diverged", "failed", "missing")}
    done = kinds["runs"] - kinds["diverged"] - kinds["failed"] - kinds["missing"]
    parts = [f"{done} done", *(f"{kinds[name]} {name}" for name in ("diverged", "failed") if kinds[name])]
    return f"{kinds['runs']} runs: {', '.join(parts)}" + (f", {kinds['missing']} not run." if kinds["missing"] else ".")


def told_apart(lines: pd.DataFrame, conditions: Sequence[str]) -> tuple[pd.Series, list[str]]:
    """For every line a letter for its conditions, as " [A]", and what each letter means; nothing when all are alike.

    A line that has none of the conditions that differ, as one that was not run, has no letter.
    """
    letters = pd.Series("", index=lines.index, dtype="object")
    differing = [column for column in conditions if len(different(lines[column])) > 1]
    if not differing:
        return letters, []
    there = lines[lines[differing].fillna("").astype(bool).any(axis=1)]
    number = there.groupby(differing, sort=False, dropna=False).ngroup()
    letters[there.index] = " [" + number.map(_letter) + "]"
    firsts = there.loc[~number.duplicated()]
    meanings = [f"[{_letter(i)}] {_conditions(line, differing)}" for i, (_, line) in enumerate(firsts.iterrows())]
    return letters, meanings


def _letter(number: int) -> str:
    """A to Z, then A1, B1, ..."""
    return chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")


def _conditions(line: pd.Series, differing: Sequence[str]) -> str:
    parts = []
    for prefix, verb in (("", ""), ("timed_", "timed at ")):
        if (f"{prefix}commit" in differing or f"{prefix}dirty" in differing) and line[f"{prefix}commit"]:
            parts.append(f"{verb}commit {commit(line[f'{prefix}commit'], line[f'{prefix}dirty'])}")
    parts += [f"trained on {line[name]}" for name in differing if name == "device"]
    parts += [f"TF32 {line[name]}" for name in differing if name == "tf32"]
    parts += [f"data {line[name][:8]}" for name in differing if name == "data_sha256"]
    parts += [f"timed on {line[name]}" for name in differing if name == "timed_device" and line[name]]
    parts += [f"{line[name]} threads" for name in differing if name == "threads" and line[name]]
    parts += [f"leg {line[name]}" for name in differing if name == "leg" and line[name]]
    parts += [f"split {line[name]}" for name in differing if name == "split"]
    return ", ".join(parts)


def trained(lines: pd.DataFrame) -> str:
    """Where and from what the accuracies of these lines come."""
    parts = [
        f"trained on {' and '.join(different(lines['device']))}",
        f"commit {' and '.join(different(commits(lines)))}",
        f"data {' and '.join(value[:8] for value in different(lines['data_sha256']))}",
    ]
    return ", ".join(parts)


def measured(lines: pd.DataFrame) -> str:
    """Where and how the latencies of these lines were measured; "" when none was."""
    timed = lines[lines["verdict"] != ""]
    if timed.empty:
        return ""
    batches = " and ".join(f"{value:.0f}" for value in timed["batch"].dropna().unique())
    threads = " and ".join(different(timed["threads"]))
    parts = [
        f"on {' and '.join(different(timed['timed_device']))}",
        f"batch {batches}",
        *(" and ".join(different(timed[name])) for name in ("precision", "layout", "leg")),
        f"{' and '.join(different(timed['protocol']))} protocol",
        *([f"{threads} threads"] if threads else []),
        f"commit {' and '.join(different(commits(timed, 'timed_')))}",
    ]
    return ", ".join(parts)
