"""Jacobian regularisation (hoffman2019robust): logits that hardly change with the input."""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from robustssm.attacks.access import frozen
from robustssm.attacks.base import Passes
from robustssm.core.config import register, settings
from robustssm.core.modes import mode
from robustssm.core.rng import Noise
from robustssm.core.types import Classifier
from robustssm.training.objective import Memory, Objective, Update
from robustssm.training.standard import accuracy


@register("jacobian_penalty")
@settings
class JacobianPenalty(Objective):
    """CE(f(x), y) + weight / 2 |J(x)|^2, averaged over the batch, J = df / dx.

    of="projection": the squared Frobenius norm of all of J, estimated without bias by
    classes |v J|^2 with one random unit vector v per example. of="true_class": |df[y] / dx|^2.
    The gradient of a gradient goes through the model, whose layers must have second derivatives.
    There is no attack, and no eps; at weight = 0 this is standard training, bit for bit.

    Source: hoffman2019robust, section 2, with one projection and lambda called weight; the true
    class alone is ours.
    """

    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    of: Literal["projection", "true_class"] = "projection"

    def passes(self, num_classes: int) -> Passes:
        """One forward; backward: to the input, through that backward pass, and of the loss."""
        del num_classes
        return Passes(1, 3 if self.weight > 0 else 1)

    def updates(
        self,
        model: Classifier,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        memory: Memory,
        noise: Noise,
    ) -> Iterator[Update]:
        """Yields once; parts: clean_loss, squared_jacobian, accuracy."""
        del memory
        active = self.weight > 0
        points = x.detach().clone().requires_grad_(active)
        logits = model(points)
        clean_loss = F.cross_entropy(logits, y)
        if active:
            squared = self._squared(logits, points, y, noise)
            loss = clean_loss + self.weight / 2 * squared
        else:
            # A term of weight zero is measured only, without a trace in statistics or dropout.
            with mode(model, training=False), frozen(model):
                points = points.clone().requires_grad_()
                squared, loss = self._squared(model(points), points, y, noise), clean_loss
        parts = {
            "clean_loss": clean_loss.detach(),
            "squared_jacobian": squared.detach(),
            "accuracy": accuracy(logits, y),
        }
        yield Update(loss=loss, parts=parts)

    def _squared(self, logits: Tensor, points: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """|J|^2 or its estimate, averaged over the batch, with a graph."""
        if self.of == "projection":
            drawn = noise.fork("projection").normal(like=logits)
            v = F.normalize(drawn, dim=1) * logits.shape[1] ** 0.5
        else:
            v = F.one_hot(y, logits.shape[1]).to(logits)
        # Logits of one row depend on that row alone, so one backward pass serves the batch.
        (gradient,) = torch.autograd.grad((v * logits).sum(), points, create_graph=True)
        return gradient.square().sum() / len(points)

    @classmethod
    def samples(cls) -> tuple["Objective", ...]:
        """Both forms, and weight = 0."""
        return (cls(weight=0.1), cls(weight=0.1, of="true_class"), cls(weight=0.0))
