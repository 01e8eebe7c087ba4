"""A directory held by one process at a time, and a glance at it that leaves no trace."""

import subprocess
import sys

import pytest

from robustssm.core.errors import RunInUse
from robustssm.core.lock import in_use, locked

HOLD = """
import sys
from pathlib import Path
from robustssm.core.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time(tmp_path):
    place = tmp_path / "new" / "run"
    command = [sys.executable, "-c", HOLD, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        assert in_use(place)
        with pytest.raises(RunInUse, match="must be used by one process at a time"), locked(place):
            pytest.fail("two processes hold it")
        process.kill()
        process.wait()
    assert not in_use(place), "a dead process holds nothing"
    with locked(place):
        assert in_use(place)
    assert not in_use(place)


def test_a_glance_leaves_no_trace(tmp_path):
    assert not in_use(tmp_path / "none")
    assert not in_use(tmp_path)
    assert not list(tmp_path.iterdir())
