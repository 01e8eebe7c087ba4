"""Context managers that restore what they found."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def mode(model: object, *, training: bool) -> Iterator[None]:
    """Puts every submodule into train or eval mode, and each one back into its own afterwards.

    A callable that is no `nn.Module` has no mode and is left alone.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in before:
            module.training = was_training


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restores parameters, buffers, gradients and modes on leaving, whatever happened inside."""
    values = {name: tensor.detach().clone() for name, tensor in _state(model)}
    gradients = {name: p.grad for name, p in model.named_parameters()}
    gradients = {name: None if g is None else g.clone() for name, g in gradients.items()}
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for name, tensor in _state(model):
            tensor.data.copy_(values[name])
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name]
        for module, was_training in modes:
            module.training = was_training


def _state(model: nn.Module):
    yield from model.named_parameters()
    yield from model.named_buffers()
