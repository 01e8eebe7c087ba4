"""Every flag is raised by the failure it names, and by no healthy evaluation."""

import pytest
import torch

from robustssm.attacks.base import Attack
from robustssm.attacks.fgsm import FGSM
from robustssm.attacks.pgd import PGD
from robustssm.attacks.square import Square
from robustssm.attacks.threat import Threat
from robustssm.core.config import settings
from robustssm.core.rng import Noise, Streams, global_stream
from robustssm.evaluation import reliability
from robustssm.evaluation.evaluate import evaluate
from robustssm.evaluation.reliability import Outcome, stage_flags
from robustssm.testing.attacks import ContractClassifier
from tests.attacks.digits_net import digits_net

THREAT = Threat(eps=0.05)


def flags(model, x, y, attacks=(), *, threat=THREAT, batch_size=64):
    result = evaluate(
        model, x, y, attacks, threat=threat, streams=Streams(0), batch_size=batch_size
    )
    for flag in result.warnings:
        assert flag.message.count(".") >= 2 or ":" in flag.message, "what it means, what to do"
    return {flag.name: flag.severity for flag in result.warnings}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_healthy_evaluation_raises_none(network, dtype):
    model, x, y = network
    model.first, model.second = model.first.to(dtype), model.second.to(dtype)
    attacks = [FGSM(), PGD(steps=2), PGD(steps=10), PGD(steps=10, restarts=3)]
    assert flags(model, x.to(dtype), y, attacks) == {}


def test_a_saturated_loss_hides_errors(network):
    """Logits times 10,000: cross-entropy is flat in float32, the margin is not."""
    model, x, y = network
    model.first, model.second = model.first.float(), model.second.float() * 1e4
    x = x.float()
    result = evaluate(
        model,
        x,
        y,
        [PGD(steps=10, keep="last"), PGD(steps=10, loss="margin", keep="last")],
        threat=THREAT,
        streams=Streams(0),
        batch_size=64,
    )
    assert {f.name: f.severity for f in result.warnings} == {"saturated_loss": "invalid"}
    assert result.attacks["pgd-10"] > result.attacks["pgd-10-margin"] + 0.2


def test_non_finite_gradients(network):
    model, x, y = network
    x.view(130, -1)[:, 0] = 0.25

    def cusp(z):  # sqrt at 0 has an infinite slope, and 0 * inf is NaN
        return model(z) + 0 * (z.flatten(1)[:, :1] - 0.25).clamp(min=0).sqrt()

    assert flags(cusp, x, y) == {"non_finite_gradients": "invalid"}


def test_no_gradient(network):
    model, x, y = network
    assert flags(lambda z: model(z).detach(), x, y) == {"no_gradient": "warning"}
    assert flags(lambda z: model(z.detach()), x, y) == {"no_gradient": "warning"}


def test_the_verdict_on_a_detached_branch(network):
    model, x, y = network

    def half_cut(z):
        return model(z) + model(z.flip(-1)).detach()

    result = evaluate(half_cut, x, y, [], threat=THREAT, streams=Streams(0), batch_size=64)
    assert [flag.name for flag in result.warnings] == ["wrong_gradients"]
    assert result.verdict == "unreliable"
    assert evaluate(model, x, y, [], threat=THREAT, streams=Streams(0)).verdict == "reliable"


def test_a_function_around_a_module_in_train_mode_is_noticed():
    model = ContractClassifier((5, 3), noise=Noise(0)).train()
    x, y = Noise(1).uniform(40, 5, 3, dtype=torch.float64), Noise(2).integers(40, high=4)
    with global_stream(Noise(3)):
        assert flags(lambda z: model(z), x, y) == {"random_outputs": "invalid"}
        assert flags(model, x, y) == {}
    model.drop.eval()
    assert flags(lambda z: model(z), x, y) == {"batch_dependent": "invalid"}


def test_another_function_where_gradients_are_enabled(network):
    model, x, y = network
    assert flags(lambda z: model(z) * (1 + 0.1 * torch.is_grad_enabled()), x, y) == {
        "gradient_path": "invalid"
    }


def test_probabilities(network):
    model, x, y = network
    assert flags(lambda z: model(z).softmax(1), x, y) == {"probabilities": "warning"}


@settings
class Leaking(Attack):
    """Writes the label into the first pixel, as a model trained on weak attacks reads it."""

    name = "leaking"

    def perturb(self, model, x, y, *, region, noise):
        x = x.clone()
        x.view(len(x), -1)[:, 0] += 0.01 * (1 + y)
        return x


def test_accuracy_that_rises_under_attack(network):
    """The signature of published rows whose robust accuracy is far above clean accuracy."""
    model, x, y = network
    x.view(130, -1)[:, 0] = 0.5

    def reader(z):
        code = ((z.flatten(1)[:, 0] - 0.5) / 0.01).round().long()
        written = torch.nn.functional.one_hot((code - 1).clamp(min=0), 4).double()
        return model(z) + 100 * written * (code > 0)[:, None]

    seen = evaluate(reader, x, y, [Leaking()], threat=THREAT, streams=Streams(0), batch_size=64)
    assert seen.attacks["leaking"] == seen.clean_accuracy < 0.9
    (flag,) = seen.warnings
    assert (flag.name, flag.severity) == ("accuracy_rises", "invalid")
    assert "right on 100.0%" in flag.message


def outcome(survived, *, repaired=0, tried=0):
    return Outcome(survived=torch.tensor(survived), repaired=repaired, tried=tried, nan=0)


def warnings_of(attacks, outcomes, *, clean, n):
    preflight = reliability.preflight(
        lambda z: z, torch.tensor([[2.0, -1.0]]), torch.tensor([0]), batch_size=1
    )
    found = reliability.warnings(preflight, attacks, outcomes, clean=clean, n=n, nan=0)
    return [flag.name for flag in found]


@pytest.mark.parametrize(
    "repaired, tried, survived, rises",
    [
        (40, 40, 10, True),
        (3, 40, 10, False),
        (40, 40, 0, True),
        (20, 40, 0, False),
        (12, 12, 10, True),
    ],
)
def test_repairs_must_outweigh_what_was_fooled(repaired, tried, survived, rises):
    """10 of 50 examples are right; repairs are scaled up from those tried, and beyond chance."""
    flags = [k < survived for k in range(50)]
    outcomes = {"a": outcome(flags, repaired=repaired, tried=tried)}
    found = warnings_of({"a": PGD()}, outcomes, clean=10, n=50)
    assert found == (["accuracy_rises"] if rises else [])


@pytest.mark.parametrize(
    "weak, strong, comparable",
    [
        (FGSM(), PGD(steps=10), True),
        (FGSM(), PGD(steps=1, step_size=2.0), False),
        (FGSM(), PGD(steps=7), False),
        (FGSM(), PGD(steps=7, start="none"), True),
        (PGD(steps=10), PGD(steps=50), True),
        (PGD(steps=10), PGD(steps=10, restarts=3), True),
        (PGD(steps=10), PGD(steps=50, loss="margin"), False),
        (PGD(steps=10, restarts=3), PGD(steps=50), False),
    ],
)
def test_a_larger_search_that_finds_less(weak, strong, comparable):
    n = 100
    fewer, more = [k < 40 for k in range(n)], [k < 60 for k in range(n)]
    attacks = {"weak": weak, "strong": strong}
    surprising = {"weak": outcome(fewer), "strong": outcome(more)}
    found = warnings_of(attacks, surprising, clean=n, n=n)
    assert found == (["stronger_is_weaker"] if comparable else [])
    expected = {"weak": outcome(more), "strong": outcome(fewer)}
    assert warnings_of(attacks, expected, clean=n, n=n) == []
    chance = {"weak": outcome(fewer), "strong": outcome([k < 44 for k in range(n)])}
    assert warnings_of(attacks, chance, clean=n, n=n) == []


def first(count, n=100):
    return [k < count for k in range(n)]


@pytest.mark.parametrize(
    "attacks, survivors, wins",
    [
        ({"pgd": PGD(), "square": Square(queries=5)}, (60, 40), True),
        ({"pgd": PGD(), "square": Square(queries=5)}, (60, 55), False),
        ({"pgd": PGD(), "square": Square(queries=5)}, (40, 60), False),
        ({"fgsm": FGSM(), "square": Square(queries=5)}, (60, 20), False),
        ({"fgsm": FGSM(), "pgd": PGD(), "square": Square(queries=5)}, (80, 60, 40), True),
        ({"pgd": PGD(), "more": PGD(steps=20), "square": Square(queries=5)}, (60, 40, 40), False),
        ({"square": Square(queries=5)}, (20,), False),
    ],
)
def test_a_black_box_that_beats_all_gradients(attacks, survivors, wins):
    outcomes = {k: outcome(first(s)) for k, s in zip(attacks, survivors, strict=True)}
    found = warnings_of(attacks, outcomes, clean=100, n=100)
    assert found == (["black_box_wins"] if wins else [])


@pytest.mark.parametrize(
    "reached, broken, severity",
    [
        (327, 0, None),  # what Square did in the reference's run on the network of the tests
        (20, 0, None),
        (10, 2, None),  # 1 in 230 by chance
        (10, 3, "invalid"),
        (100, 5, None),
        (100, 6, "warning"),
        (1000, 21, None),
        (1000, 22, "warning"),
        (1000, 100, "invalid"),
        (1, 1, None),
        (0, 0, None),
    ],
)
def test_a_black_box_stage_that_breaks_more_than_chance(reached, broken, severity):
    n = 1200
    before, after = tuple(first(reached, n)), tuple(first(reached - broken, n))
    stages = {"clean": tuple(first(n, n)), "apgd-ce": before, "square": after}
    found = stage_flags(stages, {"square"})
    assert [f.severity for f in found] == ([severity] if severity else [])
    del stages["clean"]
    assert stage_flags(stages, {"square"}) == found, "the row of the clean input is optional"
    assert stage_flags(stages, set()) == ()


def test_a_black_box_stage_before_every_gradient_is_no_surprise():
    stages = {"clean": (True,) * 50, "square": (False,) * 50, "apgd-ce": (False,) * 50}
    assert stage_flags(stages, {"square"}) == ()


def test_stages_of_the_reference_are_as_expected():
    """Survivors after every stage of the reference AutoAttack on the network of the tests."""
    _, _, _, stored = digits_net()
    for threat in ("Linf_0.15", "L2_1.0"):
        stages = {
            name: tuple(stored[f"survive_{threat}_{name}"].tolist())
            for name in ("clean", "apgd-ce", "apgd-t", "fab-t", "square")
        }
        assert stage_flags(stages, {"square"}) == ()


def test_gradient_masking_is_seen_by_the_order_of_attacks(network):
    """Steps longer than the ball with gradients that point the wrong way after the first."""
    model, x, y = network

    def misleading(z):  # away from the data, the gradient is turned around
        logits = model(z)
        at_data = (z[:, None] - x).flatten(2).abs().amax(2).amin(1) < 1e-9
        return torch.where(at_data[:, None], logits, 2 * logits.detach() - logits)

    attacks = [FGSM(), PGD(steps=10, start="none", keep="last")]
    assert flags(misleading, x, y, attacks) == {
        "stronger_is_weaker": "warning",
        "wrong_gradients": "invalid",  # the preflight looks beside the data
    }
