"""Runs at a glance: the status from files and lock, damage that is no obstacle, order, speed."""

import json
import os
import subprocess
import sys

import pytest
from filelock import FileLock, Timeout

from robustssm.records import StepRecord
from robustssm.reporting.listing import COLUMNS, listing
from tests.reporting.synthetic import ATTACKS, result, write_run


def one(path):
    (found,) = listing([path])
    return found


def unevaluated(path, *, epochs_done, **more):
    """A run as a kill leaves it before its evaluation."""
    write_run(path, **more)
    (path / "evaluation.json").unlink()
    provenance = json.loads((path / "provenance.json").read_text())
    (path / "provenance.json").write_text(json.dumps(provenance | {"seconds": None}))
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(lines[: 2 * epochs_done]))
    return path


def test_a_finished_run_in_a_line(tmp_path):
    write_run(tmp_path / "a", seed=3, best=result(0.9, ATTACKS), last=result(0.8, {"pgd-10": 0.5}))
    run = one(tmp_path)
    assert (run.name, run.recipe, run.status, run.seed) == ("a", "digits.s4_trades", "finished", 3)
    assert (run.best.clean, run.best.robust) == (0.9, 0.55), "the worst case, not an attack's"
    assert (run.last.clean, run.last.robust) == (0.8, 0.5)
    assert run.overrides == {"epochs": "4"}
    assert (run.verdict, run.seconds, run.epoch, run.epochs) == ("reliable", 81.5, 4, 4)
    assert run.started == "2026-01-02T03:04:05+00:00"
    assert json.loads(json.dumps(run.to_dict()))["best"] == {"clean": 0.9, "robust": 0.55}


def test_no_attack_is_no_worst_case(tmp_path):
    write_run(tmp_path / "a", best=result(0.9, {}), last=result(0.9, {}))
    assert one(tmp_path).best.robust is None


def test_the_cost_on_record(tmp_path):
    path = write_run(tmp_path / "a") / "recipe.json"
    assert one(tmp_path).cost is None
    recipe = json.loads(path.read_text()) | {"cost": {"total": 330.0}}
    path.write_text(json.dumps(recipe))
    assert one(tmp_path).cost == {"total": 330.0}


def test_an_interrupted_run_says_how_far_it_came(tmp_path):
    run = one(unevaluated(tmp_path / "a", epochs_done=3))
    assert (run.status, run.epoch, run.epochs, run.best) == ("interrupted", 3, 4, None)
    assert run.progress == "interrupted 3/4"
    assert run.seconds == 3 * 2.5, "those of its epochs"


def test_a_partly_trained_run_that_was_evaluated_is_not_finished(tmp_path):
    path = write_run(tmp_path / "a")
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(lines[:4]))
    run = one(path)
    assert run.status == "interrupted" and run.best is not None
    write_run(path, early_stopping={"patience": 1})
    (path / "metrics.jsonl").write_text("".join(lines[:4]))
    assert one(path).status == "finished", "it stopped early"


def test_a_run_that_never_trained(tmp_path):
    path = unevaluated(tmp_path / "a", epochs_done=0)
    assert one(path).status == "not begun"
    (path / "checkpoints").mkdir()
    assert one(path).status == "interrupted", "within its first epoch"


HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path):
    """A directory whose lock another process holds."""
    path = unevaluated(tmp_path / "a", epochs_done=2)
    command = [sys.executable, "-c", HOLD, str(path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield path
        process.communicate()


def test_a_run_at_work_is_seen_by_its_lock(held):
    assert one(held).progress == "training 2/4"
    (held / "journal").mkdir()
    assert one(held).status == "training", "a journal of an earlier evaluation says nothing"
    write_run(held)
    assert one(held).status == "evaluating"
    with pytest.raises(Timeout):
        FileLock(held / ".lock", timeout=0).acquire()


def test_looking_leaves_no_trace(tmp_path):
    path = write_run(tmp_path / "a")
    before = sorted(p.name for p in path.iterdir())
    assert one(path).status == "finished"
    assert sorted(p.name for p in path.iterdir()) == before
    with FileLock(path / ".lock", timeout=0):
        assert one(path).status == "evaluating", "held in this very process"
    with FileLock(path / ".lock", timeout=0):
        pass
    assert one(path).status == "finished"


def _truncate(path):
    path.write_text(path.read_text()[:100])


def _line(path):
    path.write_text('{"kind": "epoch", "epoch": 1\n')


def _share(path):
    data = json.loads(path.read_text())
    data["checkpoints"]["best"]["clean_accuracy"] = 1.5
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    "file, damage, reason",
    [
        ("recipe.json", _truncate, "recipe.json must be a JSON file; it is damaged"),
        ("provenance.json", lambda path: path.unlink(), "provenance.json is missing"),
        ("evaluation.json", lambda path: path.write_text("[]"), "must be an object"),
        ("evaluation.json", _share, r"an accuracy must be in \[0, 1\]; got 1.5"),
        ("metrics.jsonl", _line, "metrics.jsonl, line 1 is damaged"),
        ("recipe.json", lambda path: path.write_text('{"experiment": 3}'), "under 'experiment'"),
    ],
)
def test_a_damaged_run_is_listed_with_its_reason(tmp_path, file, damage, reason):
    write_run(tmp_path / "good")
    damage(write_run(tmp_path / "bad") / file)
    bad, good = listing([tmp_path])
    assert (bad.status, good.status) == ("damaged", "finished")
    with pytest.raises(ValueError, match=reason):
        raise ValueError(bad.reason)
    assert str(tmp_path) not in bad.reason


def test_a_line_cut_off_by_a_kill_is_no_damage(tmp_path):
    path = unevaluated(tmp_path / "a", epochs_done=2)
    line = StepRecord(kind="epoch", epoch=3, step=30, values={"seconds": 1.0}).to_line()
    with (path / "metrics.jsonl").open("a") as file:
        file.write(line[:-7])
    assert one(path).epoch == 2


@pytest.fixture
def three(tmp_path):
    for name, clean, robust, seed in (("a", 0.7, 0.6, 2), ("b", 0.9, 0.4, 1), ("c", 0.8, 0.5, 0)):
        best = result(clean, {"pgd-10": robust})
        write_run(tmp_path / "x" / name, best=best, seed=seed, method="trades")
    unevaluated(tmp_path / "x" / "d", epochs_done=1, method="standard", seed=3)
    return tmp_path


@pytest.mark.parametrize(
    "column, order",
    [
        ("name", "abcd"),
        ("clean", "bcad"),
        ("robust", "acbd"),
        ("seed", "cbad"),
        ("status", "abcd"),
        ("time", "dabc"),
        ("recipe", "dabc"),
        ("verdict", "abcd"),
        ("started", "abcd"),
    ],
)
def test_order(three, column, order):
    assert column in COLUMNS
    assert [run.name[-1] for run in listing([three], sort=column)] == list(order)


def test_filter(three):
    def found(text):
        return [run.name for run in listing([three], filter=text)]

    assert found("X/A") == ["x/a"] and found("trades") == ["x/a", "x/b", "x/c"]
    assert found("interrupted") == ["x/d"] and found("epochs=4") == ["x/a", "x/b", "x/c", "x/d"]
    assert found("nothing of that name") == []


def test_bad_requests(three):
    with pytest.raises(ValueError, match=r"No column is called 'cleen'. Did you mean 'clean'\?"):
        listing([three], sort="cleen")
    with pytest.raises(ValueError, match="is not a directory"):
        listing([three / "nowhere"])


def test_a_hundred_runs_are_listed_at_once_and_without_torch(tmp_path):
    for at in range(100):
        write_run(tmp_path / f"run{at}", seed=at)
    code = (
        "import json, sys, time; start = time.perf_counter(); from pathlib import Path\n"
        "from robustssm.reporting.listing import listing\n"
        "found = listing([Path(sys.argv[1])])\n"
        "print(json.dumps([time.perf_counter() - start, len(found), 'torch' in sys.modules]))"
    )
    seconds = []
    for _ in range(3):
        command = [sys.executable, "-c", code, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=True)
        took, count, torch = json.loads(done.stdout)
        assert (count, torch) == (100, False)
        seconds.append(took)
    assert min(seconds) < 2.0  # 0.3 s on an idle core; this is a guard against reading all flags
