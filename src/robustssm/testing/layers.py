"""What every layer must satisfy, yours included: `check_layer`."""

import json

import torch
from jaxtyping import Float
from torch import Tensor

from robustssm.core.config import from_dict
from robustssm.core.rng import Noise
from robustssm.core.types import Freezable
from robustssm.layers.base import CausalLayer, LayerConfig, SequenceLayer
from robustssm.ops.recurrence import run
from robustssm.testing import tolerances


def check_layer(
    config: LayerConfig,
    *,
    d_model: int = 4,
    length: int = 12,
    batch: int = 3,
    rtol: float = 1e-9,
    rtol_float32: float = tolerances.LAYER,
) -> None:
    """Builds the layer and holds it to what models, attacks and probes rely on.

    Settings survive JSON; equal noise gives equal parameters; roles name existing parameters;
    `forward` equals `reference` in float64 and float32, at even and odd lengths, at length 1, for
    one example; memory layout of the input does not matter and the input is left alone; rows of a
    batch never meet; a `CausalLayer` never looks ahead; the input and every parameter receive a
    gradient; state dicts round-trip; the recurrence runs on the input, and a layer that is linear
    and driven by its input is its recurrence; `frozen`, where there is one, changes no number.

    Args:
        config: Settings of the layer.
        d_model: Channels, a size the settings allow.
        length: Longest sequence to try, at least 4.
        batch: Examples to try, at least 2.
        rtol: Allowed difference of `forward` and `reference` in float64, relative to the largest
            entry.
        rtol_float32: Allowed difference of float32 from float64.

    Raises:
        AssertionError: Says which of these fails.
    """
    assert from_dict(LayerConfig, json.loads(json.dumps(config.to_dict()))) == config, (
        "the settings must survive to_dict, JSON and from_dict"
    )
    layer = config.build(d_model=d_model, length=length, noise=Noise(1))
    other = config.build(d_model=d_model, length=length, noise=Noise(2))
    assert isinstance(layer, SequenceLayer) and layer.d_model == d_model
    _check_parameters(layer, config.build(d_model=d_model, length=length, noise=Noise(1)), other)
    x = Noise(3).normal(batch, length, d_model)
    _check_state_dict(layer, other, x)
    _check_gradients(layer, x)
    in_float32 = {size: layer(x[:, :size]) for size in {length, length - 1, 1}}
    layer.double()
    _check_reference(layer, x.double(), in_float32, rtol, rtol_float32)
    _check_rows(layer, x.double())
    if isinstance(layer, CausalLayer):
        _check_causality(layer, x.double())
    _check_recurrence(layer, x.double(), rtol)
    if isinstance(layer, Freezable):
        _check_frozen(layer, x.double())


def _check_parameters(layer: SequenceLayer, again: SequenceLayer, other: SequenceLayer) -> None:
    for name, value in layer.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), (
            f"equal noise must give equal parameters; {name} differs"
        )
        assert not value.is_complex(), f"{name} must be stored in real numbers"
        assert value.dtype is torch.float32 or not value.is_floating_point(), (
            f"{name} must be built in float32; got {value.dtype}"
        )
    parameters = dict(layer.named_parameters())
    others = dict(other.named_parameters())
    assert not parameters or any(
        not torch.equal(value, others[name]) for name, value in parameters.items()
    ), "another noise must give other parameters"
    for name in layer.roles():
        assert name in parameters, f"`roles` names {name}, which is no parameter"


def _check_state_dict(layer: SequenceLayer, other: SequenceLayer, x: Tensor) -> None:
    before = x.clone()
    y = layer(x)
    assert y.shape == x.shape and y.dtype == x.dtype and y.device == x.device, (
        f"a layer must keep shape, dtype and device; {x.shape} {x.dtype} became {y.shape} {y.dtype}"
    )
    assert torch.isfinite(y).all(), "outputs must be finite"
    assert torch.equal(x, before), "the input must be left as it was"
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), y), "a state dict must carry the whole layer"
    scattered = x.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    _assert_close(layer(scattered), y, 1e-5, "the memory layout of the input must not matter")


def _check_gradients(layer: SequenceLayer, x: Tensor) -> None:
    x = x.clone().requires_grad_()
    weight = Noise(4).normal(*x.shape)
    parameters = dict(layer.named_parameters())
    gradients = torch.autograd.grad(
        (layer(x) * weight).sum(), [x, *parameters.values()], allow_unused=True
    )
    for name, gradient in zip(["the input", *parameters], gradients, strict=True):
        assert gradient is not None, f"{name} must receive a gradient"
        assert torch.isfinite(gradient).all(), f"the gradient of {name} must be finite"
    assert gradients[0].abs().max() > 0, "the gradient of the input must not vanish"


def _check_reference(
    layer: SequenceLayer,
    x: Tensor,
    in_float32: dict[int, Tensor],
    rtol: float,
    rtol_float32: float,
) -> None:
    for size, y32 in in_float32.items():
        y = layer(x[:, :size])
        assert y.dtype is torch.float64, "a layer in float64 must compute in float64"
        expected = layer.reference(x[:, :size])
        _assert_close(y, expected, rtol, f"`forward` must be `reference` at length {size}")
        _assert_close(y32.double(), y, rtol_float32, f"float32 must be near at length {size}")
    alone = layer(x[:1])
    _assert_close(alone, layer(x)[:1], rtol, "one example must give what it gives in a batch")


def _check_rows(layer: SequenceLayer, x: Tensor) -> None:
    x = x.clone().requires_grad_()
    weight = Noise(5).normal(*x[0].shape, dtype=x.dtype)
    (gradient,) = torch.autograd.grad((layer(x)[0] * weight).sum(), x)
    assert (gradient[1:] == 0).all(), "rows of a batch must never meet"


def _check_causality(layer: SequenceLayer, x: Tensor) -> None:
    at = x.shape[1] // 2
    x = x.clone().requires_grad_()
    weight = Noise(6).normal(*x[:, :at].shape, dtype=x.dtype)
    (gradient,) = torch.autograd.grad((layer(x)[:, :at] * weight).sum(), x)
    # A transform mixes all times and cancels them again, up to rounding.
    leak = gradient[:, at:].abs().max()
    assert leak <= 1e-12 * gradient.abs().max(), f"a causal layer must not look ahead; got {leak}"


def _check_recurrence(layer: SequenceLayer, x: Tensor, rtol: float) -> None:
    recurrence = layer.recurrence(x)
    if recurrence is None:
        return
    for name in ("A", "B", "C"):
        M: Tensor = getattr(recurrence, name)
        for axis, size in enumerate(x.shape[:2]):
            assert M.shape[axis] in (1, size), (
                f"the recurrence's {name} must have batch and time axes of size 1 or {size}; "
                f"got {tuple(M.shape)}"
            )
        precise = M.dtype in (torch.float64, torch.complex128)
        assert precise, f"the recurrence's {name} must have the precision of x; got {M.dtype}"
    y = run(recurrence, x if recurrence.u is None else recurrence.u)
    assert y.shape[:2] == x.shape[:2] and torch.isfinite(y).all(), (
        "the recurrence must run on what drives it"
    )
    if recurrence.u is None and recurrence.input_independent and _is_linear(layer, x):
        _assert_close(y, layer(x), rtol, "a linear layer must be its recurrence")


def _is_linear(layer: SequenceLayer, x: Tensor) -> bool:
    z = Noise(7).normal(*x.shape, dtype=x.dtype)
    gap = layer(x + z) - layer(x) - layer(z)
    return bool(gap.abs().max() <= 1e-10 * layer(x).abs().max())


def _check_frozen(layer: SequenceLayer, x: Tensor) -> None:
    assert isinstance(layer, Freezable)
    x = x.clone().requires_grad_()

    def outcome() -> tuple[Tensor, Tensor]:
        y = layer(x)
        return y.detach(), torch.autograd.grad((y * y.detach()).sum(), x)[0]

    free = outcome()
    with layer.frozen():
        held = outcome()
        again = outcome()
    for a, b, c in zip(free, held, again, strict=True):
        assert torch.equal(a, b) and torch.equal(b, c), "`frozen` must not change a number"
    name, parameter = next(iter(layer.named_parameters()), ("", None))
    if parameter is not None:
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(0.1)
        changed = not torch.equal(layer(x), free[0])
        with torch.no_grad():
            parameter.copy_(before)
        assert changed, f"a cache must not outlive `frozen`; {name} was changed to no effect"


def _assert_close(
    found: Float[Tensor, "..."], expected: Float[Tensor, "..."], rtol: float, what: str
) -> None:
    scale = expected.detach().abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    gap = ((found - expected).detach().abs().max() / scale).item()
    assert gap <= rtol, f"{what}; they differ by {gap:.1e} of the largest entry, {rtol:.0e} allowed"
