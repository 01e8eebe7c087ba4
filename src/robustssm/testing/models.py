"""What every model must satisfy, yours included: `check_model`."""

import copy
import json

import torch
from torch import Tensor, nn

from robustssm.core.config import from_dict
from robustssm.core.modes import mode
from robustssm.core.rng import Noise
from robustssm.core.types import Freezable, SplitClassifier
from robustssm.models.classifier import ModelConfig


def check_model(
    config: ModelConfig, *, shape: tuple[int, ...], num_classes: int = 3, batch: int = 3
) -> None:
    """Builds the model and holds it to what training, attacks and records rely on.

    Settings survive JSON; equal noise gives equal parameters; logits are finite; a model with
    `embed` and `classify` is exactly their composition; in eval mode rows of a batch never meet
    (float64, 1e-12); the input and every parameter receive a gradient; state dicts round-trip; an
    input of another shape is refused; `frozen`, where there is one, changes no number.

    Args:
        config: Settings of the model.
        shape: Shape of one example.
        num_classes: Width of the logits, at least 2.
        batch: Examples to try, at least 2.

    Raises:
        AssertionError: Says which of these fails.
    """
    assert from_dict(ModelConfig, json.loads(json.dumps(config.to_dict()))) == config, (
        "the settings must survive to_dict, JSON and from_dict"
    )
    model = config.build(shape=shape, num_classes=num_classes, noise=Noise(1))
    other = config.build(shape=shape, num_classes=num_classes, noise=Noise(2))
    _check_draws(config, model, other, shape, num_classes)
    x = Noise(3).uniform(batch, *shape)
    with mode(model, training=False), mode(other, training=False):
        _check_logits(model, x, num_classes)
        _check_shape_is_refused(model, x)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(x), model(x)), "a state dict must carry the whole model"
        _check_gradients(model, x)
        _check_rows(model.double(), x.double())
        if isinstance(model, Freezable):
            _check_frozen(model, x.double())


def _check_draws(
    config: ModelConfig,
    model: nn.Module,
    other: nn.Module,
    shape: tuple[int, ...],
    num_classes: int,
) -> None:
    again = config.build(shape=shape, num_classes=num_classes, noise=Noise(1)).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(again[name], value), f"equal noise must give equal values of {name}"
    same = (torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert not all(same), "other noise must give other parameters"


def _check_logits(model: nn.Module, x: Tensor, num_classes: int) -> None:
    logits = model(x)
    assert logits.shape == (len(x), num_classes), f"logits have the shape {tuple(logits.shape)}"
    assert logits.isfinite().all(), "logits must be finite"
    assert torch.equal(model(x), logits), "in eval mode equal inputs must give equal logits"
    if isinstance(model, SplitClassifier):
        assert torch.equal(model.classify(model.embed(x)), logits), (
            "forward(x) must be classify(embed(x)), bit for bit"
        )


def _check_gradients(model: nn.Module, x: Tensor) -> None:
    x = x.clone().requires_grad_()
    weights = Noise(4).normal(*model(x).shape)  # a plain sum would hide what softmax cannot see
    wanted = {"the input": x, **dict(model.named_parameters())}
    gradients = torch.autograd.grad(
        (weights * model(x)).sum(), list(wanted.values()), allow_unused=True
    )
    for name, gradient in zip(wanted, gradients, strict=True):
        assert gradient is not None, f"{name} must reach the logits"
        assert gradient.isfinite().all(), f"the gradient of {name} must be finite"
        assert gradient.count_nonzero(), f"the gradient of {name} must not vanish everywhere"


def _check_rows(model: nn.Module, x: Tensor) -> None:
    together = model(x)
    assert together.dtype == x.dtype, "a float64 model must compute in float64"
    for index in range(len(x)):
        torch.testing.assert_close(
            together[index : index + 1],
            model(x[index : index + 1]),
            rtol=0,
            atol=1e-12,
            msg=lambda text, row=index: f"row {row} of a batch must not depend on others: {text}",
        )


def _check_frozen(model: nn.Module, x: Tensor) -> None:
    assert isinstance(model, Freezable)
    never_frozen = copy.deepcopy(model)
    for _ in range(2):  # the second time with other parameters: nothing may outlive its context
        before = [p.requires_grad for p in model.parameters()]
        with model.frozen():
            for _ in range(2):  # the second call meets what the first one prepared
                _check_same(model, never_frozen, x, "inside `frozen`")
        _check_same(model, never_frozen, x, "after `frozen`")
        assert [p.requires_grad for p in model.parameters()] == before, (
            "`frozen` must leave the parameters as it found them"
        )
        with torch.no_grad():
            for parameter in (*model.parameters(), *never_frozen.parameters()):
                parameter.mul_(1.01)


def _check_same(model: nn.Module, expected: nn.Module, x: Tensor, where: str) -> None:
    torch.testing.assert_close(
        _logits_and_input_gradient(model, x),
        _logits_and_input_gradient(expected, x),
        rtol=1e-9,
        atol=1e-12,
        msg=lambda text: f"{where} logits and input gradients must be as ever: {text}",
    )


def _logits_and_input_gradient(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    logits = model(x)
    weights = Noise(4).normal(*logits.shape, dtype=x.dtype)
    return logits.detach(), torch.autograd.grad((weights * logits).sum(), x)[0]


def _check_shape_is_refused(model: nn.Module, x: Tensor) -> None:
    wrong = torch.cat([x, x], -1)
    try:
        model(wrong)
    except ValueError as error:
        assert str(tuple(wrong.shape)) in str(error), "the message must say which shape came"
    else:
        raise AssertionError(f"inputs of shape {tuple(wrong.shape)} must be refused")
