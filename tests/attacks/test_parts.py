"""Attacks in parts of the batch: what the whole batch gives, and the same bits on any threads."""

import threading

import pytest
import torch
from torch import nn

from robustssm.attacks import parts
from robustssm.attacks.apgd import APGD
from robustssm.attacks.parts import attack_in_parts
from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.placement import cpu_threads
from robustssm.core.rng import Noise, Streams, global_stream
from robustssm.models.presets import modern

THREAT = Threat(norm="l2", eps=0.5)
ATTACKS = [
    PGD(steps=3, keep="last"),
    PGD(steps=3, restarts=2),
    PGD(steps=2, loss="kl", start="normal", keep="last"),
    APGD(steps=4),
]


def problem(n=13):
    config = modern("s4", d_model=16, num_layers=1, d_state=4)
    model = config.build(shape=(1, 6, 6), num_classes=3, noise=Noise(0)).eval()
    x, y = Noise(1).uniform(n, 1, 6, 6), torch.arange(n) % 3
    return model, x, y, Streams(0).examples("attack", indices=torch.arange(n))


@pytest.fixture
def three_rows(monkeypatch):
    """Three rows fit, as if these were long sequences."""
    monkeypatch.setattr(parts, "rows_that_fit", lambda access, x: 3)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.label)
def test_it_is_the_whole_batch_on_any_number_of_threads(attack, three_rows):
    model, x, y, noise = problem()
    whole = attack(model, x, y, threat=THREAT, noise=noise)
    found = []
    for threads in (1, 2, 3):
        with cpu_threads(threads):
            found.append(attack_in_parts(attack, model, x, y, threat=THREAT, noise=noise))
            assert torch.get_num_threads() == threads
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    torch.testing.assert_close(found[0], whole, rtol=0, atol=1e-4)
    assert (found[0] - x).abs().max() > 0.01


def test_parts_run_on_threads_and_what_is_prepared_is_shared(three_rows, monkeypatch):
    model, x, y, noise = problem()
    seen, made = set(), []
    search = parts.Attack.search
    monkeypatch.setattr(
        PGD,
        "search",
        lambda self, *a, **k: seen.add(threading.get_ident()) or search(self, *a, **k),
    )
    layer = model.blocks[0].layer
    taps = type(layer)._taps
    monkeypatch.setattr(type(layer), "_taps", lambda *a: made.append(1) or taps(*a))
    with cpu_threads(2):
        attack_in_parts(ATTACKS[0], model, x, y, threat=THREAT, noise=noise)
    assert threading.get_ident() not in seen and seen
    assert len(made) == 1
    assert all(p.requires_grad for p in model.parameters())


def test_a_failure_in_a_part_is_the_failure_of_the_attack(three_rows, monkeypatch):
    model, x, y, noise = problem()
    monkeypatch.setattr(PGD, "search", lambda *a, **k: 1 / 0)
    with cpu_threads(2), pytest.raises(ZeroDivisionError):
        attack_in_parts(ATTACKS[0], model, x, y, threat=THREAT, noise=noise)


def test_small_batches_and_models_of_others_go_whole(monkeypatch):
    model, x, y, noise = problem()
    calls = []
    search = parts.Attack.search
    monkeypatch.setattr(
        PGD, "search", lambda self, *a, **k: calls.append(1) or search(self, *a, **k)
    )
    attack_in_parts(ATTACKS[0], model, x, y, threat=THREAT, noise=noise)
    assert len(calls) == 1, "all rows fit"
    monkeypatch.setattr(parts, "rows_that_fit", lambda access, x: 3)
    with global_stream(Noise(0)):
        theirs = type("Theirs", (nn.Sequential,), {})(nn.Flatten(), nn.Linear(36, 3))
    for strange in (lambda z: model(z), theirs):
        calls.clear()
        attack_in_parts(ATTACKS[0], strange, x, y, threat=THREAT, noise=noise)
        assert len(calls) == 1
    none = x[:0], y[:0]
    found = attack_in_parts(ATTACKS[0], model, *none, threat=THREAT, noise=noise.select(y[:0]))
    assert found.shape == x[:0].shape


def test_known_logits_save_a_pass_and_change_nothing(three_rows):
    model, x, y, noise = problem()
    attack = ATTACKS[2]
    plain = attack_in_parts(attack, model, x, y, threat=THREAT, noise=noise)
    with torch.no_grad(), model.frozen():
        clean = model(x)
    known = attack_in_parts(attack, model, x, y, threat=THREAT, noise=noise, clean=clean)
    torch.testing.assert_close(known, plain, rtol=0, atol=1e-4)
    wrong = attack_in_parts(attack, model, x, y, threat=THREAT, noise=noise, clean=clean.flip(0))
    assert not torch.allclose(wrong, plain, atol=1e-3), "they are used"


def test_rows_are_counted_once_for_each_model_and_shape(monkeypatch):
    model, x, y, noise = problem()
    asked = []
    monkeypatch.setattr(parts, "rows_that_fit", lambda access, x: asked.append(1) or 3)
    for _ in range(2):
        attack_in_parts(ATTACKS[0], model, x, y, threat=THREAT, noise=noise)
    assert len(asked) == 1
