"""Evaluating a trained run again: suites, kill -9 and --resume, several processes, time limits."""

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from robustssm.cli.tables import result_table
from robustssm.core.config import override
from robustssm.experiment import assess, evaluate_run, run
from robustssm.recipes import recipe
from tests.experiment.small import SMALL

SETTINGS = SMALL | {"evaluation_batch_size": "8"}
EVALUATE = """
import sys
from pathlib import Path
from robustssm.experiment import evaluate_run
run, out, resume = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "resume"
evaluate_run(run, suite="quick", out=out, resume=resume, device="cpu", threads=1)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "trained"
    experiment = override(recipe("digits.s4_trades"), SETTINGS)
    run(experiment, directory, device="cpu", threads=1)
    return directory


@pytest.fixture(scope="module")
def whole(trained):
    out = trained.parent / "whole.json"
    evaluate_run(trained, suite="quick", out=out, device="cpu", threads=1)
    return out


def numbers(file):
    """What an evaluation wrote, but for when and how fast."""
    record = json.loads(file.read_text())
    for part in (record, *record["checkpoints"].values()):
        part.pop("provenance")
    return record


def pieces(out):
    journal = out.with_name(f"{out.stem}.journal")
    return {f.relative_to(journal): f.read_bytes() for f in journal.rglob("*") if f.is_file()}


def start(trained, out, how):
    return subprocess.Popen([sys.executable, "-c", EVALUATE, str(trained), str(out), how])


@pytest.mark.parametrize("after", [1, 4])
def test_kill_and_resume_gives_the_same_bytes(trained, whole, tmp_path, after):
    out = tmp_path / "killed.json"
    process = start(trained, out, "new")
    units = out.with_name("killed.journal") / "best" / "units"
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        if units.exists() and len(list(units.glob("[!.]*"))) >= after:
            break
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert start(trained, out, "resume").wait(timeout=200) == 0
    assert numbers(out) == numbers(whole)
    kept = {name: content for name, content in pieces(out).items() if ".npz." not in name.name}
    assert kept == pieces(whole)


def test_two_processes_give_the_bytes_of_one(trained, whole, tmp_path):
    out = tmp_path / "shared.json"
    evaluate_run(trained, suite="quick", out=out, device="cpu", threads=1, processes=2)
    assert numbers(out) == numbers(whole)
    assert pieces(out) == pieces(whole)


def test_the_record_of_a_suite(whole):
    record = numbers(whole)
    assert set(record["attacks"]) == {"quick"}
    assert list(record["suites"]["quick"]["stages"]) == ["apgd-ce", "apgd_targeted"]
    assert record["verdict"] in ("reliable", "suspicious", "unreliable")
    assert len(record["data_hash"]) == 64
    assert record["robust_accuracy"] == record["attacks"]["quick"] <= record["clean_accuracy"]


def test_resuming_another_evaluation_is_refused(trained, whole):
    overrides = {"threat.eps": "0.2"}
    with pytest.raises(ValueError, match="differs in: threat"):
        evaluate_run(trained, suite="quick", out=whole, overrides=overrides, resume=True)


def test_a_time_limit_leaves_a_part_and_says_so(trained, tmp_path, monkeypatch):
    """The clock ticks with every pass, so that time ends in the second chunk or so."""
    now = [0.0]

    def tick():
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr("robustssm.attacks.access.time.monotonic", tick)
    out = tmp_path / "part.json"
    hours = 800 / 3600
    record = evaluate_run(trained, suite="quick", out=out, device="cpu", max_hours=hours)
    assert record["n"] in (8, 16, 24)
    assert record["planned"] == 32
    assert record["test_examples"]["used"] == record["n"]


def test_no_time_for_the_last_checkpoint_leaves_the_best(trained, tmp_path, monkeypatch):
    states = {}
    real = assess.checkpoint.read_weights

    def told_apart(path, model):  # as if the last epoch were not the best one
        states[path.name] = real(path, model)
        return states[path.name] | {"sha256": {"model.safetensors": path.name}}

    evaluated = []

    def evaluate(work, name, *rest):
        evaluated.append(name)
        if name == "last":
            raise TimeoutError
        return one(work, name, *rest)

    one = assess._Assessment.one
    monkeypatch.setattr(assess.checkpoint, "read_weights", told_apart)
    monkeypatch.setattr(assess._Assessment, "one", evaluate)
    out = tmp_path / "best.json"
    overrides = {"evaluation_examples": "16", "attacks": '[{"name": "fgsm"}]'}
    record = evaluate_run(trained, overrides=overrides, out=out, device="cpu", max_hours=1.0)
    assert evaluated == ["best", "last"]
    assert set(record["checkpoints"]) == {"best"} and record["n"] == 16
    assert record["difference"] == {"clean": None, "fgsm": None}
    Console(file=io.StringIO()).print(result_table(record))


def test_diagnosis_adds_curves(trained, tmp_path):
    overrides = {"evaluation_examples": "16", "attacks": '[{"name": "fgsm"}]'}
    out = tmp_path / "diagnosed.json"
    record = evaluate_run(trained, overrides=overrides, out=out, device="cpu", diagnose=True)
    assert record["diagnosed"]
    assert {curve["axis"] for curve in record["curves"]} == {"eps", "steps", "restarts"}
    assert Path(out).exists()
