"""The recorded loop's attack: where nothing can be recorded it is PGD, bit for bit."""

import gc
import weakref

import pytest
import torch

from robustssm.attacks import pgd_captured
from robustssm.attacks.pgd import PGD
from robustssm.attacks.pgd_captured import PGDCaptured
from robustssm.attacks.threat import Threat
from robustssm.core.rng import Noise, Streams
from robustssm.models.presets import modern

THREAT = Threat(eps=0.1)


def problem():
    config = modern("s4", d_model=16, num_layers=1, d_state=4)
    model = config.build(shape=(1, 4, 4), num_classes=3, noise=Noise(0)).eval()
    x = Noise(1).uniform(5, 1, 4, 4)
    noise = Streams(0).examples("attack", indices=torch.arange(5))
    return model, x, torch.tensor([0, 1, 2, 0, 1]), noise


@pytest.mark.parametrize("loss, start", [("cross_entropy", "uniform"), ("kl", "normal")])
def test_on_a_cpu_it_is_pgd(loss, start):
    model, x, y, noise = problem()
    found = [
        kind(steps=4, loss=loss, start=start, keep="last")(model, x, y, threat=THREAT, noise=noise)
        for kind in (PGD, PGDCaptured)
    ]
    assert torch.equal(*found)
    assert not torch.equal(found[0], x)
    (loop,) = pgd_captured._loops[model].values()
    assert loop.reason == "a plain loop was asked for."
    attack = PGDCaptured(steps=4, loss=loss, start=start)
    assert torch.equal(attack(model, x, y, threat=THREAT, noise=noise), found[0])
    assert loop.reason == "only cuda tensors can be recorded; some lie on cpu."


def test_less_precision_moves_the_point_but_not_out_of_the_threat():
    model, x, y, noise = problem()
    threat = Threat(norm="l2", eps=0.5)

    def search(precision):
        return PGDCaptured(steps=4, precision=precision)(model, x, y, threat=threat, noise=noise)

    full, rough = search("fp32"), search("bf16")
    assert (threat.distance(rough, x) <= 0.5 + 1e-6).all()
    assert 0 < (rough - full).abs().max() < 0.1
    assert torch.equal(search("tf32"), full), "a CPU has no TF32"


def test_functions_and_restricted_threats_run_step_by_step():
    model, x, y, noise = problem()
    plain = PGDCaptured(steps=2)(lambda z: model(z), x, y, threat=THREAT, noise=noise)
    assert torch.equal(plain, PGDCaptured(steps=2)(model, x, y, threat=THREAT, noise=noise))
    mask = torch.zeros_like(x)
    mask[..., 0] = 1
    found = PGDCaptured(steps=2)(model, x, y, threat=THREAT, noise=noise, mask=mask > 0)
    assert torch.equal(found[..., 1:], x[..., 1:]) and not torch.equal(found, x)


def test_it_keeps_no_model_alive():
    model, x, y, noise = problem()
    PGDCaptured(steps=1)(model, x, y, threat=THREAT, noise=noise)
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None


def test_a_rising_eps_leaves_nothing_behind():
    model, x, y, noise = problem()
    attack = PGDCaptured(steps=1)
    for step in range(1, 10):
        attack(model, x, y, threat=Threat(eps=0.01 * step), noise=noise)
    loops = pgd_captured._loops[model]
    assert len(loops) == pgd_captured._KEPT
    assert {loop.reason for loop in loops.values()} == {"a plain loop was asked for."}


def test_passes_are_counted_and_other_rules_refused():
    from robustssm.attacks.access import Access

    model, x, y, noise = problem()
    access = Access(model)
    PGDCaptured(steps=3)(access, x, y, threat=THREAT, noise=noise)
    assert (access.ledger.forwards, access.ledger.backwards) == (15, 15)
    with pytest.raises(ValueError, match="must keep the last iterate of one run"):
        PGDCaptured(keep="best")
    with pytest.raises(ValueError, match="restarts=2"):
        PGDCaptured(restarts=2)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_on_a_gpu_it_is_recorded_and_follows_the_parameters(precision):
    model, x, y, noise = problem()
    model, x, y = model.cuda(), x.cuda(), y.cuda()
    attack = PGDCaptured(steps=4, precision=precision)
    for call in range(3):
        found = attack(model, x, y, threat=THREAT, noise=noise)
        (loop,) = pgd_captured._loops[model].values()
        assert (loop.reason == "") == (call > 0)
        if precision == "fp32":
            plain = PGD(steps=4, keep="last")(model, x, y, threat=THREAT, noise=noise)
            torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
