"""Finding and reading run directories; what is damaged is named, and never fatal alone."""

import json

import pytest

from robustssm.records import read_json, write_json
from robustssm.reporting import write_report
from robustssm.reporting.load import load
from tests.reporting.synthetic import ATTACKS, attacked, curve, result, write_run


def test_reads_what_a_run_wrote(tmp_path):
    best = result(0.9, ATTACKS)
    write_run(tmp_path / "runs" / "a", best=best, scaling={"form": "scale", "activation": "relu"})
    (run,) = load([tmp_path / "runs"]).finished
    assert run.name == "a"
    assert (run.dataset, run.structure, run.method) == ("digits", "S4 + AdS-ReLU", "TRADES")
    assert run.checkpoints["best"].result == best
    assert run.checkpoints["best"].epoch == 3
    assert run.checkpoints["last"].epoch == 4
    assert [record.epoch for record in run.epochs] == [1, 2, 3, 4]
    assert run.selection == "adversarial accuracy on validation data"
    assert run.provenance.seconds == 81.5
    assert run.further == {"resumed": []}


def test_names_are_relative_and_unique(tmp_path):
    for place in ("one/a", "two/a", "two/deep/b"):
        write_run(tmp_path / place)
    paths = [tmp_path / "one", tmp_path / "two", tmp_path / "two" / "deep" / "b"]
    assert [run.name for run in load(paths).finished] == ["a", "deep/b", "two/a"]


def test_a_run_is_found_once_even_through_links(tmp_path):
    write_run(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "again").symlink_to(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    assert len(load([tmp_path / "runs", tmp_path / "runs" / "a"]).finished) == 1


def test_a_killed_run_is_unfinished_and_says_how_far_it_came(tmp_path):
    write_run(tmp_path / "a")
    half = write_run(tmp_path / "half", epochs=9)
    (half / "evaluation.json").unlink()
    lines = (half / "metrics.jsonl").read_text().splitlines(keepends=True)
    (half / "metrics.jsonl").write_text("".join(lines[:6]) + '{"kind": "ep')
    (left_out,) = load([tmp_path]).left_out
    assert (left_out.name, left_out.state) == ("half", "unfinished")
    assert "reached epoch 3 of 9" in left_out.reason


def edit(name, change):
    def damage(path):
        data = read_json(path / name)
        change(data)
        if isinstance(data, dict) and name == "evaluation.json" and "best" in data["checkpoints"]:
            moved = {key: data[key] for key in ("suites", "curves", "planned")}
            data["checkpoints"]["best"].update(moved)
        write_json(path / name, data)

    return damage


def spoil(flags):
    flags[:] = [0] * len(flags)


def replaced(name, text):
    return lambda path: (path / name).write_text(text)


def added(line):
    def damage(path):
        with (path / "metrics.jsonl").open("a") as file:
            file.write(line + "\n")

    return damage


FULL = attacked(
    0.9,
    (0.5, 0.4),
    label="quick",
    attacks=ATTACKS,
    curves=(curve("steps", (1, 10), (0.6, 0.5), attack="pgd"),),
)
DAMAGES = {
    "truncated evaluation": (replaced("evaluation.json", '{"n": 2'), "evaluation.json"),
    "evaluation is a list": (replaced("evaluation.json", "[]"), "must be an object"),
    "deep evaluation": (replaced("evaluation.json", "[" * 100_000), "evaluation.json"),
    "no recipe": (lambda path: (path / "recipe.json").unlink(), "recipe.json is missing"),
    "not text": (lambda path: (path / "recipe.json").write_bytes(b"\xff\xfe{"), "recipe.json"),
    "no provenance": (lambda path: (path / "provenance.json").unlink(), "provenance.json"),
    "thin provenance": (
        edit("provenance.json", lambda data: data.pop("command")),
        "it lacks command",
    ),
    "provenance without packages": (
        edit("provenance.json", lambda data: data.update(packages=["torch"])),
        "packages must be an object",
    ),
    "no layer name": (
        edit("recipe.json", lambda data: data["experiment"]["model"].update(layer={})),
        "must say its name",
    ),
    "seed in words": (
        edit("recipe.json", lambda data: data["experiment"].update(seed="one")),
        "experiment.seed must be an integer",
    ),
    "flags that are not flags": (
        edit("evaluation.json", lambda d: d["checkpoints"]["best"]["flags"].update(clean=["0"])),
        "flags must be 0 or 1",
    ),
    "flags of unequal length": (
        edit("evaluation.json", lambda d: d["checkpoints"]["last"]["flags"]["pgd-10"].pop()),
        "199 flags for 200 examples",
    ),
    "accuracy that is not that of the flags": (
        edit(
            "evaluation.json", lambda d: d["checkpoints"]["last"]["attacks"].update({"pgd-10": 0.9})
        ),
        "the accuracy of 'pgd-10' must be that of its flags, 0.5500; it says 0.9000",
    ),
    "numbers of another checkpoint on top": (
        edit("evaluation.json", lambda d: d["counts"].update(clean=3)),
        "must be those of checkpoint 'best'",
    ),
    "no checkpoint": (edit("evaluation.json", lambda d: d.update(checkpoints={})), "at least one"),
    "a suite that wins examples back": (
        edit("evaluation.json", lambda d: spoil(d["suites"]["quick"]["stages"]["apgd-ce"])),
        "suite 'quick' must only lose examples; at apgd-t it has others",
    ),
    "a suite without flags of its name": (
        edit("evaluation.json", lambda d: d["suites"].update(other=d["suites"]["quick"])),
        "suite 'other' must have stages, and flags of its own name",
    ),
    "a curve over other examples": (
        edit("evaluation.json", lambda d: d["curves"][0]["survived"][0].pop()),
        "the steps curve of 'pgd' must be over the same examples",
    ),
    "a curve with a point too few": (
        edit("evaluation.json", lambda d: d["curves"][0]["survived"].pop()),
        "one row of flags per value",
    ),
    "a line that is no record": (added("5"), "metrics.jsonl"),
    "a line that is no JSON": (added("{"), "line 9 must be a record"),
}


@pytest.mark.parametrize("damage, reason", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named_and_the_other_runs_are_reported(tmp_path, damage, reason):
    write_run(tmp_path / "good")
    damage(write_run(tmp_path / "bad", best=FULL))
    runs = load([tmp_path])
    assert [run.name for run in runs.finished] == ["good"]
    (left_out,) = runs.left_out
    assert (left_out.name, left_out.state) == ("bad", "damaged")
    assert reason in left_out.reason
    assert str(tmp_path) not in left_out.reason


def test_nothing_left_is_an_error_with_every_reason(tmp_path):
    (write_run(tmp_path / "x") / "evaluation.json").write_text("{")
    (write_run(tmp_path / "y") / "evaluation.json").unlink()
    with pytest.raises(ValueError, match=r"(?s)at least one finished.*x is damaged.*y is unfin"):
        load([tmp_path])


def test_an_empty_directory_and_a_missing_one_are_errors(tmp_path):
    with pytest.raises(ValueError, match="found no run directory"):
        load([tmp_path])
    with pytest.raises(ValueError, match="is not a directory"):
        load([tmp_path / "none"])


def test_a_repeated_epoch_counts_once_and_the_later_line_holds(tmp_path):
    path = write_run(tmp_path / "a", epochs=2)
    added(json.dumps({"kind": "epoch", "epoch": 2, "step": 9, "train_loss": 0.125}))(path)
    (run,) = load([tmp_path]).finished
    assert [record.values["train_loss"] for record in run.epochs][1:] == [0.125]


def test_a_run_without_metrics_is_reported(tmp_path):
    (write_run(tmp_path / "a") / "metrics.jsonl").unlink()
    assert load([tmp_path]).finished[0].epochs == ()


def test_selection_on_the_test_set_is_a_warning(tmp_path):
    write_run(tmp_path / "a", selection="test_adversarial_accuracy")
    (run,) = load([tmp_path]).finished
    assert [(name, sign.name) for name, sign in run.warnings] == [("best", "chosen_on_test")]


def test_suites_curves_and_limits_are_read(tmp_path):
    best = attacked(0.9, (0.5, 0.4), curves=FULL.curves, planned=400, diagnosed=True, data_hash="f")
    write_run(tmp_path / "a", best=best)
    (run,) = load([tmp_path]).finished
    assert run.checkpoints["best"].result == best
    assert run.examples == "f"


def test_evaluations_of_before_verdicts_are_read(tmp_path):
    path = write_run(tmp_path / "a") / "evaluation.json"
    old = read_json(path)
    for part in (old, *old["checkpoints"].values()):
        for key in ("verdict", "diagnosed", "planned", "suites", "curves", "data_hash"):
            del part[key]
    write_json(path, old)
    (run,) = load([tmp_path]).finished
    assert run.verdict == "reliable"
    assert run.checkpoints["best"].result == result(0.9, ATTACKS)
    paths = write_report([tmp_path], tmp_path / "out")
    assert "cheap checks" in paths.markdown.read_text()
