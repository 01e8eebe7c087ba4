"""The objective of gradient matching, for one group of poisons, and its gradient.

Source: slutzky2024implicit, its code for CIFAR-10, after geiping2021witches.
Oracle: finite differences (tests/poisoning/test_gradient_matching.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from robustssm.core.modes import mode
from robustssm.core.rng import Noise, global_stream
from robustssm.poisoning.brewing import Brewing

Gradient = tuple[Tensor, ...]
"""One tensor for each parameter that needs a gradient."""


@dataclass(frozen=True, eq=False)
class Matching:
    """The objective of one group, as a function of the perturbed inputs."""

    model: nn.Module
    x: Float[Tensor, "poisons ..."]
    """Base examples."""
    y: Int[Tensor, " poisons"]
    wanted: Gradient
    weight: Float[Tensor, "..."]
    """What multiplies delta^2 in the penalty, per entry of an example; tail included."""
    settings: Brewing

    def similarity(self, x_adv: Float[Tensor, "poisons ..."]) -> float:
        """Cosine between the two gradients, without augmentation and dropout."""
        return float(_cosine(self._whole(x_adv, None), self.wanted)[0])

    def penalty(self, x_adv: Float[Tensor, "poisons ..."]) -> float:
        """What the objective adds to 1 minus the cosine."""
        return float((self.weight * (x_adv - self.x).square()).sum())

    def gradient(
        self, x_adv: Float[Tensor, "poisons ..."], noise: Noise | None
    ) -> Float[Tensor, "poisons ..."]:
        """The objective's gradient with respect to `x_adv`.

        With v the gradient of 1 - cos with respect to g, it is that of <v, g(delta)>; so poisons
        may be taken in parts once v is known.

        Args:
            x_adv: Perturbed inputs.
            noise: Source of augmentation and dropout; None: neither.
        """
        direct = 2 * self.weight * (x_adv - self.x)
        parts = list(self._parts())
        if len(parts) == 1:
            point = x_adv.detach().requires_grad_()
            found = self._of(point, parts[0], noise, graph=True)
            return _pull(found, _cosine(found, self.wanted)[1], point) + direct
        pull = _cosine(self._whole(x_adv, noise), self.wanted)[1]
        pieces = []
        for part in parts:
            point = x_adv[part].detach().requires_grad_()
            found = self._of(point, part, noise, graph=True)
            pieces.append(_pull(found, pull, point))
        return torch.cat(pieces) + direct

    def _parts(self) -> Iterator[slice]:
        size = self.settings.micro_batch or len(self.x)
        for first in range(0, len(self.x), size):
            yield slice(first, min(first + size, len(self.x)))

    def _whole(self, x_adv: Tensor, noise: Noise | None) -> Gradient:
        pieces = [self._of(x_adv[part], part, noise, graph=False) for part in self._parts()]
        return tuple(sum(layer, torch.zeros_like(layer[0])) for layer in zip(*pieces, strict=True))

    def _of(self, x_adv: Tensor, part: slice, noise: Noise | None, *, graph: bool) -> Gradient:
        """What one part adds to the gradient of the mean loss over all poisons."""
        y, share = self.y[part], (part.stop - part.start) / len(self.x)
        if noise is None:
            return tuple(share * g for g in loss_gradient(self.model, x_adv, y, graph=graph))
        rows = torch.arange(part.start, part.stop)
        x = self.settings.augmentation(x_adv, noise.rows(len(self.x)).select(rows))
        drops = noise.fork("dropout", part.start)
        with _dropping(self.model, drops, on=self.settings.dropout):
            return tuple(share * g for g in loss_gradient(self.model, x, y, graph=graph))


def loss_gradient(
    model: nn.Module,
    x: Float[Tensor, "batch ..."],
    y: Int[Tensor, " batch"],
    *,
    graph: bool = False,
) -> Gradient:
    """Gradient of the mean cross-entropy with respect to every parameter that needs one.

    Args:
        model: The model, in the mode it is to be in.
        x: Inputs.
        y: Classes.
        graph: Whether the gradient is to be differentiated in turn.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = F.cross_entropy(model(x), y)
    return torch.autograd.grad(loss, parameters, create_graph=graph, materialize_grads=True)


def _cosine(found: Gradient, wanted: Gradient) -> tuple[Tensor, Gradient]:
    """The cosine of two gradients, and the gradient of 1 - cos with respect to the first.

    Nothing is read from the device. A gradient of 0 has cosine 0 and pulls nowhere.
    """
    values = [g.detach() for g in found]
    dot = torch.stack([(g * w).sum() for g, w in zip(values, wanted, strict=True)]).sum()
    length, other = norm(values), norm(wanted)
    inverse = torch.where(length > 0, 1 / length, 0.0)
    cosine = dot * inverse / other
    return cosine, tuple(
        cosine * inverse**2 * g - inverse / other * w for g, w in zip(values, wanted, strict=True)
    )


def norm(gradient: Sequence[Tensor]) -> Float[Tensor, ""]:
    """2-norm over all tensors together."""
    return torch.stack([g.square().sum() for g in gradient]).sum().sqrt()


def _pull(found: Gradient, by: Gradient, point: Tensor) -> Tensor:
    """Gradient of <by, found> with respect to `point`."""
    pairs = [(g, v) for g, v in zip(found, by, strict=True) if g.requires_grad]
    gradients, pulls = zip(*pairs, strict=True)
    (gradient,) = torch.autograd.grad(gradients, point, pulls, materialize_grads=True)
    return gradient


@contextmanager
def _dropping(model: nn.Module, noise: Noise, *, on: bool) -> Iterator[None]:
    """Dropout alone in train mode, its masks those of `noise` (on a CPU)."""
    if not on:
        yield
        return
    layers = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    with mode(model, training=False), global_stream(noise):
        for layer in layers:
            layer.training = True
        yield
