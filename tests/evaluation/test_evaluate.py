"""Evaluation: exact flags of linear models, independence of batches, verification, refusals."""

import json
import math
from contextlib import contextmanager

import pytest
import torch

from robustssm.attacks.base import Attack
from robustssm.attacks.fgsm import FGSM
from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.config import settings, to_dict
from robustssm.core.rng import Noise, Streams
from robustssm.evaluation import session as module
from robustssm.evaluation.evaluate import evaluate
from robustssm.records import EvaluationResult
from robustssm.testing.attacks import ContractClassifier

THREAT = Threat(eps=0.05)


def run(model, x, y, attacks, *, threat=THREAT, batch_size=64, **options):
    streams = Streams(0)
    return evaluate(
        model, x, y, attacks, threat=threat, streams=streams, batch_size=batch_size, **options
    )


@pytest.mark.parametrize("norm, eps, dual", [("linf", 0.05, 1), ("l2", 0.2, 2)])
def test_flags_of_a_linear_model_are_exact(norm, eps, dual):
    w = Noise(0).normal(6, dtype=torch.float64)
    x = Noise(1).uniform(200, 6, low=0.3, high=0.7, dtype=torch.float64)
    y = Noise(2).integers(200, high=2)

    def model(z):
        score = (z - 0.5) @ w
        return torch.stack((-score, score), 1)

    margin = (2 * y - 1) * ((x - 0.5) @ w)
    result = run(model, x, y, [PGD(steps=20)], threat=Threat(norm=norm, eps=eps))
    assert result.clean == tuple((margin > 0).tolist())
    robust = margin > eps * w.norm(p=dual)
    assert result.survived["pgd-20"] == tuple(robust.tolist())
    assert 0 < result.robust_accuracy < result.clean_accuracy < 1
    assert not result.warnings


def test_flags_do_not_depend_on_the_batch_size(network):
    attacks = [FGSM(), PGD(steps=4, restarts=3), PGD(steps=4, loss="margin", keep="last")]
    results = [run(*network, attacks, batch_size=size) for size in (130, 100, 37)]
    assert results[0].survived == results[1].survived == results[2].survived
    assert results[0].clean == results[1].clean == results[2].clean
    for label, accuracy in results[0].attacks.items():
        assert 0 < accuracy < results[0].clean_accuracy, label


def test_flags_do_not_depend_on_which_other_attacks_run(network):
    alone = run(*network, [PGD(steps=4)])
    among = run(*network, [FGSM(), PGD(steps=4)])
    assert alone.survived["pgd-4"] == among.survived["pgd-4"]


def test_survivors_were_right_before(network):
    result = run(*network, [PGD(steps=2)])
    for clean, survived in zip(result.clean, result.survived["pgd-2"], strict=True):
        assert clean or not survived
    assert sum(result.clean) == 130 - 26


def test_each_attack_sees_the_right_examples_and_a_few_wrong_ones(network, monkeypatch):
    monkeypatch.setattr(module, "WRONG_EXAMPLES", 7)
    model, x, y = network
    given = []

    @settings
    class Spy(Attack):
        name = "spy"

        def perturb(self, model, x, y, *, region, noise):
            given.extend((model.logits(x).argmax(1) == y).tolist())
            return x

    result = run(model, x, y, [Spy()])
    assert (sum(given), len(given)) == (104, 111)
    assert result.survived["spy"] == result.clean


def test_success_is_verified_by_a_pass_of_its_own_after_projection(network):
    """An attack that claims the world is believed only as far as the projected point is wrong."""
    model, x, y = network

    @settings
    class Boaster(Attack):
        name = "boaster"

        def perturb(self, model, x, y, *, region, noise):
            return 1 - x

    assert (
        run(model, x, y, [Boaster()], threat=Threat(eps=1e-12)).survived["boaster"]
        == run(model, x, y, []).clean
    )
    result = run(model, x, y, [Boaster()])
    moved = (x + ((1 - x) - x).clamp(-0.05, 0.05)).clamp(0, 1)
    verified = torch.tensor(result.clean) & (model(moved).argmax(1) == y)
    assert result.survived["boaster"] == tuple(verified.tolist())


def test_a_module_is_switched_to_eval_mode_and_left_as_it_was():
    model = ContractClassifier((5, 3), noise=Noise(0)).train()
    model.drop.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x, y = Noise(1).uniform(20, 5, 3, dtype=torch.float64), Noise(2).integers(20, high=4)
    result = run(model, x, y, [PGD(steps=2)])
    assert not result.warnings
    assert model.training and model.norm.training and not model.drop.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    with torch.no_grad():
        assert run(model, x, y, [PGD(steps=2)]) == result
    with torch.inference_mode():
        assert run(model, x, y, [PGD(steps=2)]) == result


def test_a_model_that_can_be_frozen_is_frozen_throughout(network):
    model, x, y = network
    depths = []

    class Freezing(torch.nn.Module):
        depth = 0

        @contextmanager
        def frozen(self):
            self.depth += 1
            yield
            self.depth -= 1

        def forward(self, z):
            depths.append(self.depth)
            return model(z)

    freezing = Freezing()
    assert run(freezing, x, y, [PGD(steps=2)]) == run(model, x, y, [PGD(steps=2)])
    assert set(depths) == {1, 2} and freezing.depth == 0


def test_a_nan_counts_as_wrong_and_is_flagged(network):
    model, x, y = network
    broken = torch.zeros(130, dtype=torch.bool)
    broken[[1, 2, 3]] = True
    assert all(run(model, x, y, []).clean[k] for k in (1, 2, 3))

    def fragile(z):
        known = (z[:, None] - x[broken]).flatten(2).abs().amax(2).amin(1) < 0.02
        return model(z).masked_fill(known[:, None], math.nan)

    result = run(fragile, x, y, [PGD(steps=2)])
    assert not any(result.clean[k] for k in (1, 2, 3))
    assert sum(result.clean) == 104 - 3
    assert {w.name: w.severity for w in result.warnings}["nan_logits"] == "invalid"


def test_progress_and_record(network):
    told = []
    result = run(*network, {"quick": FGSM()}, progress=told.append, batch_size=50)
    shares = [status.share for status in told]
    assert shares == sorted(shares) and shares[0] == 0.0 and shares[-1] == 1.0
    assert told[0].seconds_left > 0, "an estimate comes before the start"
    assert told[-1].seen == sum(result.clean) and told[-1].right == sum(result.robust)
    assert result.threat == to_dict(Threat(eps=0.05))
    assert EvaluationResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_settings_are_on_record_as_they_were_asked_for(network):
    @settings
    class Transfer(Attack):
        name = "transfer"
        source: object

        def perturb(self, model, x, y, *, region, noise):
            return x

    asked = [PGD(steps=2, step_size=0.5), "quick", Transfer(source=network[0])]
    result = run(*network, asked)
    assert result.settings["pgd-2"] == json.loads(json.dumps(to_dict(asked[0])))
    assert result.settings["quick"]["name"] == "quick", "not its resolved stages"
    held = type(network[0]).__name__
    assert result.settings["transfer"] == {"name": "transfer", "source": held}


@pytest.mark.parametrize(
    "change, says",
    [
        ({"x": lambda x: x[:0], "y": lambda y: y[:0]}, "at least one example"),
        ({"y": lambda y: y[:-1]}, "one label per example"),
        ({"y": lambda y: y[:, None]}, "one label per example"),
        ({"y": lambda y: y + 1}, "number of classes, 4"),
        ({"y": lambda y: y - 1}, "counted from 0; got -1"),
        ({"y": lambda y: y.double()}, "integer labels"),
        ({"x": lambda x: (255 * x).to(torch.uint8)}, "divided by 255"),
        ({"x": lambda x: x * 2}, r"expected values in \[0, 1\]"),
        ({"x": lambda x: x.masked_fill(x > 0.9, math.nan)}, "NaN or infinite"),
        ({"batch_size": 0}, "batch_size"),
        ({"attacks": [PGD(), PGD(step_size=0.1)]}, "'pgd-10' twice"),
        ({"attacks": {"clean": PGD()}}, "'clean'"),
        ({"model": lambda z: torch.zeros(len(z))}, r"shape \(batch, classes\)"),
        ({"model": lambda z: torch.zeros(1, 4)}, r"shape \(batch, classes\)"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, says, network):
    model, x, y = network
    x, y = change.get("x", lambda x: x)(x), change.get("y", lambda y: y)(y)
    with pytest.raises(ValueError, match=says):
        run(
            change.get("model", model),
            x,
            y,
            change.get("attacks", [PGD(steps=1)]),
            batch_size=change.get("batch_size", 64),
        )
