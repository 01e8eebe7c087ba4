"""Ray: what a worker refuses, and the same numbers as without Ray."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from robustssm import __version__
from robustssm.sweep import Job, Setup
from robustssm.sweep.cluster import task
from tests.experiment.small import SMALL
from tests.experiment.test_run import same_weights

QUICK = SMALL | {"epochs": "1", "evaluation_examples": "8", "attacks": '["fgsm"]'}
HAS_RAY = importlib.util.find_spec("ray") is not None


class News:
    def __init__(self):
        self.put_in = []

    def put(self, item):
        self.put_in.append(item)


def request(tmp_path, recipe, **changes):
    job = Job(name="n", recipe=recipe, seed=0, directory=tmp_path / "run")
    (tmp_path / "probe").touch()
    return {
        "job": job.to_dict(),
        "setup": Setup(device="cpu", data_dir=tmp_path / "data").to_dict(),
        "probe": str(tmp_path / "probe"),
        "version": __version__,
    } | changes


def test_a_worker_that_does_not_see_the_directory_says_so(tmp_path):
    reply = task(request(tmp_path, "digits.s4_pgd", probe=str(tmp_path / "x" / "y")), News())
    assert "see the sweep's directory" in reply["error"] and not reply["transient"]
    assert not (tmp_path / "run").exists()


def test_a_worker_of_another_version_says_so(tmp_path):
    reply = task(request(tmp_path, "digits.s4_pgd", version="0.0.1"), News())
    assert "same robustssm" in reply["error"] and "0.0.1" in reply["error"]


def test_a_worker_without_the_data_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    reply = task(request(tmp_path, "mnist14.s4_pgd"), News())
    assert "`mnist` needs" in reply["error"] and not reply["transient"]


def sweep(out, *arguments):
    words = [w for item in QUICK.items() for w in ("--set", "=".join(item))]
    command = [sys.executable, "-m", "robustssm", "sweep", "digits.s4_pgd", "--out", str(out)]
    return subprocess.run(
        [*command, "--seeds", "2", "--jobs", "2", "--device", "cpu", *words, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
    )


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_the_message_says_what_to_install(tmp_path):
    done = sweep(tmp_path, "--backend", "ray")
    assert done.returncode == 2 and "robustssm[cluster]" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="needs Ray")
def test_two_workers_of_ray_give_the_numbers_of_processes(tmp_path):
    by_ray = sweep(tmp_path / "ray", "--backend", "ray")
    assert by_ray.returncode == 0, by_ray.stdout + by_ray.stderr
    assert sweep(tmp_path / "local").returncode == 0
    for seed in (0, 1):
        places = [tmp_path / w / "digits.s4_pgd" / f"seed_{seed}" for w in ("ray", "local")]
        same_weights(*places)
        flags = [json.loads((p / "evaluation.json").read_text())["flags"] for p in places]
        assert flags[0] == flags[1]
    assert not list((tmp_path / "ray").glob(".seen_by_all*"))


@pytest.mark.skipif(not HAS_RAY, reason="needs Ray")
def test_a_cluster_that_is_not_there_is_named_with_everything_else(tmp_path):
    done = sweep(tmp_path, "--address", "127.0.0.1:9", "--set", "epoch=3")
    assert done.returncode == 2
    assert "lead to a Ray cluster" in done.stderr and "'epochs'?" in done.stderr
