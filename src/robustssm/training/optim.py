"""Optimisers as settings, with rates by what a parameter does in its layer."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from robustssm.core.config import Named, register, settings
from robustssm.core.errors import unknown

ROLES = ("dynamics", "gain", "norm", "weight")


@settings
class Rate:
    """Learning rate and weight decay of one role; None means the optimiser's own."""

    lr: Annotated[float, Field(ge=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None


class Optimizer(Named, ABC):
    """Settings of an optimiser."""

    kind: ClassVar[str] = "optimizer"
    lr: float
    weight_decay: float
    rates: Mapping[str, Rate]

    @abstractmethod
    def build(self, model: nn.Module, *, fused: bool = True) -> torch.optim.Optimizer:
        """Makes the optimiser over the model's parameters that need gradients.

        Every group keeps its starting rate as `base_lr`, which the schedule's factor multiplies.

        Args:
            model: The model.
            fused: One pass over memory; must be off under float16 loss scaling, where a fused
                optimiser would undo the scaling itself and gradients could not be clipped before.
        """


@register("adamw")
@settings
class AdamW(Optimizer):
    """Adam with decoupled weight decay.

    Source: loshchilov2019decoupled.
    """

    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    rates: Mapping[str, Rate] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_roles(self)

    def build(self, model: nn.Module, *, fused: bool = True) -> torch.optim.Optimizer:
        """Makes the optimiser; arguments as `Optimizer.build`."""
        return torch.optim.AdamW(_groups(self, model), betas=self.betas, fused=fused)


@register("sgd")
@settings
class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    Source: rice2020overfitting uses it with momentum 0.9 and weight decay 5e-4.
    """

    lr: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    rates: Mapping[str, Rate] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_roles(self)

    def build(self, model: nn.Module, *, fused: bool = True) -> torch.optim.Optimizer:
        """Makes the optimiser; arguments as `Optimizer.build`."""
        return torch.optim.SGD(_groups(self, model), momentum=self.momentum, fused=fused)


def roles(model: nn.Module) -> dict[str, str]:
    """Role of every parameter, by name: what its layer's `roles()` says, else "weight"."""
    found: dict[str, str] = {}
    for prefix, module in model.named_modules():
        told = getattr(module, "roles", None)
        if not callable(told):
            continue
        said = told()
        assert isinstance(said, Mapping)
        for name, role in said.items():
            found[f"{prefix}.{name}" if prefix else name] = str(role)
    return {name: found.get(name, "weight") for name, _ in model.named_parameters()}


def _check_roles(settings: Optimizer) -> None:
    for role in settings.rates:
        if role not in ROLES:
            raise ValueError(unknown("role of a parameter", role, ROLES))


def _groups(settings: Optimizer, model: nn.Module) -> list[dict[str, object]]:
    members: dict[str, list[nn.Parameter]] = {}
    role_of = roles(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            role = role_of[name] if role_of[name] in settings.rates else "default"
            members.setdefault(role, []).append(parameter)
    groups: list[dict[str, object]] = []
    for role, parameters in members.items():
        rate = settings.rates.get(role, Rate())
        lr = settings.lr if rate.lr is None else rate.lr
        decay = settings.weight_decay if rate.weight_decay is None else rate.weight_decay
        groups.append({"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay})
    return groups


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets every group's learning rate to `factor` times the one it was made with."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["base_lr"]
