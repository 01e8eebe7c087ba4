"""Exported records say in a report what the runs themselves say, and are much smaller."""

import json
from pathlib import Path

import pytest

from robustssm.records import StepRecord
from robustssm.records.export import export


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    for seed in (0, 1):
        run = root / "digits.s4_pgd" / f"seed_{seed}"
        (run / "checkpoints" / "best").mkdir(parents=True)
        (run / "checkpoints" / "best" / "model.safetensors").write_bytes(b"0" * 5000)
        (run / "probes").mkdir()
        (run / "probes" / "spectrum.json").write_text('{"radius": NaN}')
        (run / "recipe.json").write_text(json.dumps({"recipe": "digits.s4_pgd"}, indent=4))
        (run / "provenance.json").write_text(json.dumps({"seed": seed}))
        (run / "evaluation.json").write_text('{"clean_accuracy": 0.9}')
        lines = [
            StepRecord(kind="step", epoch=1, step=10, values={"loss": 1.0}),
            StepRecord(kind="epoch", epoch=1, step=20, values={"loss": 1 / 3, "nan": float("nan")}),
        ]
        (run / "metrics.jsonl").write_text("".join(f"{line.to_line()}\n" for line in lines))
    unfinished = root / "digits.dss_pgd" / "seed_0"
    unfinished.mkdir(parents=True)
    (unfinished / "recipe.json").write_text("{}")
    return root


def test_a_copy_holds_what_reports_read_and_nothing_else(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    done = list(export([runs], out))
    assert [each.copy for each in done] == [out / "digits.s4_pgd" / f"seed_{s}" for s in (0, 1)]
    copy = done[1].copy
    files = sorted(path.name for path in copy.rglob("*"))
    assert files == ["evaluation.json", "metrics.jsonl", "provenance.json", "recipe.json"]
    assert json.loads((copy / "provenance.json").read_text()) == {"seed": 1}
    (line,) = (copy / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] == pytest.approx(1 / 3, abs=1e-7)
    assert "NaN" in line
    assert done[1].bytes == sum(path.stat().st_size for path in copy.iterdir())


def test_a_published_command_does_not_say_where_a_home_lies(runs: Path, tmp_path: Path) -> None:
    said = "sweep digits.table1 --out /srv/me/runs/a --data-dir=/data/ --set eps=8/255 './b/c'"
    run = runs / "digits.s4_pgd" / "seed_0"
    (run / "provenance.json").write_text(json.dumps({"command": said, "resumed": []}))
    nested = {"provenance": {"command": said}, "checkpoints": [{"command": said}], "path": "/kept"}
    (run / "evaluation.json").write_text(json.dumps(nested))
    (done,) = export([run], tmp_path / "out")
    wanted = "sweep digits.table1 --out a --data-dir=data --set eps=8/255 './b/c'"
    assert json.loads((done.copy / "provenance.json").read_text())["command"] == wanted
    assert json.loads((done.copy / "evaluation.json").read_text()) == {
        "provenance": {"command": wanted},
        "checkpoints": [{"command": wanted}],
        "path": "/kept",
    }


def test_probes_are_copied_on_request(runs: Path, tmp_path: Path) -> None:
    done = list(export([runs / "digits.s4_pgd" / "seed_0"], tmp_path / "out", probes=True))
    assert (done[0].copy / "probes" / "spectrum.json").read_text() == '{"radius":NaN}\n'
    assert done[0].copy.name == "seed_0"


def test_studies_are_copied_too(tmp_path: Path) -> None:
    study = {"study": "theory", "sweep": "", "runs": [{"seed": 0, "error": 0.12345678901234}]}
    folder = tmp_path / "my" / "poison"
    folder.mkdir(parents=True)
    (folder / "theory_7.json").write_text(json.dumps(study, indent=1))
    (folder / "other.json").write_text("{}")
    (done,) = export([tmp_path / "my"], tmp_path / "out")
    assert done.copy == tmp_path / "out" / "poison" / "theory_7.json"
    assert json.loads(done.copy.read_text())["runs"] == [{"seed": 0, "error": 0.1234568}]
    (again,) = export([folder / "theory_7.json"], tmp_path / "single")
    assert again.copy.read_text() == done.copy.read_text()
    with pytest.raises(ValueError, match=r"other\.json must be the result of a poisoning study"):
        list(export([folder / "other.json", folder], tmp_path / "out"))
    (folder / "theory_7.json").write_text("{")
    with pytest.raises(ValueError, match=r"theory_7\.json"):
        list(export([folder], tmp_path / "out"))


def test_one_name_twice_is_refused(runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    list(export([runs], other))
    with pytest.raises(ValueError, match="different names"):
        list(export([runs, other], tmp_path / "out"))


def test_nothing_finished_is_said(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one finished run"):
        list(export([runs / "digits.dss_pgd"], tmp_path / "out"))
    with pytest.raises(ValueError, match="not a directory"):
        list(export([runs / "nowhere"], tmp_path / "out"))


def test_a_damaged_record_is_named(runs: Path, tmp_path: Path) -> None:
    (runs / "digits.s4_pgd" / "seed_1" / "evaluation.json").write_text("{")
    with pytest.raises(ValueError, match=r"seed_1/evaluation\.json"):
        list(export([runs], tmp_path / "out"))
