"""Text of numbers and conditions in tables, captions and on the terminal."""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from suite.measure import claim

FLOPS = (
    "FLOPs are multiply-accumulates (MACs) of convolutions and linear layers for one image. The share cut is of the whole "
    "network; the share of the prunable convolutions (all but the stem and the shortcuts) has a column of its own"
)
SPEEDUP = (
    "Speed-up is dense time / packed time: the median over the runs [lowest lower end, highest upper end of the runs' 95 % "
    "intervals] (number of runs). The range covers every measured network; seeds that were not run are not covered. A claim "
    "needs an interval apart from the null interval (dense against dense) and an effect larger than the width of the null "
    'interval, else the verdict is "no difference". Runs are left out if the null test failed, if other processes used the '
    'device, or if CPU time shows the opposite. If all runs are left out, the cell is "not trusted"'
)
DROPS = (
    "The drop is base minus pruned, paired by run; positive is worse. The drop to control is the dense network after the same "
    "epochs (base, learning and fine-tuning) minus pruned, paired by base network and seed; a note gives the control's plain "
    "epochs if they differ"
)
COUNTS = (
    "The n of a cell counts base networks if each run has its own, else fine-tunings of fewer base networks; then intervals and "
    "verdicts hold for these networks only"
)
DOSE = (
    "The dose is that of the group penalty: summed penalty steps over the mean norm of a channel in a group, median over layers. "
    "A group entropy of ln G: no groups were learned"
)
REPRODUCTION = (
    "a drop is compared if the source states its base accuracy; else accuracies stand beside each other, and are judged only if "
    "both have the same epochs of training, base network included. Our median stands beside a published median. "
    '"reproduced": the 95 % interval of ours minus published lies within half a point of 0. "below" or "above": all of the '
    'interval lies further away, on that side. "open": neither. A published median has the error of a median of as many runs; '
    'a number whose source states no runs counts as exact. "published is best on test": the authors\' code keeps the epoch that '
    'is best on the test set, ours does not, which favours the published number. "not run": no line of ours with the same '
    "settings lies within one point of the cut. A positive difference is in our favour"
)
NEVER_AVERAGED = (
    "Rows of different commits, numerical settings or data have lines of their own and are never averaged. A block is a base "
    "network with a seed: blocks of different devices are averaged; rows of a block from another device than most have lines of "
    "their own"
)

PAIRS = (
    "The method with the highest mean of each budget against each other one. If methods have different blocks, means are over "
    "the blocks that all have. The first method of a pair is the one that the test puts higher"
)
PAIRS_METHOD = (
    "Declared comparisons are the grid's main method against each rival. Their error is pooled over methods and blocks (a block "
    "is a base network with a seed); a method whose own variance is larger (F test at level 0.2) keeps its own, with "
    "Satterthwaite's degrees of freedom. All other pairs are secondary: runs that share seed and base weights are compared "
    "block by block (paired t test, else Welch's). p-values and intervals are corrected by Holm within their family, not only "
    "over the pairs shown. P(improvement) is the share of common blocks in which the first method is better, or of all run "
    "pairs if there is no common block. Seeds needed: a t test finds a difference and spread as "
    "measured here with power 0.8. Coarse runs are left out"
)
NOTES = (
    'Notes: "no dense control": no finished run of the dense network after the same epochs, so no drop to control. '
    '"control: N plain epochs": the dense control was trained for N plain epochs, not for as many as this line. "timed on a busy '
    'machine": other processes ran beside a measurement. The column "doubtful" has the flags of timings. `[0 epochs]`: '
    "the epochs of fine-tuning, if variants of one method differ in them. `[A]`, `[B]`: rows that differ in commit, device or "
    "data; the meanings stand under the comparisons"
)
REFERENCE = "Reference rows are the project's tracked results, not part of the lines above: their runs are in no n, mean or test"

OTHER_CODE = " †"
"""Mark behind an accuracy that was made with other code."""

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
        "†": r"\textdagger{}",
    }
)
_LONG = re.compile(r"(?<![\w.])\d+\.\d{6,}(?:e-?\d+)?")
_EDGE_UNDERSCORE = re.compile(r"(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")


def markdown(text: str) -> str:
    """Escape `text` for Markdown, tables too. An underscore inside a word needs no escape."""
    escaped = _MARKDOWN.sub(r"\\\1", " ".join(text.replace("&", "&amp;").split()))
    return _EDGE_UNDERSCORE.sub(r"\\_", escaped)


def latex(text: str) -> str:
    """Escape `text` for LaTeX. A sign that pdfTeX's fonts lack becomes its code point."""
    escaped = " ".join(text.split()).translate(_LATEX)
    return "".join(sign if ord(sign) < 0x100 and sign.isprintable() else f"[U+{ord(sign):04X}]" for sign in escaped)


def file_name(*parts: str) -> str:
    """Join the parts by underscores; other signs than letters, digits and `+-.` are replaced."""
    return "_".join(re.sub(r"[^0-9A-Za-z.+-]+", "_", part) for part in parts)


def number(value: float, digits: int = 2) -> str:
    """Format with fixed digits; "" for nan."""
    return "" if pd.isna(value) else f"{value:.{digits}f}"


def mean_sd(mean: float, sd: float, n: int | None = None) -> str:
    """Format as "94.31 ± 0.20 (5)"; "" without a mean.

    sd and n are left out if they are absent.
    """
    if pd.isna(mean):
        return ""
    spread = "" if pd.isna(sd) else f" ± {sd:.2f}"
    return f"{mean:.2f}{spread}" + ("" if n is None else f" ({n})")


def interval(value: float, low: float, high: float, n: float | None = None) -> str:
    """Format as "1.31 [1.27, 1.36] (5)"; "" without a value.

    Interval and n are left out if they are absent.
    """
    ends = "" if pd.isna(low) else f" [{low:.2f}, {high:.2f}]"
    return "" if pd.isna(value) else f"{value:.2f}{ends}" + ("" if n is None else f" ({n:.0f})")


def numbered(notes: pd.Series) -> tuple[pd.Series, list[str]]:
    """Replace the phrases of notes by numbers such as "1, 3"; return their meanings too.

    A phrase that all notes share has no number.
    """
    phrases = notes.map(lambda note: note.split("; ") if note else [])
    distinct = list(dict.fromkeys(itertools.chain.from_iterable(phrases)))
    shared = [phrase for phrase in distinct if all(phrase in own for own in phrases)]
    number = {phrase: str(place) for place, phrase in enumerate((p for p in distinct if p not in shared), 1)}
    texts = phrases.map(lambda own: ", ".join(number[phrase] for phrase in own if phrase in number))
    return texts, [*(f"all: {phrase}" for phrase in shared), *(f"{place}: {p}" for p, place in number.items())]


def significant(value: float) -> str:
    """Format with two significant digits, without an exponent; "" for nan."""
    return "" if pd.isna(value) else f"{float(f'{value:.2g}'):.10f}".rstrip("0").rstrip(".")


def entropy(line: Mapping[Hashable, Any] | pd.Series) -> str:
    """Format a group entropy as "0.124"; "0.693 (ln G)" if nothing was learned."""
    text = number(line["group_entropy_nats"], 3)
    return f"{text} (ln G)" if text and line["unlearned"] else text


def counted(n: float, bases: float) -> str:
    """Return what n runs count: "base networks", or "fine-tunings of 1 base network"."""
    if not n or n == bases:
        return ("base networks" if n > 1 else "base network") if n else ""
    return f"fine-tunings of {bases:.0f} base network{'s' * int(bases > 1)}"


def counts_of(n: float, bases: float) -> str:
    """Format as "5 base networks" or "5 fine-tunings of 1 base network"."""
    return f"{n:.0f} {counted(n, bases)}" if n else ""


def rounded(text: str) -> str:
    """Round the long decimal numbers of a method's settings to four digits."""
    return _LONG.sub(lambda match: f"{float(match[0]):.4g}", text)


def sentences(*texts: str) -> str:
    """Join texts to sentences with capital letter and full stop; skip empty texts."""
    return " ".join(f"{text[0].upper()}{text[1:].removesuffix('.')}." for text in texts if text)


def budget(share: float, scope: str) -> str:
    """Format as "60.17 %", followed by the scope unless it is the whole network's MACs."""
    resource = {"network": "", "latency": " of the time"}.get(scope, f" of {scope}")
    return f"{100 * share:.4g} %{resource}"


def levels(names: Sequence[str]) -> str:
    """Format numbered names: "0 worst; 1 better; ..."."""
    return "; ".join(f"{number} {name}" for number, name in enumerate(names))


def epochs(line: Mapping[Hashable, Any] | pd.Series) -> str:
    """Format epochs as "164 + 120 + 400": base network, learning, fine-tuning.

    "init" stands for the base network of runs that start at initial weights. Without a run the text is "".
    """
    if not line["n"]:
        return ""
    if line.get("start") == "init":
        return f"init + {line['learning_epochs']:.0f} + {line['finetune_epochs']:.0f}"
    spent = (line["base_epochs"], line["learning_epochs"], line["finetune_epochs"])
    return " + ".join("public" if pd.isna(value) else f"{value:.0f}" for value in spent)


def speedup(line: Mapping[Hashable, Any] | pd.Series) -> str:
    """Format as "1.31 [1.27, 1.36] (2)"; "" without a measurement.

    The verdict follows if it is "no difference".
    """
    if not line["verdict"] or line["verdict"] == "not trusted":
        return str(line["verdict"])
    low, high = line["speedup_low_x"], line["speedup_high_x"]
    ends = {"faster": low, "slower": high}.get(line["verdict"], 0)
    digits = next(
        digits for digits in range(2, 10) if round(ends, digits) != 1
    )  # an end that is not 1 is not printed as 1
    text = f"{line['speedup_x']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}] ({line['speedup_n']:.0f})"
    return f"{text}, no difference" if line["verdict"] == "no difference" else text


def verdict(line: Mapping[Hashable, Any] | pd.Series) -> str:
    """Return ", faster" or ", slower"; "" for the verdicts that `speedup` has already."""
    return f", {line['verdict']}" if line["verdict"] in ("faster", "slower") else ""


def timing(line: Mapping[Hashable, Any] | pd.Series) -> str:
    """Name device and settings of a timing: "NVIDIA A100, batch 32, fp16, channels_last"."""
    device = line["timed_device"] or line["asked_device"]
    layout = "" if line["layout"] == "contiguous" else f", {line['layout']}"
    return f"{device}, batch {line['batch']:.0f}, {line['precision']}{layout}"


def short_speedup(line: Mapping[Hashable, Any] | pd.Series) -> str:
    """Format as "1.31 x", or the verdict if it is neither faster nor slower."""
    return f"{line['speedup_x']:.2f} x" if line["verdict"] in ("faster", "slower") else str(line["verdict"])


def commit(name: str, dirty: str) -> str:
    """Shorten a commit; "+dirty" marks a checkout with uncommitted changes."""
    short = name[:8] if re.fullmatch(r"[0-9a-f]{40}", name) else name
    return short + ("+dirty" if dirty == "yes" else "")


def commits(lines: pd.DataFrame, prefix: str = "") -> pd.Series:
    """Return `commit` of each line; "" without one."""
    pairs = zip(lines[f"{prefix}commit"], lines[f"{prefix}dirty"], strict=True)
    return pd.Series([commit(name, dirty) for name, dirty in pairs], index=lines.index, dtype="object")


def different(values: pd.Series) -> list[str]:
    """Return the distinct non-empty values, in order of appearance."""
    return [str(value) for value in values.dropna().unique() if value != ""]


def counts(lines: pd.DataFrame) -> str:
    """Count runs by status: "60 runs: 57 done, 2 failed, 1 not run."."""
    cells = lines.drop_duplicates("cell")
    kinds = {name: int(cells[name].sum()) for name in ("runs", "diverged", "failed", "missing")}
    done = kinds["runs"] - kinds["diverged"] - kinds["failed"] - kinds["missing"]
    parts = [f"{done} done", *(f"{kinds[name]} {name}" for name in ("diverged", "failed") if kinds[name])]
    return f"{kinds['runs']} runs: {', '.join(parts)}" + (f", {kinds['missing']} not run." if kinds["missing"] else ".")


def other_code(lines: pd.DataFrame, grid: str) -> str:
    """Return the count of runs made with other code, and commands that repeat them.

    The text is "" without such runs.
    """
    cells = lines.drop_duplicates("line")
    marked = cells[cells["other_code"] > 0]
    if marked.empty:
        return ""
    networks = dict.fromkeys(f"{data}/{model}" for data, model in zip(marked["data"], marked["model"], strict=True))
    commands = joined(f"`python -m suite.launch --grid {grid} --redo {network}`" for network in networks)
    count, every = marked["other_code"].sum(), cells["n"].sum()
    which = "All runs were" if count == every else f"{count} of {every} runs were"
    mark = f" ({OTHER_CODE.strip()})" if marked["mark"].any() else ""
    return (
        f"{which} made with other code{mark}: a file of their method, model or data set, or one that it imports, has changed "
        f"since. To repeat them: {commands}"
    )


def other_code_marks(lines: pd.DataFrame) -> pd.Series:
    """Return the mark of lines made with other code, "" if all are."""
    marked = lines["other_code"] > 0
    return marked.map({True: "" if lines["other_code"].sum() == lines["n"].sum() else OTHER_CODE, False: ""})


def about_reference(lines: pd.DataFrame) -> str:
    """Return the sentence on reference rows, and the meaning of their mark."""
    return REFERENCE + (f". Marked{OTHER_CODE}: made with other code" if (lines["other_code"] > 0).any() else "")


def told_apart(lines: pd.DataFrame, conditions: Sequence[str]) -> tuple[pd.Series, list[str]]:
    """Return a letter such as " [A]" for each line, and the letters' meanings.

    If all lines have the same conditions, there are no letters. A line without any of the differing conditions, such as one
    that was not run, has no letter.
    """
    letters = pd.Series("", index=lines.index, dtype="object")
    differing = [column for column in conditions if len(different(lines[column])) > 1]
    if not differing:
        return letters, []
    lettered = lines[lines[differing].fillna("").astype(bool).any(axis=1)]
    number = lettered.groupby(differing, sort=False, dropna=False).ngroup()
    letters[lettered.index] = " [" + number.map(_letter) + "]"
    firsts = lettered.loc[~number.duplicated()]
    meanings = [f"[{_letter(i)}] {_conditions(line, differing)}" for i, (_, line) in enumerate(firsts.iterrows())]
    return letters, meanings


def _letter(number: int) -> str:
    """Return A to Z, then A1, B1, ...."""
    return chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")


def _threads(number: str) -> str:
    return f"{number} thread" if number == "1" else f"{number} threads"


def _conditions(line: pd.Series, differing: Sequence[str]) -> str:
    parts = []
    for prefix, verb in (("", ""), ("timed_", "timed at ")):
        if (f"{prefix}commit" in differing or f"{prefix}dirty" in differing) and line[f"{prefix}commit"]:
            parts.append(f"{verb}commit {commit(line[f'{prefix}commit'], line[f'{prefix}dirty'])}")
    parts += [f"trained on {line[name]}" for name in differing if name == "device"]
    parts += [f"TF32 {line[name]}" for name in differing if name == "tf32"]
    parts += [f"data {line[name][:8]}" for name in differing if name == "data_sha256"]
    parts += [f"timed on {line[name]}" for name in differing if name == "timed_device" and line[name]]
    parts += [_threads(str(line[name])) for name in differing if name == "threads" and line[name]]
    parts += [f"leg {line[name]}" for name in differing if name == "leg" and line[name]]
    parts += [f"dense network in {line[name]}" for name in differing if name == "reference" and line[name]]
    parts += [f"split {line[name]}" for name in differing if name == "split"]
    return ", ".join(parts)


def who(lines: pd.DataFrame) -> str:
    """Return data set and model of these lines: "digits, resnet8"."""
    return f"{lines['data'].iloc[0]}, {lines['model'].iloc[0]}"


def runs(n: pd.Series, bases: pd.Series) -> str:
    """Format n and what it counts, such as "n = 3 base networks".

    n      runs of each point
    bases  base networks among them
    """
    few, many = int(n.min()), int(n.max())
    count = f"n = {few}" if few == many else f"n = {few} to {many}"
    if (n == bases).all():
        return f"{count} base network{'s' * (many > 1)}"
    low, high = int(bases.min()), int(bases.max())
    shared = f"{low}" if low == high else f"{low} to {high}"
    return f"{count} fine-tunings of {shared} base network{'s' * (high > 1)}"


def joined(values: Iterable[object]) -> str:
    """Join values by "and"."""
    return " and ".join(map(str, values))


_BLOCKS = "one device a block: "


def blocks_on(devices: Iterable[str]) -> str:
    """Name the devices of pooled blocks; a single device has its name alone."""
    every = sorted(devices)
    return every[0] if len(every) == 1 else _BLOCKS + " / ".join(every)


def of_several_devices(device: str) -> bool:
    """Return True for the name of pooled blocks from several devices."""
    return device.startswith(_BLOCKS)


def trained(lines: pd.DataFrame) -> str:
    """List device, commit and data of the accuracies of these lines."""
    parts = [
        f"trained on {joined(different(lines['device']))}",
        f"commit {joined(different(commits(lines)))}",
        f"data {joined(value[:8] for value in different(lines['data_sha256']))}",
    ]
    return ", ".join(parts)


def measured(lines: pd.DataFrame) -> str:
    """List device and settings of the timings of these lines; "" without a timing."""
    timed = lines[lines["verdict"] != ""]
    if timed.empty:
        return ""
    threads = joined(different(timed["threads"]))
    parts = [
        f"on {joined(different(timed['timed_device']))}",
        f"batch {joined(f'{value:.0f}' for value in timed['batch'].dropna().unique())}",
        *(joined(different(timed[name])) for name in ("precision", "layout", "leg")),
        f"{joined(different(timed['protocol']))} protocol",
        *([claim.UNTUNED] if "quick" in different(timed["protocol"]) else []),
        *([_threads(threads)] if threads else []),
        f"commit {joined(different(commits(timed, 'timed_')))}",
        *(f"no energy: {reason}" for reason in different(timed["energy_missing"]) if reason),
    ]
    return ", ".join(parts)
