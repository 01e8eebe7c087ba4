"""One run in several processes: the run of one process, resumed with any number, or ended by all.

What processes exchange is tested on played ones in tests/training/test_pieces.py; here they are
real, and so slow to start.
"""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from robustssm.core.config import override
from robustssm.core.errors import Inapplicable, NonFiniteLoss
from robustssm.core.placement import Placement, check_devices
from robustssm.experiment import parallel, run
from robustssm.experiment.display import Display
from robustssm.experiment.job import Job
from robustssm.experiment.rundir import RunDirectory
from robustssm.recipes import recipe
from robustssm.records import read_json, read_records
from tests.experiment import faulty
from tests.experiment.small import SMALL

# Uneven: batches of 33 shared by two, the last one of 30.
UNEVEN = SMALL | {"batch_size": "33", "average": "0.9", "attacks": '["fgsm"]'}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Standard training by one process."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    run(override(recipe("digits.s4_standard"), UNEVEN), directory, device="cpu", threads=1)
    return directory


class Seen(Display):
    """Remembers what it was shown."""

    def __init__(self):
        self.steps, self.epochs, self.retries = [], [], []

    def step(self, **keywords):
        self.steps.append(keywords)

    def epoch(self, **keywords):
        self.epochs.append(keywords)

    def out_of_memory(self, **keywords):
        self.retries.append(keywords)


def losses(directory):
    records = read_records(directory / "metrics.jsonl")
    return torch.tensor([r.values["loss"] for r in records if r.kind == "step"])


def seen(directory):
    records = [r for r in read_records(directory / "metrics.jsonl") if r.kind == "epoch"]
    # The alarm of fast training looks at other examples where a batch is divided.
    checked = tuple(f"train_seen_{n}" for n in ("fgsm_accuracy", "check_accuracy", "overfitting"))
    names = sorted(n for n in records[0].values if n.startswith(("train", "validation")))
    names = [n for n in names if n not in checked]
    return torch.tensor([[r.values[name] for name in names] for r in records])


def assert_same(one, other, *, rtol=1e-5, steps=6):
    assert len(losses(one)) == len(losses(other)) == steps
    torch.testing.assert_close(losses(one), losses(other), rtol=rtol, atol=1e-6)
    torch.testing.assert_close(seen(one), seen(other), rtol=10 * rtol, atol=1e-5)
    for name in ("last", "best"):
        a, b = (load_file(d / "checkpoints" / name / "model.safetensors") for d in (one, other))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["standard", "trades", "yopo", "free", "fast", "awp"])
def test_two_processes_make_the_run_of_one(tmp_path, method):
    name = f"digits.s4_{method}" if method in ("standard", "trades") else f"digits.s4d_{method}"
    experiment = override(recipe(name), UNEVEN)
    display = Seen()
    run(experiment, tmp_path / "one", device="cpu", threads=1)
    record = run(experiment, tmp_path / "two", device="cpu", devices=2, threads=1, display=display)
    steps = len(losses(tmp_path / "one"))
    assert_same(tmp_path / "one", tmp_path / "two", steps=steps)
    assert record == read_json(tmp_path / "two" / "evaluation.json")
    assert read_json(tmp_path / "two" / "provenance.json")["device"].startswith("2 processes: cpu")
    assert len(display.steps) == 6 and [e["epoch"] for e in display.epochs] == [1, 2]
    assert "MASTER_PORT" not in os.environ


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, monkeypatch, devices):
    experiment = override(recipe("digits.s4d_free"), UNEVEN)
    run(experiment, tmp_path / "whole", device="cpu", threads=1)
    there = tmp_path / "resumed"
    settings = {"device": "cpu", "threads": 1, "save_seconds": 0.0}
    if devices == 1:
        monkeypatch.setattr(parallel, "_there", faulty.all_killed)
        with pytest.raises(ChildProcessError, match="must live to its end"):
            run(experiment, there, devices=2, **settings)
    else:
        stopping = Seen()
        stopping.epoch = _interrupt
        with pytest.raises(KeyboardInterrupt):
            run(experiment, there, display=stopping, **settings)
    before = len(losses(there))
    assert 0 < before < len(losses(tmp_path / "whole"))
    monkeypatch.undo()
    run(experiment, there, devices=devices, resume=True, **settings)
    assert_same(tmp_path / "whole", there, steps=len(losses(tmp_path / "whole")))


def _interrupt(**keywords):
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault, message",
    [
        (faulty.failing, r"process 1 failed, and so all were ended:(?s:.)*a fault of process 1"),
        (faulty.killed, r"must live to its end; .*(SIGKILL|failed).*"),
    ],
    ids=["failing", "killed"],
)
def test_a_failure_of_one_ends_all_with_its_reason(tmp_path, monkeypatch, fault, message):
    monkeypatch.setattr(parallel, "_there", fault)
    experiment = override(recipe("digits.s4_standard"), UNEVEN)
    began = time.monotonic()
    with pytest.raises(ChildProcessError, match=message):
        run(experiment, tmp_path / "run", device="cpu", devices=2, threads=1)
    assert time.monotonic() - began < 120, "nobody may wait for those who are gone"
    monkeypatch.undo()
    run(experiment, tmp_path / "run", device="cpu", threads=1, resume=True)


@pytest.mark.slow
def test_errors_for_the_user_arrive_as_they_were(tmp_path):
    diverging = override(recipe("digits.s4_standard"), UNEVEN | {"optimizer.lr": "1e30"})
    with pytest.raises(NonFiniteLoss, match=r"is (nan|inf).*The last good checkpoint is"):
        run(diverging, tmp_path / "run", device="cpu", devices=2, threads=1)
    (tmp_path / "run" / "checkpoints").mkdir(exist_ok=True)
    with pytest.raises(FileExistsError, match="Continue it with --resume"):
        run(diverging, tmp_path / "run", device="cpu", devices=2, threads=1)


@pytest.mark.slow
def test_started_by_torchrun_the_command_line_prints_once(whole, tmp_path):
    settings = [f"--set={key}={value}" for key, value in UNEVEN.items()]
    verb = ["run", "digits.s4_standard", "--out", str(tmp_path / "two"), "--device", "cpu"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.run(
        [
            *(sys.executable, *torchrun, "-m", "robustssm", *verb),
            *("--devices", "2", "--threads", "1", *settings),
        ],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("evaluation.json") == 1
    assert_same(whole, tmp_path / "two")


@pytest.mark.parametrize(
    "device, devices, nodes, message",
    [
        ("cpu", 0, 1, "must be at least 1; got 0, 1"),
        ("cuda:1", 2, 1, "must be a kind of which there are 2.*got 'cuda:1'"),
        ("mps", 1, 2, "must be a kind of which there are 1"),
        ("cuda", 64, 1, "64 where torch sees . CUDA devices. Lower --devices"),
    ],
)
def test_devices_that_cannot_be_had_are_refused(tmp_path, device, devices, nodes, message):
    with pytest.raises(ValueError, match=message):
        run(
            override(recipe("digits.s4_standard"), SMALL),
            tmp_path / "run",
            device=device,
            devices=devices,
            nodes=nodes,
        )
    assert not (tmp_path / "run").exists()


def test_one_process_is_the_first_of_one():
    placement = Placement("cpu")
    assert (placement.rank, placement.processes) == (0, 1)
    assert placement.told("value") == "value"
    check_devices("cuda:1", devices=1, nodes=1)


def test_nodes_and_devices_reach_fabric(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(parallel, "in_processes", lambda *_, **named: asked.update(named))
    experiment = override(recipe("digits.s4_standard"), SMALL)
    assert run(experiment, tmp_path / "run", device="cpu", devices=3, nodes=2) == {}
    assert asked == {"device": "cpu", "processes": 3, "nodes": 2, "precision": "32-true"}


def test_a_job_survives_the_way_to_another_process(tmp_path):
    job = Job(
        experiment=override(recipe("digits.s4_standard"), SMALL),
        directory=tmp_path,
        name="name",
        overrides={"seed": "1"},
        resume=True,
        data_dir=tmp_path,
        threads=2,
        save_seconds=1.0,
    )
    assert Job.from_plain(json.loads(json.dumps(job.to_plain()))) == job


def test_micro_batches_make_the_same_run(whole, tmp_path):
    experiment = override(recipe("digits.s4_standard"), UNEVEN | {"micro_batches": "4"})
    run(experiment, tmp_path / "four", device="cpu", threads=1)
    assert_same(whole, tmp_path / "four")


def test_what_cannot_be_divided_is_refused_before_training(tmp_path):
    experiment = override(recipe("digits.s4d_awp"), SMALL | {"micro_batches": "2"})
    with pytest.raises(Inapplicable, match="Set micro_batches=1"):
        run(experiment, tmp_path / "run", device="cpu", threads=1)
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_running_out_of_memory_is_in_the_record_and_on_the_display(whole, tmp_path, monkeypatch):
    from robustssm.models.classifier import SequenceClassifier

    forward, display = SequenceClassifier.forward, Seen()

    def short(self, x):
        if self.training and len(x) > 9:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return forward(self, x)

    monkeypatch.setattr(SequenceClassifier, "forward", short)
    experiment = override(recipe("digits.s4_standard"), UNEVEN)
    run(experiment, tmp_path / "short", device="cpu", threads=1, display=display)
    monkeypatch.undo()
    assert_same(whole, tmp_path / "short")
    records = list(read_records(tmp_path / "short" / "metrics.jsonl"))
    (event,) = [r for r in records if r.kind == "out_of_memory"]
    assert (event.epoch, event.step, event.values) == (1, 1, {"micro_batches": 4})
    assert display.retries == [{"epoch": 1, "batch": 1, "micro_batches": 4}]
    RunDirectory(tmp_path / "short").rewind(epoch=0, step=event.step)
    kept = [r.kind for r in read_records(tmp_path / "short" / "metrics.jsonl")]
    assert kept == ["out_of_memory", "step"], "a run resumed in that epoch keeps the line"
