"""Restricted threats: what may not be touched stays, what may is used to the full."""

import pytest
import torch

from robustssm.attacks.pgd import PGD
from robustssm.attacks.restrictions import Band, Window
from robustssm.attacks.threat import Threat
from robustssm.core.rng import Noise

LENGTH, CHANNELS = 12, 3
W = Noise(0).normal(LENGTH, CHANNELS, dtype=torch.float64)


def linear(x):
    """Two classes, from a sequence or an image with a token per pixel."""
    tokens = x if x.dim() == 3 else x.flatten(2).transpose(1, 2)
    score = ((tokens - 0.5) * W).sum((1, 2)) + 5
    return torch.stack((score, -score), 1)


X = Noise(1).uniform(6, LENGTH, CHANNELS, low=0.4, high=0.6, dtype=torch.float64)
Y = torch.zeros(6, dtype=torch.int64)
IMAGES = X.transpose(1, 2).reshape(6, CHANNELS, 3, 4)


def attack(threat, x=X, mask=None, model=linear):
    noise = Noise(2, torch.arange(len(x)))
    attack = PGD(steps=20, start="none")
    return attack(model, x, Y[: len(x)], threat=threat, noise=noise, mask=mask) - x


def touched(delta):
    return delta.abs().sum(0) > 0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_prefix_suffix_and_channels(norm):
    eps = {"linf": 0.1, "l2": 0.3, "l1": 0.3}[norm]
    for where, positions in (("prefix", slice(0, 4)), ("suffix", slice(8, 12))):
        threat = Threat(norm=norm, eps=eps, window=Window(length=4, where=where), channels=(0, 2))
        delta = attack(threat)
        free = torch.zeros(LENGTH, CHANNELS, dtype=torch.bool)
        free[positions, 0] = free[positions, 2] = True
        assert not touched(delta)[~free].any(), "bit for bit"
        order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
        length = delta.flatten(1).norm(dim=1, p=order)
        torch.testing.assert_close(length, torch.full_like(length, eps), rtol=1e-6, atol=0)
        if norm == "linf":  # the optimum of a linear model
            expected = -0.1 * W.sign() * free
            torch.testing.assert_close(delta, expected.expand_as(delta), rtol=1e-9, atol=1e-12)
        if norm == "l2":
            expected = -eps * (W * free) / (W * free).norm()
            torch.testing.assert_close(delta, expected.expand_as(delta), rtol=1e-6, atol=1e-9)


def test_an_image_is_read_by_raster_scan():
    threat = Threat(eps=0.1, window=Window(length=5), channels=(1,))
    delta = attack(threat, IMAGES)
    positions = delta.flatten(2).transpose(1, 2)
    assert (positions[:, :5, 1].abs() > 0).all()
    assert not positions[:, 5:].any() and not positions[:, :, (0, 2)].any()


def test_a_window_anywhere_is_one_window_and_the_first_that_fools():
    """Only one window of three can turn the decision; the attack must find it."""

    def model(x):
        score = 1.0 - 20 * (x[:, 4:7] - X[: len(x), 4:7]).sum((1, 2))
        return torch.stack((score, -score), 1)

    threat = Threat(eps=0.012, window=Window(length=3, where="anywhere", stride=2))
    delta = attack(threat, X[:1], model=model)
    assert touched(delta).any(1).nonzero().flatten().tolist() == [4, 5, 6]
    assert Window(length=3, where="anywhere", stride=2).starts(8) == (0, 2, 4, 5)
    tight = Threat(eps=0.001, window=Window(length=3, where="anywhere", stride=4))
    starts = touched(attack(tight, X[:1], model=model)).any(1)
    assert int(starts.sum()) <= 3, "where none fools, still one window"


def test_scales_are_units_per_channel():
    scales = (1.0, 0.5, 0.25)
    delta = attack(Threat(eps=0.2, channel_scales=scales))
    expected = -0.2 * torch.tensor(scales, dtype=torch.float64) * W.sign()
    torch.testing.assert_close(delta, expected.expand_as(delta), rtol=1e-9, atol=1e-12)
    threat = Threat(norm="l2", eps=0.3, channel_scales=scales)
    delta = attack(threat)
    scaled = delta / torch.tensor(scales, dtype=torch.float64)
    torch.testing.assert_close(
        scaled.flatten(1).norm(dim=1), torch.full((6,), 0.3, dtype=torch.float64), rtol=1e-5, atol=0
    )
    direction = W * torch.tensor(scales, dtype=torch.float64)
    best = 0.3 * direction.norm()
    torch.testing.assert_close(-(delta * W).sum((1, 2)), best.expand(6), rtol=1e-5, atol=0)
    assert float(threat.distance(X + delta, X).max()) <= 0.3 * (1 + 1e-6)


@pytest.mark.parametrize("norm, eps", [("linf", 0.05), ("l2", 0.2), ("l1", 0.5)])
@pytest.mark.parametrize("band", [Band(high=0.4), Band(low=0.6)], ids=["low", "high"])
def test_a_band_holds_the_perturbation(norm, eps, band):
    threat = Threat(norm=norm, eps=eps, band=band)
    delta = attack(threat)  # far from the bounds, so that nothing is clipped
    torch.testing.assert_close(band.filter(delta), delta, rtol=1e-6, atol=1e-9)
    length = threat.distance(X + delta, X)
    assert (length <= eps * (1 + 1e-6)).all()
    assert (length > 0.9 * eps).all()
    if norm == "l2":
        direction = band.filter(W[None])
        best = 0.2 * direction / direction.norm()
        torch.testing.assert_close(delta, -best.expand_as(delta), rtol=1e-5, atol=1e-8)


def test_a_band_of_images_and_its_filter():
    band = Band(high=0.5)
    once = band.filter(IMAGES)
    torch.testing.assert_close(band.filter(once), once, rtol=1e-9, atol=1e-12)
    rest = IMAGES - once
    assert float((once * rest).sum().abs()) < 1e-9, "an orthogonal projection"
    torch.testing.assert_close(Band().filter(IMAGES), IMAGES, rtol=1e-9, atol=1e-12)
    flat = torch.ones_like(IMAGES)
    torch.testing.assert_close(Band(high=0.0).filter(flat), flat, rtol=1e-9, atol=1e-12)


def test_masks_per_example_and_per_position():
    mask = torch.ones(6, LENGTH, dtype=torch.bool)
    for row in range(6):
        mask[row, row + 3 :] = False  # padding
    delta = attack(Threat(norm="l2", eps=0.3), mask=mask)
    assert ((delta.abs().sum(2) > 0) == mask).all()
    torch.testing.assert_close(
        delta.flatten(1).norm(dim=1), torch.full((6,), 0.3, dtype=torch.float64), rtol=1e-6, atol=0
    )
    same = attack(Threat(norm="l2", eps=0.3), mask=mask[:, :, None].expand_as(X))
    assert torch.equal(delta, same)


@pytest.mark.parametrize(
    "threat, says",
    [
        (Threat(eps=0.1, window=Window(length=13)), "at most the length of the inputs, 12"),
        (Threat(eps=0.1, channels=(3,)), "which have 3"),
        (Threat(eps=0.1, channel_scales=(1.0, 2.0)), "one value per channel"),
    ],
)
def test_what_does_not_fit_the_inputs_is_refused(threat, says):
    with pytest.raises(ValueError, match=says):
        attack(threat)


def test_settings_that_contradict_are_refused():
    with pytest.raises(ValueError, match="stand alone"):
        Threat(eps=0.1, band=Band(high=0.5), window=Window(length=3))
    with pytest.raises(ValueError, match="has an effect only with"):
        Window(length=3, stride=2)
    with pytest.raises(ValueError, match="low <= high"):
        Band(low=0.5, high=0.2)
    with pytest.raises(ValueError, match="booleans"):
        attack(Threat(eps=0.1), mask=torch.ones(6, LENGTH))
    with pytest.raises(ValueError, match="shape of the inputs"):
        attack(Threat(eps=0.1), mask=torch.ones(6, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="union of sets"):
        Threat(eps=0.1, window=Window(length=3, where="anywhere")).project(X + 1, X)
