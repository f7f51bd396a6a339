"""Published numbers: what the files hold, nothing filled in, and a bad line named."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest

from suite import methods
from suite.report.statistics import published

HEADER = "dataset,model,method,groups,top1_pct,flops_cut_pct,flops_scope,seen,source"
GOOD = "digits,net,ours,2,90.5,61.2,prunable convs,primary,a paper"


def write(folder: Path, *lines: str, header: str = HEADER) -> Path:
    (folder / "rows.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return folder


def test_every_number_in_the_files_is_there_and_none_besides() -> None:
    frame = published.load()
    written = []
    for path in sorted(published.HOME.glob("*.csv")):
        if path.name != published.NAMES:
            with path.open(encoding="utf-8", newline="") as file:
                written += list(csv.DictReader(file))
    assert len(frame) == len(written) > 60
    for name in published.NUMBERS:
        expected = [float(row[name]) for row in written if row.get(name)]
        assert frame[name].dropna().tolist() == expected
    assert (frame["source"] != "").all()


def test_names_lead_to_methods_that_there_are() -> None:
    with (published.HOME / published.NAMES).open(encoding="utf-8", newline="") as file:
        names = list(csv.DictReader(file))
    frame = published.load()
    assert names
    written = set(zip(frame["method"], frame["variant"], strict=True))
    for row in names:
        fields = {field.name for field in dataclasses.fields(methods.discover()[row["suite"]])}
        if row["settings"] not in ("", published.NO_VARIANT):
            assert {part.split("=")[0] for part in row["settings"].split(", ")} <= fields
        assert (row["published"], row["variant"]) in written or not row["variant"]
        assert row["published"] in set(frame["method"])
    assert len({(row["published"], row["variant"]) for row in names}) == len(names)


@pytest.mark.parametrize(
    ("method", "variant", "ours", "needs"),
    [
        ("pfec_l1", "fine-tuned", "l1_filter", "ranking=layer, scope=inner"),
        ("fpgm", "global", "fpgm_once", "ranking=global, scope=coupled"),
        ("fpgm", "mix 40 % fine-tuned", "fpgm", "none"),
        ("depgraph", "with sparse learning", "depgraph", ""),
        ("depgraph", "without sparse learning", "depgraph", "none"),
        ("one_by_n", "1x4 blocks at rate 0.5", "one_by_n", "n=4"),
        ("chip", "", "chip", ""),
    ],
)
def test_a_variant_leads_to_a_method_and_its_settings(method: str, variant: str, ours: str, needs: str) -> None:
    frame = published.load()
    rows = frame[(frame["method"] == method) & (frame["variant"] == variant)]
    assert len(rows)
    assert set(zip(rows["ours"], rows["needs"], strict=True)) == {(ours, needs)}


def test_every_baseline_states_its_epoch_or_that_it_is_not_stated() -> None:
    frame = published.load()
    assert set(frame.loc[frame["ours"] != "dsp", "selection"]) == set(published.SELECTIONS[1:])


def test_what_was_not_stated_is_absent(tmp_path: Path) -> None:
    row = published.load(write(tmp_path, "digits,net,ours,,90.5,,,primary,a paper")).iloc[0]
    assert row[["groups", "flops_cut_pct", "params_cut_pct", "base_top1_pct"]].isna().all()
    assert (row["top1_pct"], row["scope"], row["selection"]) == (90.5, "network", "")


def test_no_folder_is_no_rows(tmp_path: Path) -> None:
    frame = published.load(tmp_path / "nowhere")
    assert frame.empty
    assert set(published.COLUMNS) == set(frame.columns)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (GOOD.replace("90.5", "905"), "line 3: top1_pct = '905' is no number from 0 to 100"),
        (GOOD.replace("90.5", "nan"), "top1_pct = 'nan' is no number"),
        (GOOD.replace("61.2", "two thirds"), "flops_cut_pct = 'two thirds'"),
        (GOOD.replace("primary", "memory"), "seen = 'memory'; choose from: primary, rerun, quoted"),
        (GOOD.replace("a paper", ""), "source must be given"),
        (GOOD.replace("prunable convs", "all"), "flops_scope = 'all'"),
        (GOOD + ",more", "not as many values"),
        ("digits,net", "not as many values"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        published.load(write(tmp_path, GOOD, line))
    assert "\n" not in str(raised.value)


def test_an_unknown_selection_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="selection = 'best'; choose from: best epoch on test, last epoch, not stated"):
        published.load(write(tmp_path, f"{GOOD},best", header=f"{HEADER},selection"))


def test_an_unknown_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown columns \\['guess'\\]"):
        published.load(write(tmp_path, f"{GOOD},1", header=f"{HEADER},guess"))


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(HEADER.encode() + b"\n\xff\xfe")
    with pytest.raises(ValueError, match=r"rows\.csv is no CSV file"):
        published.load(tmp_path)
