"""The verbs of the poisoning laboratory: files, what they say, what is kept, what is refused."""

import json

import pytest

from robustssm.records.poisoning import PoisonResult
from tests.cli.test_app import call

SMALL = ("--set", "seeds=[242]")


def test_theory_writes_what_it_prints_and_keeps_what_is_there(tmp_path):
    shown = call("poison", "theory", "--out", tmp_path, *SMALL)
    assert shown.exit_code == 0
    assert "special / ordinary" in shown.output and "needs the tie" in shown.output
    file = tmp_path / "theory_7.json"
    result = PoisonResult.from_dict(json.loads(file.read_text()))
    assert result.summary("special").median == pytest.approx(0.0492, rel=0.01)
    assert result.provenance["version"]
    call("poison", "report", tmp_path, "--out", tmp_path / "report")
    assert "The setting of Theorem 1" in (tmp_path / "report" / "report.html").read_text()
    before = file.stat().st_mtime_ns
    call("poison", "theory", "--out", tmp_path, *SMALL, "--quiet")
    assert file.stat().st_mtime_ns == before
    call("poison", "theory", "--out", tmp_path, "--set", "seeds=[243]", "--quiet")
    changed = PoisonResult.from_dict(json.loads(file.read_text()))
    assert [run.seed for run in changed.of("special")] == [243]


def test_a_sweep_has_a_file_for_every_experiment_around_which_it_goes(tmp_path):
    shown = call("poison", "sweep", "tie_gap", "--out", tmp_path, "--set", "theory.seeds=[242]",
                 "--set", "beyond.seeds=[0]")  # fmt: skip
    assert "as drawn" in shown.output
    assert {file.name for file in tmp_path.glob("*.json")} == {
        "sweep_tie_gap_theory.json",
        "sweep_tie_gap_beyond.json",
    }


def test_what_is_not_known_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"No sweep is called 'tie'. Did you mean 'tie_gap'\?"):
        call("poison", "sweep", "tie", "--out", tmp_path)
    with pytest.raises(ValueError, match="seeds"):
        call("poison", "theory", "--out", tmp_path, "--set", "seds=[1]")
    assert not list(tmp_path.iterdir())
