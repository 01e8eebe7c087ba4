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


def same_in_both_modes(model: object) -> bool:
    """Whether train and eval mode certainly give the same outputs and leave the same state.

    True of modules made of torch's and our own layers, none of which drops, averages or draws.
    """
    house = __name__.partition(".")[0]
    ours = ("torch.nn.modules.", f"{house}.layers.", f"{house}.models.")
    return isinstance(model, nn.Module) and all(
        type(module).__module__.startswith(ours) and not _changes(module)
        for module in model.modules()
    )


def _changes(module: nn.Module) -> bool:
    """Whether a module of torch behaves differently in train mode."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return module.dropout > 0
    return isinstance(module, nn.modules.batchnorm._NormBase | nn.RReLU) and not isinstance(
        module, nn.modules.instancenorm._InstanceNorm
    )


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
