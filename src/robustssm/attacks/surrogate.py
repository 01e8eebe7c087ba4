"""The losses that an attack may climb in place of the error count, which has no gradient."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustssm.core.types import LogitsFn
from robustssm.ops import divergence

LossName = Literal["cross_entropy", "margin", "dlr", "kl"]
"""kl is KL(p(x) || p(x_adv)), from the clean prediction, and ignores the label."""


Freeze = Callable[[], AbstractContextManager[object]]


class Value(NamedTuple):
    """What a batch of points is worth to the attacker."""

    loss: Float[Tensor, " batch"]
    wrong: Bool[Tensor, " batch"]


class Surrogate:
    """One loss on one batch: labels and, for kl, the clean prediction are fixed at the start.

    The clean prediction costs one forward pass per attack, however many steps and restarts follow.
    """

    def __init__(
        self,
        loss: LossName,
        logits: LogitsFn,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
    ):
        """Takes the clean prediction where the loss needs one."""
        self._loss = loss
        self._logits = logits
        self._y = y.clone()  # labels made in inference mode cannot be saved for a backward pass
        self._clean: Tensor | None = None
        if loss == "kl":
            with torch.no_grad():
                self._clean = logits(x).to(x.dtype)

    def select(self, rows: Int[Tensor, " rows"]) -> "Surrogate":
        """The same loss on some examples only, without another clean pass."""
        chosen = object.__new__(Surrogate)
        chosen._loss, chosen._logits, chosen._y = self._loss, self._logits, self._y[rows]
        chosen._clean = None if self._clean is None else self._clean[rows]
        return chosen

    def value(self, points: Float[Tensor, "batch ..."]) -> Value:
        """Loss and error at `points`, without gradient: one forward pass."""
        with torch.no_grad():
            return self._value(points)

    def climb(self, points: Float[Tensor, "batch ..."]) -> tuple[Value, Float[Tensor, "batch ..."]]:
        """Loss, error and the gradient of each example's loss: one forward and one backward pass.

        The loss is summed, so the gradient of an example does not depend on its batch, and only
        the gradient of the input is asked for, so that parameters keep theirs.

        Raises:
            ValueError: If the logits do not depend differentiably on the input.
        """
        points = points.detach().requires_grad_()
        value = self._value(points)
        gradient = None
        if value.loss.requires_grad:
            (gradient,) = torch.autograd.grad(value.loss.sum(), points, allow_unused=True)
        if gradient is None:
            raise ValueError(
                "A gradient attack needs logits that depend differentiably on the inputs; got "
                "logits without a gradient. Remove `no_grad` or `detach` from the model, or use a "
                "black-box attack."
            )
        return Value(value.loss.detach(), value.wrong), gradient

    def _value(self, points: Tensor) -> Value:
        logits = self._logits(points).to(points.dtype)  # a model under autocast answers in less
        return Value(self._measure(logits), divergence.wrong(logits.detach(), self._y))

    def _measure(self, logits: Tensor) -> Tensor:
        if self._clean is not None:
            return divergence.kl(self._clean, logits)
        measures = {
            "cross_entropy": divergence.cross_entropy,
            "margin": divergence.margin,
            "dlr": divergence.dlr,
        }
        return measures[self._loss](logits, self._y)


@contextmanager
def frozen(logits: LogitsFn) -> Iterator[None]:
    """Lets a `core.types.Freezable` model prepare once, for these lines, what no input changes."""
    # Asked for by name: wrappers forward attributes, which protocol checks of newer Pythons miss.
    freeze: Freeze | None = getattr(logits, "frozen", None)
    with nullcontext() if freeze is None else freeze():
        yield


def refuse_flat_start(attack: str, *, loss: LossName, start: str) -> None:
    """Refuses to climb KL(p(x) || p(x_adv)) from x, its minimum, where the gradient is zero.

    Args:
        attack: Class name of the attack, for the message.
        loss: The loss it climbs.
        start: Where it starts.

    Raises:
        ValueError: If the loss is kl and the start is "none".
    """
    if loss == "kl" and start == "none":
        raise ValueError(
            f"`{attack}(start=...)` must not be 'none' where loss='kl', as the divergence from the "
            "clean prediction is flat at the clean input; got start='none'. Set start='uniform'."
        )
