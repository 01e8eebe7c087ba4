"""The verbs of the poisoning laboratory: files, what they say, what is kept, what is refused."""

import json

import numpy as np
import pytest
import torch

from robustssm.core.rng import Noise
from robustssm.records.audit import AuditResult, DefenceResult
from robustssm.records.brewing import BrewingResult
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


def test_audit_names_the_planted_sequences_and_says_so_by_its_status(tmp_path):
    noise = Noise(0)
    rows = torch.zeros(60, 8)
    rows[:, :5] = noise.normal(60, 5)
    rows[[7, 31]] = torch.eye(8)[6]
    np.save(tmp_path / "mine.npy", rows.numpy())
    shown = call("poison", "audit", tmp_path / "mine.npy", "--out", tmp_path)
    assert shown.exit_code == 1 and "2 of 60 sequences are suspicious" in shown.output
    result = AuditResult.from_dict(json.loads((tmp_path / "audit_mine.json").read_text()))
    assert {finding.index for finding in result.findings} == {7, 31}
    rows[[7, 31]] = rows[[8, 32]]
    np.save(tmp_path / "clean.npy", rows.numpy())
    assert call("poison", "audit", tmp_path / "clean.npy", "--out", tmp_path).exit_code == 0
    (tmp_path / "bad.csv").write_text("1,2,3\n1,two,3\n")
    with pytest.raises(ValueError, match="row 2, column 2"):
        call("poison", "audit", tmp_path / "bad.csv", "--out", tmp_path)


def test_brewing_keeps_what_is_finished_and_prints_arms_and_pairs(tmp_path):
    settings = {
        "dataset.train_limit": "80",
        "dataset.test": "60",
        "clean": "20",
        "epochs": "2",
        "extra_epochs": "0",
        "brewing.poisons": "10",
        "brewing.targets": "10",
        "brewing.group_size": "10",
        "brewing.iterations": "2",
        "brewing.restarts": "1",
        "model.d_model": "8",
        "model.num_layers": "1",
    }
    words = [word for item in settings.items() for word in ("--set", "=".join(item))]
    command = ("poison", "brew", "small", "--seeds", 1, "--out", tmp_path, *words)
    shown = call(*command, "--device", "cpu")
    assert "poisoned minus" in shown.output and "unregularised" in shown.output
    file = tmp_path / "brewing_small_s4d.json"
    first = BrewingResult.from_dict(json.loads(file.read_text()))
    call(*command, "--device", "cpu", "--quiet")
    again = BrewingResult.from_dict(json.loads(file.read_text()))
    assert again.arms == first.arms
    with pytest.raises(ValueError, match=r"No scale is called 'smal'. Did you mean 'small'\?"):
        call("poison", "brew", "smal", "--out", tmp_path)


def test_defences_are_shown_detector_by_detector(tmp_path):
    shown = call("poison", "defences", "--out", tmp_path, "--set", "beyond.seeds=[0,1]",
                 "--set", "theory.seeds=[242]", "--set", "beyond.stop.max_steps=200",
                 "--set", 'detectors=["tail energy"]')  # fmt: skip
    assert "tail energy" in shown.output and "error / clean" in shown.output
    assert DefenceResult.from_dict(json.loads((tmp_path / "defences.json").read_text())).defences
