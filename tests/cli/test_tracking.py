"""Listing, comparing, budgets and TensorBoard from the command line."""

import json
import re
import sys

import pytest
from typer.testing import CliRunner

from robustssm.cli import app as cli
from tests.experiment.small import SMALL
from tests.reporting.synthetic import Flagged, result, write_run

SET = [w for k, v in SMALL.items() if k != "epochs" for w in ("--set", f"{k}={v}")]


def call(*arguments):
    done = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def line_of(name, shown):
    return next(line for line in shown.splitlines() if line.startswith(name))


@pytest.fixture
def runs(tmp_path):
    bad = Flagged(name="zero_gradients", message="none", severity="invalid")
    write_run(tmp_path / "runs" / "a", seed=7, best=result(0.9, {"pgd-10": 0.6}))
    write_run(tmp_path / "runs" / "b", best=result(0.95, {"pgd-10": 0.4}, warnings=(bad,)))
    write_run(tmp_path / "runs" / "c")
    (tmp_path / "runs" / "c" / "evaluation.json").write_text("{")
    return tmp_path / "runs"


def test_runs_are_one_line_each(runs):
    shown = call("runs", runs).output
    assert re.search(r"epochs=4 +finished +7 +90\.0 +60\.0 +reliable +1 min 22 s", shown)
    assert "unreliable" in line_of("b", shown) and "damaged" in line_of("c ", shown)
    assert "c: evaluation.json must be a JSON file" in shown
    assert call("runs", runs, "--sort", "robust").output.splitlines()[1].startswith("a")
    assert "88.0" in call("runs", runs, "--last").output
    only = call("runs", runs, "--filter", "unreliable").output
    assert line_of("b", only) and "60.0" not in only


def test_runs_as_json_lines(runs):
    found = [json.loads(line) for line in call("runs", runs, "--json").output.splitlines()]
    assert [(run["name"], run["status"]) for run in found] == [
        ("a", "finished"),
        ("b", "finished"),
        ("c", "damaged"),
    ]
    assert found[0]["best"] == {"clean": 0.9, "robust": 0.6} and found[2]["best"] is None


def test_long_overrides_are_shortened(runs):
    path = runs / "a" / "recipe.json"
    changed = {"model.layer.d_state": "8", "model.head.d_state": "9", "optimizer.lr": "1", "x": "2"}
    recipe = json.loads(path.read_text()) | {"overrides": changed | {"seed": "7", "y": "3"}}
    path.write_text(json.dumps(recipe))
    shown = line_of("a", call("runs", runs).output)
    assert "model.layer.d_state=8 model.head.d_state=9 lr=1 x=2 +1" in shown


def test_nothing_to_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "No runs in runs; `robustssm run RECIPE` makes one." in call("runs").output
    (tmp_path / "empty").mkdir()
    assert "No runs with 'x' in" in call("runs", "empty", "--filter", "x").output
    assert call("runs", "empty", "--json").output == ""
    with pytest.raises(ValueError, match="nowhere is not a directory"):
        call("runs", "nowhere")


def test_listing_needs_no_torch(runs, monkeypatch):
    monkeypatch.delitem(sys.modules, "robustssm.experiment", raising=False)
    monkeypatch.setitem(sys.modules, "robustssm.experiment", None)  # importing it would fail
    assert "finished" in call("runs", runs).output
    assert "only A right" in call("compare", runs / "a", runs / "a").output


def test_compare_shows_settings_differences_and_tests(runs):
    shown = call("compare", runs / "a", runs / "b").output
    assert re.search(r"seed +│ +7 +│ +0", shown)
    assert re.search(r"PGD-10 +│ +60\.0 +│ +40\.0 +│ \+20\.0 \[\+.*│ +40 │ +0 │ +< 0\.001", shown)
    assert "corrected for the 3 accuracies of one pair of runs" in shown
    assert "The numbers of b are unreliable" in shown
    record = json.loads(call("compare", runs / "a", runs / "b", "--json").output)
    (family,) = record["comparisons"]
    clean, pgd, worst = family["pairs"][0]["metrics"]
    assert (pgd["only_first"], pgd["only_second"]) == (40, 0)
    assert clean["difference"] == pytest.approx(-0.05) and worst["metric"] == "worst case"
    one = json.loads(call("compare", runs / "a", runs / "b", "--attack", "pgd-10", "--json").output)
    assert len(one["comparisons"][0]["pairs"][0]["metrics"]) == 2


def test_compare_over_seeds(tmp_path):
    for side, layer, up in (("a", "s4", 0.1), ("b", "mamba", 0.0)):
        for seed in range(3 if side == "a" else 4):
            best = result(0.9, {"pgd-10": 0.5 + up + 0.02 * seed * bool(up)})
            write_run(tmp_path / side / f"s{seed}", best=best, last=best, layer=layer, seed=seed)
    shown = call("compare", tmp_path / "a", tmp_path / "b").output
    assert "Mean difference over 3 seeds" in shown and "seed 2, n = 200" in shown
    assert re.search(r"PGD-10 +│ +\+12\.0 │ +2\.0 │ \[\+7\.0, \+17\.0\]", shown)
    assert "Without a partner: B: s3" in shown
    (tmp_path / "a" / "s2" / "recipe.json").unlink()
    shown = call("compare", tmp_path / "a", tmp_path / "b").output
    assert "no interval over seeds: 2 are too few, 3 are needed" in shown


def test_what_cannot_be_compared_says_why(runs, tmp_path):
    other = result(0.9, {"pgd-10": 0.6}, threat={"norm": "linf", "eps": 0.3})
    write_run(tmp_path / "d", best=other, last=other)
    with pytest.raises(ValueError, match=r"threat.eps: 0.1 in A, 0.3 in B"):
        call("compare", runs / "a", tmp_path / "d")
    with pytest.raises(ValueError, match="needs at least one finished run"):
        call("compare", runs / "a", runs / "c")


def test_a_budget_becomes_an_override_and_event_files_are_kept(tmp_path):
    pytest.importorskip("tensorboardX")
    arguments = ("run", "digits.s5_fast", "--out", tmp_path / "r", *SET, "--device", "cpu")
    done = call(*arguments, "--budget", "4.5", "--tensorboard")
    assert "budget 4.5 passes per example: epochs=2, as one costs 2 and all 4" in done.output
    recipe = json.loads((tmp_path / "r" / "recipe.json").read_text())
    assert recipe["overrides"]["epochs"] == "2" and recipe["experiment"]["epochs"] == 2
    (found,) = (tmp_path / "r" / "tensorboard").iterdir()
    assert found.stat().st_size > 500
    call("runs", tmp_path, "--tensorboard", tmp_path / "board")
    (copied,) = (tmp_path / "board" / "r").iterdir()
    assert copied.stat().st_size == found.stat().st_size
    shown = json.loads(call("show", tmp_path / "r", "--cost").output)
    assert shown == {"forward": 2, "backward": 2, "per_epoch": 2.0, "epochs": 2, "total": 4.0}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--budget", "5", "--set", "epochs=2"], r"got --budget 5 and --set epochs=2. Keep one"),
        (["--budget", "5", "--equal-budget", "digits.s4_pgd"], "One thing must decide"),
        (["--budget", "0.5"], r"must pay for an epoch of Standard, 1; got 0.5"),
        (["--equal-budget", "digits.s4_pdg"], "Did you mean 'digits.s4_pgd'"),
    ],
)
def test_budgets_that_make_no_sense(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        call("run", "digits.s4_standard", "--out", tmp_path / "r", *arguments)
    assert not (tmp_path / "r").exists()


def test_an_equal_budget_is_that_of_the_other_recipe(capsys):
    from robustssm.cli.budget import with_epochs

    like = json.loads(call("show", "digits.s4_pgd", "--cost").output)
    changes = {"seed": "1"}
    found = with_epochs("digits.s4_standard", changes, budget=None, like="digits.s4_pgd")
    assert found == {"seed": "1", "epochs": str(int(like["total"]))}
    assert with_epochs("digits.s4_standard", changes, budget=None, like=None) == changes
