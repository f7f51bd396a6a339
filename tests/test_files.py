"""Files are whole or absent, readable to whom the umask lets, and what killed processes left is removed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from suite import files, sandbox
from suite.measure import confined


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_is_respected(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        files.write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == mode


@pytest.mark.skipif(not sandbox.is_supported(), reason="needs Landlock and seccomp")
def test_a_confined_process_writes_whole_files(tmp_path: Path) -> None:
    code = (
        f"from pathlib import Path; from suite import files; files.write_text(Path({str(tmp_path / 'a')!r}), 'whole')"
    )
    words = sandbox.command([sys.executable, "-c", code], memory_bytes=1 << 30, writable=[tmp_path])
    done = subprocess.run(words, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a").read_text() == "whole"


def test_a_confined_measurement_reads_images_in_its_own_process() -> None:
    assert confined._environment("scratch")["SUITE_WORKERS"] == "0"


def test_temporary_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    killed, written, other = (tmp_path / name for name in (".a.csv.x.part", ".b.csv.y.part", "c.part"))
    for path in (killed, written, other):
        path.write_text("half")
    for path in (killed, other):
        os.utime(path, (time.time() - 2 * files.PART_S,) * 2)
    files.remove_parts(tmp_path)
    assert (killed.exists(), written.exists(), other.exists()) == (False, True, True)
    files.remove_parts(tmp_path / "absent")
