"""Everything that is wrong is found before the first run begins, and told in one message."""

import json
from pathlib import Path

import pytest
from filelock import FileLock

from robustssm import sweep
from robustssm.core.config import override, to_dict
from robustssm.experiment import run
from robustssm.recipes import recipe
from robustssm.sweep import Setup, lay_out
from robustssm.sweep.check import check
from tests.experiment.small import SMALL

QUICK = SMALL | {"epochs": "1", "evaluation_examples": "8", "attacks": '["fgsm"]'}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A directory of a sweep in which one run is finished."""
    out = tmp_path_factory.mktemp("there")
    (job,) = lay_out(["digits.s4_standard"], seeds=[0], out=out, overrides=QUICK).jobs
    made = override(recipe(job.recipe), job.overrides)
    run(made, job.directory, name=job.recipe, overrides=job.overrides, device="cpu", threads=1)
    return out


def test_everything_wrong_is_listed_at_once_and_nothing_is_begun(tmp_path):
    other = tmp_path / "digits.s5_pgd" / "seed_1"
    other.mkdir(parents=True)
    (other / "checkpoints").mkdir()
    settings = to_dict(recipe("digits.s5_pgd")) | {"seed": 1, "epochs": 77}
    (other / "recipe.json").write_text(json.dumps({"experiment": settings}))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError) as error:
        list(
            sweep.run(
                ["digits.s5_pgd", "digits.s4_pdg", "mnist14.s4_pgd", "absent_module:f"],
                tmp_path,
                seeds=[0, 1],
                data_dir=tmp_path / "nowhere",
                device="gpu",
                retries=-1,
                backend="local",
                address="auto",
            )
        )
    text = str(error.value)
    for part in (
        "got 7 things",
        "Did you mean 'digits.s4_pgd'?",
        "`mnist` needs",
        "absent_module",
        "epochs: 77 there",
        "digits.s5_pgd (seed 1)",
        "No device is called 'gpu'",
        "`retries`",
        "--address",
        "Nothing was started",
    ):
        assert part in text, text
    assert sorted(tmp_path.rglob("*")) == before


def test_every_wrong_override_is_listed_once_for_all_cells(tmp_path):
    changes = {"epoch": "3", "model.d_model": "-1", "batch_size": "many", "epochs": "2"}
    jobs = lay_out(["digits.s4_*"], seeds=[0, 1], out=tmp_path, overrides=changes).jobs
    problems = check(jobs, Setup(device="cpu")).problems
    assert len(problems) == 3
    assert all("and" in p and "more:" in p for p in problems)
    for part in ("'epochs'?", "d_model", "batch_size"):
        assert sum(part in p for p in problems) == 1


def test_a_model_that_does_not_fit_its_data_is_found(tmp_path):
    changes = {"model.tokens": '{"name": "patches", "size": 3}'}
    jobs = lay_out(["digits.s4_pgd"], seeds=[0], out=tmp_path, overrides=changes).jobs
    (problem,) = check(jobs, Setup(device="cpu")).problems
    assert problem.startswith("digits.s4_pgd: ")


def test_a_finished_run_is_found(finished):
    plan = lay_out(["digits.s4_standard"], seeds=[0, 1], out=finished, overrides=QUICK)
    found = check(plan.jobs, Setup(device="cpu"))
    assert not found.problems
    assert list(found.finished) == [plan.jobs[0].directory]


def test_a_finished_sweep_starts_no_process(finished, monkeypatch):
    monkeypatch.setattr("subprocess.Popen.__init__", None)  # any use would raise
    monkeypatch.setattr("robustssm.sweep.record.commit", lambda: None)  # asks git, in a process
    outcomes = list(sweep.run(["digits.s4_standard"], finished, overrides=QUICK, device="cpu"))
    assert [o.attempts for o in outcomes] == [0]
    assert "clean" in outcomes[0].summary
    (record,) = (finished / "sweeps").glob("*.json")
    told = json.loads(record.read_text())
    assert told["status"] == "finished" and told["runs"][0]["status"] == "finished"
    record.unlink()


def _edit(path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.mark.parametrize(
    "name, change",
    [
        ("evaluation.json", lambda r: r | {"attacks": {"pgd-2": 0.5}}),
        ("evaluation.json", lambda r: r | {"test_examples": {"used": 4, "all": 32}}),
        ("evaluation.json", lambda r: r | {"planned": 8}),
        ("provenance.json", lambda r: r | {"seconds": None}),
    ],
    ids=["other attacks", "fewer examples", "out of time", "not ended"],
)
def test_what_is_not_the_whole_run_is_run(finished, tmp_path, name, change):
    (old,) = lay_out(["digits.s4_standard"], seeds=[0], out=finished, overrides=QUICK).jobs
    (job,) = lay_out(["digits.s4_standard"], seeds=[0], out=tmp_path, overrides=QUICK).jobs
    job.directory.mkdir(parents=True)
    for file in ("recipe.json", "evaluation.json", "provenance.json"):
        (job.directory / file).write_bytes((old.directory / file).read_bytes())
    assert list(check([job], Setup(device="cpu")).finished) == [job.directory]
    _edit(job.directory / name, change)
    found = check([job], Setup(device="cpu"))
    assert not found.problems and not found.finished


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_result_is_named(finished, tmp_path, content):
    (old,) = lay_out(["digits.s4_standard"], seeds=[0], out=finished, overrides=QUICK).jobs
    (job,) = lay_out(["digits.s4_standard"], seeds=[0], out=tmp_path, overrides=QUICK).jobs
    job.directory.mkdir(parents=True)
    for file in ("recipe.json", "evaluation.json", "provenance.json"):
        (job.directory / file).write_bytes((old.directory / file).read_bytes())
    (job.directory / "evaluation.json").write_text(content)
    (problem,) = check([job], Setup(device="cpu")).problems
    assert str(Path("seed_0") / "evaluation.json") in problem


def test_a_directory_in_use_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("robustssm.sweep.check._PATIENCE", 0.3)
    (job,) = lay_out(["digits.s4_standard"], seeds=[0], out=tmp_path).jobs
    job.directory.mkdir(parents=True)
    with FileLock(job.directory / ".lock"):
        (problem,) = check([job], Setup(device="cpu")).problems
    assert "another process works there" in problem
    assert not check([job], Setup(device="cpu")).problems
