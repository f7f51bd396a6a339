"""The numbers of the authors' released code, and what the command says to files that are not right."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsp.parity import FILES, compare_folder, main

FOLDER = Path(__file__).parent / "fixtures" / "parity"


def test_parity_with_the_released_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(FOLDER)]) == 0
    printed = capsys.readouterr().out
    assert "DIFFERS" not in printed
    assert max(max(errors) for errors in compare_folder(FOLDER).errors.values()) < 1e-12


def changed(folder: Path, name: str, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """A copy of the folder in which one file is changed."""
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    with np.load(folder / name) as file:
        arrays = {key: file[key] for key in file.files}
    change(arrays)
    np.savez(folder / name, **arrays)
    return folder


@pytest.mark.parametrize(
    ("name", "key", "change"),
    [
        ("group_penalty.npz", "case1/grad_soft_second_exact", lambda a: a * (1 + 1e-8)),
        ("group_penalty.npz", "case2/penalty_hard", lambda a: a * (1 + 1e-6)),
        ("group_penalty.npz", "case0/reg_value", lambda a: a * np.nan),
        ("group_penalty.npz", "case0/grad_soft_first", lambda a: a[:1]),
        ("group_learning_trajectory.npz", "step2/state/classifier.bias", lambda a: a + 1e-6),
        ("group_learning_trajectory.npz", "step1/logits/stage_2.0.conv_b", lambda a: -a),
        ("masks.npz", "beta0.3/mask/stage_1.0.conv_a", lambda a: 1 - a),
        ("masks.npz", "beta0.6/pruned_params_percent", lambda a: a + 1e-3),
    ],
)
def test_a_wrong_value_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, key: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    folder = changed(tmp_path / "parity", name, lambda arrays: arrays.update({key: change(arrays[key])}))
    assert main([str(folder)]) == 1
    assert "DIFFERS" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("masks.npz", lambda a: a.pop("weight/stage_1.0.conv_a"), "lacks weight/stage_1.0.conv_a"),
        ("masks.npz", lambda a: a.update(extra=np.zeros(1)), "holds extra"),
        ("masks.npz", lambda a: a.update({"layers": np.array([{}], dtype=object)}), "without pickles"),
        ("group_learning_trajectory.npz", lambda a: a.pop("init/classifier.weight"), "lacks classifier.weight"),
        ("group_learning_trajectory.npz", lambda a: a.pop("init/bn_1.bias"), "bn_1.bias"),
        ("group_penalty.npz", lambda a: a.update({"case0/soft": a["case0/soft"][:, 1:]}), "not in the format"),
        ("group_penalty.npz", lambda a: a.clear(), "no key that starts with case"),
    ],
)
def test_unfit_files_get_one_clear_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    change: Callable[[dict[str, np.ndarray]], Any],
    words: str,
) -> None:
    folder = changed(tmp_path / "parity", name, change)
    assert main([str(folder)]) == 1
    printed = capsys.readouterr().out
    assert words in printed
    assert name in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("content", "words"), [(None, "is missing"), (b"", "cannot be read"), (b"PK no", "cannot be read")]
)
def test_missing_and_damaged_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, words: str
) -> None:
    folder = tmp_path / "[parity]"
    shutil.copytree(FOLDER, folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    assert main([str(folder)]) == 1
    printed = capsys.readouterr().out
    assert f"[parity]/{name}" in printed
    assert words in printed
    assert len(printed.splitlines()) == 1
