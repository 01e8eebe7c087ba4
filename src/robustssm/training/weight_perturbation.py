"""Adversarial weight perturbation (wu2020adversarial): the loss where nearby weights are worst."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from robustssm.attacks.access import Access
from robustssm.attacks.base import Attack, Passes
from robustssm.attacks.parts import attack_in_parts
from robustssm.attacks.pgd import PGD
from robustssm.attacks.region import Region
from robustssm.attacks.threat import Threat
from robustssm.core.config import field_types, register, settings
from robustssm.core.errors import Inapplicable, unknown, violation
from robustssm.core.modes import mode
from robustssm.core.rng import Noise
from robustssm.core.types import Classifier
from robustssm.training.objective import Memory, Objective, Update
from robustssm.training.optim import ROLES, roles
from robustssm.training.pgd_training import PGDTraining
from robustssm.training.pieces import of_whole_batch
from robustssm.training.trades import Trades


@register("adversarial_weight_perturbation")
@settings
class AdversarialWeightPerturbation(Objective):
    """L(w + v) in place of L(w), v_l = gamma |w_l| g_l / |g_l| for every matrix w_l, g = dL/dw.

    L is the loss of `objective` at the points x_adv that its attack finds at w; v is one step of
    ascent, with the model in eval mode. The gradient of L at w + v moves w, which is put back bit
    for bit before the step. Biases, norms and the dynamics of state space layers stay as they are,
    unless `roles` names them. At gamma = 0 this is `objective`, bit for bit.

    Source: wu2020adversarial, algorithm 1 with one ascent step; matrices only, as in its code.
    """

    objective: Objective
    """PGD training, TRADES, MART: a method with the settings `attack` and `threat`."""
    gamma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    """Size of v_l relative to w_l; published: 0.01 for PGD training, 0.005 for TRADES."""
    start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of training before which weights are not perturbed."""
    roles: tuple[str, ...] = ("weight",)
    """Roles of the parameters that are perturbed, where they are matrices."""

    def __post_init__(self) -> None:
        if not field_types(type(self.objective)).keys() >= {"attack", "threat"}:
            raise ValueError(
                violation(
                    "`AdversarialWeightPerturbation(objective=...)`",
                    "have the settings `attack` and `threat`, as the loss is taken twice at the "
                    "points of one attack",
                    type(self.objective).__name__,
                    "Use PGDTraining, Trades or Mart.",
                )
            )
        for role in self.roles:
            if role not in ROLES:
                raise ValueError(unknown("role of a parameter", role, ROLES))

    @property
    def divisible(self) -> bool:
        """Not while weights are moved: by the gradient of the whole batch, for one piece at a time.

        Between processes it is exact, as they add up that gradient.
        """
        return self.gamma == 0 and self.objective.divisible

    def passes(self, num_classes: int) -> Passes | None:
        """The objective's, and those of its loss once more."""
        whole, attack = self.objective.passes(num_classes), self._attack.passes(num_classes)
        if not self.gamma or whole is None or attack is None:
            return whole
        again = whole.backward - attack.backward  # a loss goes forward as often as backward
        return Passes(whole.forward + again, whole.backward + again)

    def at(self, progress: float) -> "AdversarialWeightPerturbation":
        """This objective at `progress` in [0, 1] through training, and the one inside as well."""
        gamma = self.gamma if progress >= self.start else 0.0
        inside = self.objective.at(progress)
        return dataclasses.replace(self, objective=inside, gamma=gamma, start=0.0)

    def memory(self, example: Float[Tensor, "batch ..."], *, batch_size: int) -> Memory:
        """That of the objective."""
        return self.objective.memory(example, batch_size=batch_size)

    def updates(
        self,
        model: Classifier,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        memory: Memory,
        noise: Noise,
    ) -> Iterator[Update]:
        """Yields a gradient at w + v and then, at w, a step; parts: those of the objective.

        Raises:
            Inapplicable: If the model is no `nn.Module`, or the threat has windows that may be
                anywhere.
        """
        if self.gamma == 0:
            yield from self.objective.updates(model, x, y, memory=memory, noise=noise)
            return
        if not isinstance(model, nn.Module):
            raise Inapplicable(
                "`AdversarialWeightPerturbation` needs a model whose weights it can see, an "
                f"nn.Module; got {type(model).__name__}."
            )
        objective = self._at_found_points(model, x, y, noise)
        again = {"memory": memory, "noise": Positions(torch.arange(len(x)))}
        with mode(model, training=False):
            (measured,) = objective.updates(model, x, y, **again)
            shifts = self._shifts(model, measured.loss)
            del measured
        update = None
        with _moved(shifts):
            for update in objective.updates(model, x, y, **again):
                yield dataclasses.replace(update, step=False)
        assert update is not None
        # Adds nothing to the gradient: the weights are back, and this asks for the step.
        nothing = torch.zeros_like(update.loss, requires_grad=True)
        yield Update(loss=update.loss.detach() + nothing, parts=update.parts)

    @property
    def _attack(self) -> Attack:
        attack = getattr(self.objective, "attack", None)
        assert isinstance(attack, Attack)
        return attack

    def _at_found_points(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Objective:
        """The objective with an attack that finds again what its own finds now."""
        threat = getattr(self.objective, "threat", None)
        assert isinstance(threat, Threat)
        if threat.window is not None and len(threat.regions(x[:1])) > 1:
            raise Inapplicable(
                "`AdversarialWeightPerturbation` needs one threat set per example; got a window "
                f"that may be anywhere, {threat.window}. Fix its place."
            )
        with mode(model, training=False):
            x_adv = attack_in_parts(self._attack, model, x, y, threat=threat, noise=noise)
        found = {"attack": _Found(x_adv)}
        return dataclasses.replace(self.objective, **found)  # pyright: ignore[reportArgumentType]

    def _shifts(self, model: nn.Module, loss: Tensor) -> dict[nn.Parameter, Tensor]:
        """v, by parameter."""
        role_of = roles(model)
        chosen = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and parameter.ndim > 1 and role_of[name] in self.roles
        ]
        if not chosen:
            return {}
        found = of_whole_batch(torch.autograd.grad(loss, chosen, allow_unused=True))
        return {
            parameter: self.gamma * parameter.detach().norm() * _direction(gradient)
            for parameter, gradient in zip(chosen, found, strict=True)
            if gradient is not None
        }

    @classmethod
    def samples(cls) -> tuple["Objective", ...]:
        """Around PGD training and TRADES, with a start, and gamma = 0."""
        pgd = PGDTraining(threat=Threat(eps=0.1), attack=PGD(steps=2), eps_warmup=0.5)
        kl = PGD(steps=2, loss="kl", start="normal", keep="last")
        trades = Trades(threat=Threat(norm="l2", eps=0.5), attack=kl)
        return (
            cls(objective=pgd, start=0.4),
            cls(objective=trades, roles=("weight", "dynamics")),
            cls(objective=pgd, gamma=0.0),
        )


class Positions(Noise):
    """A noise that says which rows of the batch a part of it is."""

    def __init__(self, at: Int[Tensor, " rows"]):
        """Streams of rows of the batch.

        Args:
            at: Their numbers.
        """
        super().__init__(0, at)
        self.at = at

    def select(self, rows: Tensor) -> "Positions":
        """The positions of some rows; arguments as `Noise.select`."""
        return Positions(self.at[rows.to(self.at.device)])


class _Found(Attack):
    """Returns points that were found before. It is never in a record, and so has no name."""

    name = "found"

    def __init__(self, points: Float[Tensor, "batch ..."]):
        self._points = points

    def perturb(
        self,
        model: Access,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        region: Region,
        noise: Noise,
    ) -> Float[Tensor, "batch ..."]:
        """The points of the rows that `noise` names."""
        assert isinstance(noise, Positions)
        points = self._points[noise.at.to(self._points.device)]
        return points if region.scale is None else points / region.scale


def _direction(gradient: Tensor) -> Tensor:
    length = gradient.norm()
    return gradient / torch.where(length > 0, length, 1.0)


@contextmanager
def _moved(shifts: dict[nn.Parameter, Tensor]) -> Iterator[None]:
    """Weights moved for the enclosed lines, and then what they were, bit for bit."""
    before = {parameter: parameter.detach().clone() for parameter in shifts}
    try:
        with torch.no_grad():
            for parameter, shift in shifts.items():
                parameter.add_(shift)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in before.items():
                parameter.copy_(value)
