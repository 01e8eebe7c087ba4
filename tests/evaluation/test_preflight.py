"""What is looked at before any attack: masked gradients are seen, plain models are not accused."""

import math

import pytest
import torch
from torch import nn

from robustssm.attacks.access import Access, Ledger
from robustssm.core.errors import OutOfTime
from robustssm.core.modes import mode
from robustssm.core.rng import Noise, global_stream
from robustssm.evaluation import masking
from robustssm.evaluation import preflight as module
from robustssm.evaluation.preflight import preflight
from robustssm.models.presets import modern
from robustssm.testing.miniatures import MINIATURES, images
from tests.attacks.digits_net import digits_net


@pytest.fixture(scope="module")
def digits():
    net, x, y, _ = digits_net()
    return net, x[:256], y[:256]


def raised(model, x, y, *, batch_size=100):
    with mode(model, training=False):
        found = masking.flags(preflight(model, x, y, batch_size=batch_size))
    for flag in found:
        assert flag.message.count(".") >= 2, "what it means, what to do"
    return {flag.name: flag.severity for flag in found}


class Through(torch.autograd.Function):
    """Rounds to so many levels; backward as if it had not."""

    @staticmethod
    def forward(ctx, z, levels):
        return (z * levels).round() / levels

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Killer(torch.autograd.Function):
    """The identity, with a backward pass of zero."""

    @staticmethod
    def forward(ctx, z):
        return z.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient)


class Turning(torch.autograd.Function):
    """The identity, with a backward pass that changes every other sign."""

    @staticmethod
    def forward(ctx, z):
        return z.clone()

    @staticmethod
    def backward(ctx, gradient):
        signs = torch.ones_like(gradient).flatten()
        signs[::2] = -1
        return gradient * signs.view_as(gradient)


class NoBackward(torch.autograd.Function):
    """A kernel that was only ever written forward."""

    @staticmethod
    def forward(ctx, z):
        return z.clone()


def kernel_that_refuses(z):
    if torch.is_grad_enabled():
        raise RuntimeError("fused_scan: no backward in eval mode")
    return z


MASKED = {
    "a layer with zero gradient": (lambda f, z: f(Killer.apply(z)), "zero_gradients"),
    "a sign": (lambda f, z: f((z - 0.4).sign()), "zero_gradients"),
    "a quantised input": (lambda f, z: f((z * 8).round() / 8), "zero_gradients"),
    "straight through, 4 levels": (lambda f, z: f(Through.apply(z, 4)), "wrong_gradients"),
    "straight through, 16 levels": (lambda f, z: f(Through.apply(z, 16)), "wrong_gradients"),
    "a backward of another function": (lambda f, z: f(Turning.apply(z)), "wrong_gradients"),
    "a detached branch": (lambda f, z: f(z) + f(z.flip(-1)).detach(), "wrong_gradients"),
    "logits times 10,000": (lambda f, z: 1e4 * f(z), "saturated_loss"),
    "saturated units": (lambda f, z: f(torch.sigmoid(80 * (z - 0.5))), "tiny_gradients"),
}


@pytest.mark.parametrize("name", MASKED)
def test_masked_gradients_are_seen(name, digits):
    net, x, y = digits
    mask, flag = MASKED[name]
    if flag == "tiny_gradients":  # where the sigmoid is flat, though not quite
        x = (x > 0.5).float()
    found = raised(lambda z: mask(net, z), x, y)
    assert found.get(flag) == "invalid", found


def test_logits_times_ten_thousand_are_no_matter_to_the_margin(digits):
    """The gradient is right, and the flag says which loss to climb instead."""
    net, x, y = digits
    seen = preflight(lambda z: 1e4 * net(z), x, y, batch_size=100)
    assert seen.vanished == seen.zero_losses == 256
    assert seen.zero_gradients == seen.contradicted == 0
    (flag,) = masking.flags(seen)
    assert flag.name == "saturated_loss" and "margin" in flag.message


def test_a_loss_of_exactly_zero_is_flagged_before_its_gradient_vanishes():
    """At a gap of 20 the loss rounds to 0 in float32; in float64 it does not."""
    x, y = Noise(0).uniform(40, 3, low=0.9), torch.zeros(40, dtype=torch.int64)
    scale = torch.tensor([1.0, 0.1])

    def linear(z):
        return z.sum(1, keepdim=True) * 9 * scale.to(z.dtype)

    seen = preflight(linear, x, y, batch_size=40)
    assert seen.zero_losses == 40 and seen.vanished == 0
    assert {f.name: f.severity for f in masking.flags(seen)} == {"saturated_loss": "warning"}
    assert raised(linear, x.double(), y) == {}


def test_a_random_layer(digits):
    net, x, y = digits
    draws = iter(range(10**6))

    def noisy(z):
        return net(z + Noise(next(draws)).normal(like=z, std=0.1))

    assert raised(noisy, x, y) == {"random_outputs": "invalid"}


@pytest.mark.parametrize(
    "kernel, says",
    [
        (kernel_that_refuses, "RuntimeError: fused_scan: no backward in eval mode"),
        (NoBackward.apply, "NotImplementedError"),
        (torch.detach, "without a gradient"),
    ],
)
def test_a_kernel_without_a_backward_pass_is_flagged_with_its_own_words(kernel, says, digits):
    net, x, y = digits
    seen = preflight(lambda z: net(kernel(z)), x, y, batch_size=100)
    assert not seen.differentiable
    (flag,) = masking.flags(seen)
    assert (flag.name, flag.severity) == ("no_gradient", "warning") and says in flag.message


def test_a_long_complaint_is_shortened():
    flag = masking.no_gradient("RuntimeError: " + 100 * "no kernel\n")
    assert len(flag.message) < 600 and "\n" not in flag.message and " ...." not in flag.message


def test_a_model_that_fails_altogether_is_not_flagged_but_fails(digits):
    _, x, y = digits

    def broken(z):
        raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        preflight(broken, x, y, batch_size=100)


def test_a_time_limit_is_not_taken_for_a_missing_gradient(digits):
    net, x, y = digits
    ledger = Ledger()

    def slow(z):
        if torch.is_grad_enabled():
            ledger.deadline = -math.inf
        return net(z)

    with pytest.raises(OutOfTime):
        preflight(Access(slow, ledger), x, y, batch_size=100)


class Convolutional(nn.Sequential):
    """Without biases, so that every unit sits on its kink over a black background."""

    def __init__(self, side, channels):
        with global_stream(Noise(5)):
            super().__init__(
                nn.Conv2d(channels, 16, 3, padding=1, bias=False),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(16 * (side // 2) ** 2, 10, bias=False),
            )


def trained(model, x, y, *, steps=60):
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        rows = Noise(6).fork(step).integers(64, high=len(x))
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_network_of_the_reference_is_not_accused(dtype, digits):
    _, x, y = digits
    assert raised(digits_net()[0].to(dtype), x.to(dtype), y) == {}


@pytest.mark.parametrize("fit", [False, True])
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_convolutional_networks_on_miniatures_are_not_accused(name, fit):
    channels, side = {"mnist": (1, 28), "cifar10": (3, 32)}[name]
    pixels, labels = images(120, channels=channels, side=side, noise=Noise(0))
    x, y = torch.from_numpy(pixels).float() / 255, torch.from_numpy(labels).long()
    model = Convolutional(side, channels)
    if fit:
        model = trained(model, x, y, steps=10)
    assert raised(model, x, y) == {}


def test_sequences_of_any_range_are_not_accused(tmp_path):
    splits = MINIATURES["arrays"](tmp_path).read(data_dir=tmp_path, noise=Noise(0))
    x, y = torch.as_tensor(splits.train.x).float(), torch.as_tensor(splits.train.y).long()
    w = Noise(3).normal(x[0].numel(), 3)
    assert raised(lambda z: z.flatten(1) @ w, x, y) == {}
    assert raised(lambda z: 1e-3 * (z.flatten(1) @ w) + 7, x, y) == {}


@pytest.mark.parametrize("fit", [False, True])
@pytest.mark.parametrize("structure", ["s4", "dss", "s5", "mega", "mamba"])
def test_state_space_models_are_not_accused(structure, fit, digits):
    _, x, y = digits
    config = modern(structure, d_model=16, num_layers=2, d_state=8, ads=None)
    model = config.build(shape=(1, 8, 8), num_classes=10, noise=Noise(1))
    if fit:
        model = trained(model, x, y, steps=8)
    assert raised(model, x[:64], y[:64]) == {}


@pytest.mark.parametrize("classes", [2, 5])
def test_linear_models_are_exact(classes):
    w = Noise(0).normal(6, classes, dtype=torch.float64)
    x = Noise(1).uniform(50, 6, dtype=torch.float64)
    seen = preflight(lambda z: z @ w, x, (x @ w).argmax(1), batch_size=50)
    assert masking.flags(seen) == [] and (seen.compared, seen.contradicted) == (16, 0)


def test_half_precision_inside_is_not_taken_for_a_wrong_gradient(digits):
    net, x, y = digits

    def autocast(z):
        with torch.autocast("cpu", torch.bfloat16):
            return net(z)

    assert raised(autocast, x, y) == {}


def test_a_single_example_and_a_constant_one(digits):
    net, x, y = digits
    assert raised(net, x[:1], y[:1]) == {}
    assert raised(net, torch.full_like(x[:3], 0.3), y[:3]) == {}


def test_it_costs_few_passes(digits):
    net, x, y = digits
    access = Access(net)
    preflight(access, x, y, batch_size=100)
    forwards = access.ledger.forwards
    assert forwards < 6 * 256 and access.ledger.backwards <= 2 * 256 + module.COMPARED


def test_nothing_is_left_behind(digits):
    net, x, y = digits
    with torch.no_grad():
        preflight(net, x, y, batch_size=100)
    assert all(p.grad is None for p in net.parameters()) and not x.requires_grad
    with torch.inference_mode():
        assert preflight(net, x.clone(), y.clone(), batch_size=100).compared == 16
