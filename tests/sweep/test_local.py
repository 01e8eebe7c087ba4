"""Real processes: the numbers of single runs, whatever is killed in between."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from robustssm import sweep
from robustssm.core.config import override
from robustssm.core.lock import in_use
from robustssm.experiment import run
from robustssm.recipes import recipe
from robustssm.sweep import Job, Setup, Watcher
from robustssm.sweep.drive import drive
from robustssm.sweep.local import Local
from tests.experiment.small import SMALL
from tests.experiment.test_run import same_weights

QUICK = SMALL | {"evaluation_examples": "8", "attacks": '["fgsm"]'}
LONG = QUICK | {"epochs": "4000", "monitor.every": "4000"}


def single(job, directory):
    made = override(recipe(job.recipe), job.overrides)
    settings = {"name": job.recipe, "overrides": job.overrides, "device": "cpu", "threads": 1}
    return run(made, directory, **settings)


class Killer(Watcher):
    """Kills the process of a run in its first epoch, once."""

    def __init__(self, backend, name):
        self.backend, self.name, self.reasons = backend, name, []

    def progressed(self, job, progress):
        if job.name == self.name and progress.phase == "training" and not self.reasons:
            (worker,) = [w for w in self.backend._workers if w is not None and w.job == job]
            os.kill(worker._process.pid, signal.SIGKILL)

    def interrupted(self, job, reason):
        self.reasons.append((job.name, reason))


def test_killed_and_failing_runs_change_nothing_for_the_others(tmp_path):
    wrong = QUICK | {"model.d_model": "-1"}
    jobs = [
        Job(name=n, recipe=f"digits.{n}_standard", changes=c, seed=3, directory=tmp_path / n)
        for n, c in (("s4", QUICK), ("dss", wrong), ("s5", QUICK))
    ]
    backend = Local(Setup(device="cpu", paths=tuple(sys.path), command=("sweep", "me")), jobs=1)
    killer = Killer(backend, "s4")
    try:
        found = {o.job.name: o for o in drive(jobs, backend, retries=1, watcher=killer)}
    finally:
        backend.close()
    assert list(found) == ["dss", "s5", "s4"]
    ((name, reason),) = killer.reasons
    assert name == "s4" and "SIGKILL" in reason
    assert [found[n].attempts for n in ("s4", "dss", "s5")] == [2, 1, 1]
    assert "d_model" in found["dss"].error and found["dss"].result is None
    assert "Traceback" in (tmp_path / "dss" / "worker.log").read_text()
    assert not (tmp_path / "s5" / "worker.log").exists()
    for job in (jobs[0], jobs[2]):
        alone = tmp_path / "alone" / job.name
        record = single(job, alone)
        same_weights(alone, job.directory)
        assert found[job.name].result["flags"] == record["flags"]
        recipes = [(d / "recipe.json").read_text() for d in (alone, job.directory)]
        assert recipes[0] == recipes[1]
    provenance = json.loads((tmp_path / "s5" / "provenance.json").read_text())
    assert provenance["command"] == "sweep me"


COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, wherever tests run
sys.argv = ["robustssm", *sys.argv[1:]]
from robustssm.cli import main
main()
"""


def start(out, changes):
    words = [w for item in changes.items() for w in ("--set", "=".join(item))]
    arguments = ["sweep", "digits.s4_standard", "--out", str(out), *words, "--device", "cpu"]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments], stdout=subprocess.PIPE, text=True
    )


def wait_until(claim, what, seconds=90.0):
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if claim():
            return
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen in {seconds} s")


def children(process):
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
    )
    return [int(word) for word in listed.stdout.split()]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return not listed.stdout.startswith("Z")


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
@pytest.mark.parametrize(
    "sent",
    [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],
    ids=lambda s: s.name,
)
def test_a_driver_that_ends_leaves_no_orphans_and_loses_nothing(tmp_path, sent):
    directory = tmp_path / "digits.s4_standard" / "seed_0"
    metrics = directory / "metrics.jsonl"
    process = start(tmp_path, LONG)
    wait_until(lambda: metrics.exists() and metrics.stat().st_size > 2000, "training")
    workers = children(process)
    assert len(workers) == 1 and in_use(directory)
    process.send_signal(sent)
    output, _ = process.communicate(timeout=60)
    wait_until(lambda: not alive(workers[0]), "the end of the worker", 30)
    assert not in_use(directory)
    (record,) = (tmp_path / "sweeps").glob("*.json")
    if sent == signal.SIGINT:
        assert process.returncode == 130
        assert "nothing is lost" in output and "robustssm sweep digits.s4_standard" in output
        assert json.loads(record.read_text())["status"] == "interrupted"
    # What was trained is kept: the next sweep goes on with it, here to fail at once.
    epochs = metrics.read_text().count('"kind": "epoch"')
    assert epochs > 0
    with pytest.raises(ValueError, match="epochs: 4000 there, 2 now"):
        list(sweep.run(["digits.s4_standard"], tmp_path, overrides=QUICK, device="cpu"))


@pytest.mark.slow
def test_an_interrupted_sweep_ends_as_one_that_was_not(tmp_path):
    """Leaving the iterator early is what Ctrl-C does; a kill is in the test above."""
    changes = QUICK | {"epochs": "30", "monitor.every": "30"}

    class Stop(Watcher):
        def progressed(self, job, progress):
            if progress.phase == "training":
                raise KeyboardInterrupt

    call = {"overrides": changes, "device": "cpu", "jobs": 1}
    with pytest.raises(KeyboardInterrupt):
        list(sweep.run(["digits.s5_standard"], tmp_path, watcher=Stop(), **call))
    (outcome,) = sweep.run(["digits.s5_standard"], tmp_path, **call)
    assert outcome.attempts == 1 and outcome.result is not None
    record = single(outcome.job, tmp_path / "alone")
    same_weights(outcome.job.directory, tmp_path / "alone")
    assert outcome.result["flags"] == record["flags"]
    statuses = [json.loads(p.read_text())["status"] for p in (tmp_path / "sweeps").iterdir()]
    assert sorted(statuses) == ["finished", "interrupted"]
