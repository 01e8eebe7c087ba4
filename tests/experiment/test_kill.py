"""kill -9 at a random moment, --resume, and the same parameters bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from robustssm.core.rng import Noise
from robustssm.records import read_records
from tests.experiment.small import SMALL
from tests.experiment.test_run import same_weights

SETTINGS = SMALL | {"epochs": "6", "monitor.every": "2", "average": "0.9"}


SCRIPT = """
import sys, json
from pathlib import Path
from robustssm.core.config import override
from robustssm.experiment import run
from robustssm.recipes import recipe
name, out, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
experiment = override(recipe(name), settings)
run(experiment, out, resume=True, device="cpu", threads=1, save_seconds=0.0)
"""


def start(recipe, out):
    """A process that saves after every step, so that kills fall between any two writes."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, recipe, str(out), json.dumps(SETTINGS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output


@pytest.mark.parametrize("recipe", ["digits.mamba_trades"])
def test_killed_and_resumed_is_the_same_run(tmp_path, recipe):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(recipe, whole))
    lines = len((whole / "metrics.jsonl").read_text().splitlines())
    for kill in range(2):
        process = start(recipe, killed)
        # Somewhere in the first or the second half of the run, a few milliseconds after a line.
        target = int(Noise(os.getpid()).fork(kill).integers(1, high=lines // 3)) + kill * lines // 2
        wait_for_lines(killed / "metrics.jsonl", target, process)
        time.sleep(float(Noise(os.getpid()).fork("pause", kill).uniform(1, high=0.05)))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (killed / "evaluation.json").exists()
    finish(start(recipe, killed))
    same_weights(whole, killed)
    steps = [
        [(r.kind, r.step, r.values.get("loss")) for r in read_records(d / "metrics.jsonl")]
        for d in (whole, killed)
    ]
    assert steps[0] == steps[1]


def wait_for_lines(path, count, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.002)
    raise AssertionError(f"{path} did not reach {count} lines")
