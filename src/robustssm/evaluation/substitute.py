"""A substitute model, learnt from a model's answers alone (papernot2017practical)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from robustssm.attacks.threat import Threat
from robustssm.core.rng import Noise
from robustssm.core.types import LogitsFn

HIDDEN = 128
"""Units of its one hidden layer."""

_ROUNDS, _STEPS, _BATCH, _RATE = 3, 150, 256, 3e-3


class Substitute:
    """x -> W2 softplus(W1 (x - 1/2)) + b2: smooth, so that its gradients mask nothing.

    Source: papernot2017practical, section 4: trained on the answers to its own queries, which
    follow its own gradients from one round to the next.
    """

    def __init__(
        self,
        model: LogitsFn,
        x: Float[Tensor, "batch ..."],
        *,
        threat: Threat,
        noise: Noise,
    ):
        """Queries the model, and learns its answers.

        Args:
            model: Maps (batch, ...) to logits; never asked for a gradient.
            x: Inputs to begin with.
            threat: Its bounds, and the distance at which queries are made.
            noise: Initial weights, queries and order.
        """
        self._low, high = threat.bounds
        self._width = high - self._low
        size, self._noise = x[0].numel(), noise.fork("substitute")
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        draw = self._noise.fork("weights")
        self._weights = [
            draw.normal(size, HIDDEN, std=math.sqrt(2 / size), dtype=x.dtype, device=x.device),
            torch.zeros(HIDDEN, dtype=x.dtype, device=x.device),
            draw.normal(HIDDEN, classes, std=HIDDEN**-0.5, dtype=x.dtype, device=x.device),
            torch.zeros(classes, dtype=x.dtype, device=x.device),
        ]
        self._learn(model, x, threat)

    def __call__(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """Logits; differentiable."""
        first, shift, second, bias = self._weights
        unit = 2 * (x.flatten(1) - self._low) / self._width - 1
        return torch.nn.functional.softplus(unit @ first + shift) @ second + bias

    def _learn(self, model: LogitsFn, x: Tensor, threat: Threat) -> None:
        """Every round doubles the queries: half around the inputs, then along its gradients."""
        queries = torch.cat((x, self._around(x, threat, 0)))
        answers = _answers(model, queries)
        for round_ in range(_ROUNDS):
            self._fit(queries, answers, self._noise.fork("order", round_))
            if round_ < _ROUNDS - 1:
                new = torch.cat(
                    (self._around(x, threat, round_ + 1), self._along(queries, answers, x, threat))
                )
                queries = torch.cat((queries, new))
                answers = torch.cat((answers, _answers(model, new)))

    def _around(self, x: Tensor, threat: Threat, round_: int) -> Tensor:
        """The inputs with signs added, as large as the ball is wide in each coordinate."""
        signs = self._noise.fork("around", round_).signs(like=x)
        return (x + self._reach(x, threat) * signs).clamp(*threat.bounds)

    def _along(self, queries: Tensor, answers: Tensor, x: Tensor, threat: Threat) -> Tensor:
        """The inputs moved down the substitute's gradient of the predicted class."""
        predicted = answers[: len(x)].argmax(1)
        points = x.detach().requires_grad_()
        with torch.enable_grad():
            chosen = self(points).log_softmax(1).gather(1, predicted[:, None])
            (gradient,) = torch.autograd.grad(chosen.sum(), points)
        return (x - self._reach(x, threat) * gradient.sign()).clamp(*threat.bounds)

    def _reach(self, x: Tensor, threat: Threat) -> float:
        size = x[0].numel()
        per_coordinate = {"linf": 1.0, "l2": size**-0.5, "l1": 1 / size}[threat.norm]
        return min(self._width, threat.eps * per_coordinate)

    def _fit(self, queries: Tensor, answers: Tensor, noise: Noise) -> None:
        """Adam on the cross-entropy with the model's softened predictions."""
        for weight in self._weights:
            weight.requires_grad_()
        # At one standard deviation of the logits, saturated predictions say something too.
        target = (answers / answers.std().clamp(min=1e-12)).softmax(1)
        optimiser = torch.optim.Adam(self._weights, lr=_RATE)
        with torch.enable_grad():
            for step in range(_STEPS):
                rows = noise.fork(step).integers(min(_BATCH, len(queries)), high=len(queries))
                rows = rows.to(queries.device)
                loss = torch.nn.functional.cross_entropy(self(queries[rows]), target[rows])
                gradients = torch.autograd.grad(loss, self._weights)
                for weight, gradient in zip(self._weights, gradients, strict=True):
                    weight.grad = gradient
                optimiser.step()
        for weight in self._weights:
            weight.requires_grad_(False).grad = None


def _answers(model: LogitsFn, queries: Tensor) -> Tensor:
    with torch.no_grad():
        return model(queries)
