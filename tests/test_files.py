"""Files are whole or absent, readable to whom the umask lets, and what killed processes left is removed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from suite import files


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_is_respected(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        files.write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == mode


def test_temporary_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    killed, written, other = (tmp_path / name for name in (".a.csv.x.part", ".b.csv.y.part", "c.part"))
    for path in (killed, written, other):
        path.write_text("half")
    for path in (killed, other):
        os.utime(path, (time.time() - 2 * files.PART_S,) * 2)
    files.remove_parts(tmp_path)
    assert (killed.exists(), written.exists(), other.exists()) == (False, True, True)
    files.remove_parts(tmp_path / "absent")
