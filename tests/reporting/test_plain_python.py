"""The room as users have it: without torch, and without the type checks that tests add."""

import json
import os
import subprocess
import sys

from tests.reporting.synthetic import attacked, curve, write_run


def run(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_whole_report_needs_no_torch(tmp_path):
    write_run(tmp_path / "runs" / "a")
    code = (
        "import json, sys; from pathlib import Path\n"
        "from robustssm.reporting import write_report\n"
        "paths = write_report([Path(sys.argv[1])], Path(sys.argv[2]))\n"
        "print(json.dumps([paths.html.name, paths.html.exists(), paths.markdown.exists(),"
        " 'torch' in sys.modules, 'matplotlib.pyplot' in sys.modules]))"
    )
    found = run(code, str(tmp_path / "runs"), str(tmp_path / "out"))
    assert found == ["report.html", True, True, False, False]


def test_importing_the_room_costs_nothing():
    heavy = "('torch', 'matplotlib', 'jinja2', 'pydantic', 'numpy')"
    code = (
        "import json, sys, robustssm.reporting\n"
        f"print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    )
    assert run(code) == []


def test_figures_that_are_no_numbers_are_damage(tmp_path):
    path = write_run(tmp_path / "a")
    record = {"kind": "epoch", "epoch": 9, "step": 1, "train_loss": "low"}
    write_run(tmp_path / "b")
    for name, change in (("a", {}), ("b", {"epoch": "nine", "train_loss": 1.0})):
        with (tmp_path / name / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record | change) + "\n")
    write_run(tmp_path / "good")
    code = (
        "import json, sys; from pathlib import Path\n"
        "from robustssm.reporting.load import load\n"
        "print(json.dumps([run.reason for run in load([Path(sys.argv[1])]).left_out]))"
    )
    number, epoch = run(code, str(path.parent))
    assert "epoch 9: train_loss must be a number" in number
    assert "metrics.jsonl" in epoch


def test_evaluations_of_words_are_damage(tmp_path):
    best = attacked(0.9, (0.5, 0.4), curves=(curve("eps", (0.1, 0.2), (0.6, 0.5)),))
    changes = (
        (
            "a",
            lambda part: part["curves"][0]["values"].__setitem__(0, "ten"),
            "must be over numbers",
        ),
        ("b", lambda part: part["curves"][0].update(axis=["eps"]), "must name its axis"),
        ("c", lambda part: part.update(planned="many"), "planned must be a number of examples"),
    )
    for name, change, _ in changes:
        path = write_run(tmp_path / name, best=best) / "evaluation.json"
        data = json.loads(path.read_text())
        change(data["checkpoints"]["best"])
        path.write_text(json.dumps(data))
    write_run(tmp_path / "good", best=best)
    code = (
        "import json, sys; from pathlib import Path\n"
        "from robustssm.reporting.load import load\n"
        "runs = load([Path(sys.argv[1])])\n"
        "print(json.dumps([len(runs.finished), [run.reason for run in runs.left_out]]))"
    )
    finished, reasons = run(code, str(tmp_path))
    assert finished == 1
    for (_, _, expected), reason in zip(changes, reasons, strict=True):
        assert expected in reason
