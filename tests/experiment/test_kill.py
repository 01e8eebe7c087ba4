"""kill -9 at a random moment, --resume, and the same parameters bit for bit."""

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


def start(recipe, out, *more):
    """The command line, saving after every step, so that kills fall between any two writes."""
    script = (
        "import torch; torch.set_num_threads(1);"
        "import robustssm.experiment.fit as fit; fit.Fit.save_seconds = 0.0;"
        "from robustssm.cli import main; main()"
    )
    overrides = [word for item in SETTINGS.items() for word in ("--set", "=".join(item))]
    command = [sys.executable, "-c", script, "run", recipe, "--out", str(out), *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--device", "cpu", *more],
        env=environment,
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
        process = start(recipe, killed, "--resume")
        # Somewhere in the first or the second half of the run, a few milliseconds after a line.
        target = int(Noise(os.getpid()).fork(kill).integers(1, high=lines // 3)) + kill * lines // 2
        wait_for_lines(killed / "metrics.jsonl", target, process)
        time.sleep(float(Noise(os.getpid()).fork("pause", kill).uniform(1, high=0.05)))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (killed / "evaluation.json").exists()
    finish(start(recipe, killed, "--resume"))
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
