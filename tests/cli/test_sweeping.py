"""What a sweep shows, and how it ends."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from robustssm.cli import app as cli
from robustssm.cli.sweep_table import Board, span, summary, watching
from robustssm.cli.sweeping import seeds_of
from robustssm.sweep import Job, Outcome, Progress

RESULT = {"clean_accuracy": 0.953, "attacks": {"pgd-10": 0.712, "autoattack": 0.684}}


def jobs(count):
    return [
        Job(name=f"digits.cell{i}_pgd", recipe="r", seed=0, directory=Path(f"runs/{i}"))
        for i in range(count)
    ]


def drawn(board, width=110, height=40):
    console = Console(file=io.StringIO(), width=width, height=height, record=True)
    board._console = console
    console.print(board)
    return console.export_text()


def board_of(count, slots=2):
    return Board(Console(file=io.StringIO()), jobs(count), title="g: runs", slots=slots)


def test_every_state_is_a_line():
    board = board_of(6)
    all_ = jobs(6)
    for job in all_[:4]:
        board.started(job, 1)
    board.progressed(
        all_[0], Progress(phase="training", epoch=3, epochs=30, share=0.1, seconds_left=95)
    )
    board.progressed(all_[1], Progress(phase="evaluating", share=0.4, attack="autoattack"))
    board.ended(Outcome(job=all_[2], result=RESULT, seconds=75.0, attempts=1))
    board.ended(Outcome(job=all_[3], error="loss is not finite", seconds=3.0, attempts=1))
    board.interrupted(all_[4], "its process was killed by SIGKILL")
    board.ended(Outcome(job=all_[5], result=RESULT))
    text = drawn(board)
    lines = {i: next(x for x in text.splitlines() if f"cell{i}_" in x) for i in range(6)}
    assert "running" in lines[0] and "epoch 3/30, 1:35 left" in lines[0]
    assert "evaluating autoattack 40 %" in lines[1]
    assert "done" in lines[2] and "clean  95.3  pgd-10  71.2" in lines[2] and "1:15" in lines[2]
    assert "failed" in lines[3] and "loss is not finite" in lines[3]
    assert "waiting" in lines[4] and "again, as its process was killed" in lines[4]
    assert "before" in lines[5]
    assert "1 waiting, 2 running, 2 done, 1 failed" in text


def test_a_small_screen_shows_what_runs_and_what_failed():
    board, all_ = board_of(60), jobs(60)
    for job in all_[:30]:
        board.started(job, 1)
        error = "" if job is not all_[7] else "why"
        result = None if error else RESULT
        board.ended(Outcome(job=job, result=result, error=error, seconds=1.0, attempts=1))
    board.started(all_[50], 1)
    text = drawn(board, height=20)
    assert len(text.splitlines()) <= 20
    for shown in (50, 7, 29, 28):
        assert f"cell{shown}_" in text
    assert "cell0_" not in text
    board.whole = True
    assert all(f"cell{i}_" in drawn(board) for i in range(60))


def test_time_left_is_from_runs_of_the_same_cell():
    all_ = [
        Job(name=n, recipe="r", seed=s, directory=Path(n, str(s)))
        for s in (0, 1)
        for n in ("slow", "fast")
    ]
    board = Board(Console(file=io.StringIO()), all_, title="", slots=1)
    assert board.seconds_left() is None
    board.ended(Outcome(job=all_[0], result=RESULT, seconds=100.0, attempts=1))
    assert board.seconds_left() == pytest.approx(300.0)  # nothing is known of fast
    board.ended(Outcome(job=all_[1], result=RESULT, seconds=10.0, attempts=1))
    assert board.seconds_left() == pytest.approx(110.0)
    board.ended(Outcome(job=all_[2], result=RESULT))  # was there: says nothing of time
    assert board.seconds_left() == pytest.approx(10.0)
    board.ended(Outcome(job=all_[3], error="x", attempts=1))
    assert board.seconds_left() is None


def test_where_nobody_watches_there_are_lines():
    console = Console(file=io.StringIO(), width=60)
    (job,) = jobs(1)
    with watching(console, [job], title="title", slots=1, quiet=False) as watcher:
        watcher.started(job, 1)
        watcher.interrupted(job, "memory ran out")
        watcher.started(job, 2)
        watcher.ended(Outcome(job=job, result=RESULT, attempts=2))
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "title"
    ends = ["begins", "waits for another attempt, as memory ran out", "begins, attempt 2"]
    for line, end in zip(lines[1:4], ends, strict=True):
        assert line.endswith(end) and "0/1  digits.cell0_pgd (seed 0)" in line
    assert "1/1" in lines[4] and "clean  95.3" in lines[4]
    with watching(console, [job], title="title", slots=1, quiet=True) as watcher:
        watcher.started(job, 1)
    assert len(console.file.getvalue().splitlines()) == 5


def test_a_summary_names_every_failure():
    first, second = jobs(2)
    outcomes = [Outcome(job=first, result=RESULT), Outcome(job=second, error="why", attempts=1)]
    head, line = summary(outcomes, "worker.log", 61.0)
    assert head == "1 of 2 runs finished (1 of them before), 1 failed; 1:01"
    assert line == "failed: digits.cell1_pgd (seed 0): why"
    assert span(3725) == "1:02:05"


@pytest.mark.parametrize(
    "text, seeds", [("3", [0, 1, 2]), ("3,7,11", [3, 7, 11]), ("7,", [7]), ("0", [])]
)
def test_seeds(text, seeds):
    assert seeds_of(text) == seeds


def test_seeds_that_are_none():
    with pytest.raises(ValueError, match="--seeds 3,7,11"):
        seeds_of("three")


def called(tmp_path, *arguments):
    return CliRunner().invoke(cli.app, ["sweep", *arguments, "--out", str(tmp_path)])


def test_problems_are_an_error_of_the_user(tmp_path):
    result = called(tmp_path, "digits.s4_pdg", "--set", "epoch=3", "--seeds", "2")
    assert isinstance(result.exception, ValueError)
    assert "'digits.s4_pgd'?" in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_a_failed_run_is_an_exit_status(tmp_path, monkeypatch):
    outcome = Outcome(job=jobs(1)[0], error="why", attempts=1)
    monkeypatch.setattr("robustssm.sweep.Sweep.outcomes", lambda *a: iter([outcome]))
    result = called(tmp_path, "digits.s4_pgd", "--device", "cpu")
    assert result.exit_code == 1
    assert "0 of 1 run finished, 1 failed" in result.output and "why" in result.output
    assert "same command goes on" in result.output


def test_ctrl_c_is_an_exit_status_and_a_message(tmp_path, monkeypatch):
    def outcomes(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("robustssm.sweep.Sweep.outcomes", outcomes)
    result = called(tmp_path, "digits.s4_pgd", "--device", "cpu")
    assert result.exit_code == 130
    assert "Stopped by SIGINT; nothing is lost" in result.output
