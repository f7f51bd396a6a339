"""An interrupt during imports ends a command quietly; afterwards it raises KeyboardInterrupt again."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SCRIPT = (
    "import suite.interrupt, time\nsuite.interrupt.install()\n{restore}\nprint('ready', flush=True)\ntime.sleep(60)"
)


@pytest.mark.parametrize(("restore", "code"), [("", 130), ("suite.interrupt.restore()", -signal.SIGINT)])
def test_an_interrupt_prints_a_traceback_only_after_the_imports(restore: str, code: int) -> None:
    command = [sys.executable, "-c", SCRIPT.format(restore=restore)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert ("Traceback" in errors) == (code != 130)
