"""Probing a run: which states and splits are joined, what is shared, overrides, files, refusals."""

import json

import pytest

from robustssm.core.config import names, settings
from robustssm.core.config import override as change
from robustssm.core.errors import Inapplicable
from robustssm.diagnostics.base import Probe
from robustssm.experiment import probe as probing
from robustssm.experiment import run
from robustssm.recipes import recipe
from robustssm.records import Axis, ProbeResult, Quantity, read_json, violations
from tests.experiment.small import SMALL


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("probe") / "run"
    run(change(recipe("digits.s4_pgd"), SMALL), out, device="cpu", threads=1)
    return out


@settings
class Looking(Probe):
    """Says what it was shown; not registered, so that no other test meets it."""

    name = "looking"

    splits = ("train", "test")
    checkpoints = ("initial", "best")
    times: int = 1

    def measure(self, subject):
        subject.x_adv  # noqa: B018 - made here, so that sharing can be counted
        weight = float(subject.model.head.weight.detach().sum())
        values = (len(subject.x), float(subject.x.sum()), weight, float(self.times))
        axis = Axis(name="what", labels=("examples", "sum", "weight", "times"))
        made = Quantity(name="seen", text="What it saw.", values=values, axes=(axis,))
        return ProbeResult(probe="looking", settings=self.record(subject), quantities=(made,))


@settings
class Refusing(Probe):
    """Covers nothing."""

    name = "refusing"

    def measure(self, subject):
        raise Inapplicable("It covers no S4.")


def look(trained, monkeypatch, **options):
    known = {"looking": Looking, "refusing": Refusing}
    monkeypatch.setattr(probing, "lookup", lambda kind, name: known[name])
    monkeypatch.setattr(probing, "names", lambda kind: tuple(known))
    return probing.probe_run(trained, device="cpu", threads=1, **options)


def test_states_and_splits_are_joined_and_written(trained, monkeypatch):
    found, refused = look(trained, monkeypatch, overrides={"examples": "7"})
    seen = found["looking"].quantity("seen")
    assert [axis.name for axis in seen.axes] == ["checkpoint", "split", "what"]
    assert set(seen.where(what="examples")) == {7}
    assert seen.at(checkpoint="best", split="train", what="sum") != seen.at(
        checkpoint="best", split="test", what="sum"
    )
    weights = {
        state: seen.at(checkpoint=state, split="test", what="weight")
        for state in ("initial", "best")
    }
    assert weights["initial"] != weights["best"]
    assert refused == {"refusing": "It covers no S4."}
    written = read_json(trained / "probes" / "looking.json")
    assert ProbeResult.from_dict(written) == found["looking"]
    assert written["settings"]["examples"] == 7 and written["provenance"]["device"]
    assert not (trained / "probes" / "refusing.json").exists()


def test_probes_share_the_adversarial_examples(trained, monkeypatch):
    from robustssm.attacks.pgd import PGD

    calls = []
    perturb = PGD.perturb
    monkeypatch.setattr(
        PGD, "perturb", lambda self, *a, **k: calls.append(self.steps) or perturb(self, *a, **k)
    )
    overrides = {"examples": "4", "attack.steps": "2", "looking.times": "3"}
    found, _ = look(trained, monkeypatch, probes=["looking"], overrides=overrides)
    assert set(found["looking"].quantity("seen").where(what="times")) == {3}
    assert calls == [2] * 4  # two states, two splits


def test_the_same_run_gives_the_same_file(trained, monkeypatch):
    texts = []
    for _ in range(2):
        look(trained, monkeypatch, overrides={"examples": "5"})
        record = read_json(trained / "probes" / "looking.json")
        texts.append(json.dumps({k: v for k, v in record.items() if k != "provenance"}))
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "overrides, says",
    [
        ({"exampels": "3"}, "examples"),
        ({"looking.tims": "3"}, "times"),
        ({"attack.steps": "0"}, "steps"),
    ],
)
def test_wrong_overrides_are_refused_before_anything_runs(trained, monkeypatch, overrides, says):
    with pytest.raises(ValueError, match=says):
        look(trained, monkeypatch, overrides=overrides)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"recipe\.json"):
        probing.probe_run(tmp_path)


@pytest.mark.parametrize("recipe_name", ["digits.s4_pgd", "digits.mamba_trades"])
def test_on_trained_models_every_bound_bounds_what_attacks_reach(recipe_name, tmp_path):
    """All registered probes; `reached` is what ascent finds on the scan itself."""
    run(change(recipe(recipe_name), SMALL), tmp_path, device="cpu", threads=1)
    overrides = {"examples": "16"}
    found, refused = probing.probe_run(tmp_path, overrides=overrides, device="cpu", threads=1)
    assert found.keys() | refused.keys() == set(names("probe"))
    assert refused.keys() <= {"error_bounds"}
    bounds = 0
    for result in found.values():
        assert violations(result, tolerance=1e-6) == ()
        bounds += sum(bool(q.bounds) for q in result.quantities)
        written = read_json(tmp_path / "probes" / f"{result.probe}.json")
        assert ProbeResult.from_dict(written).to_dict() == written
    assert bounds >= (1 if refused else 7)
    assert found["error_growth"].quantity("reached").at(layer="0") > 0
