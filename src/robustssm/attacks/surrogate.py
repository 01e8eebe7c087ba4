"""The losses that an attack may climb in place of the error count, which has no gradient."""

from typing import Literal, NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustssm.attacks.access import Access
from robustssm.ops import divergence

LossName = Literal["cross_entropy", "margin", "dlr", "kl"]
"""kl is KL(p(x) || p(x_adv)), from the clean prediction, and ignores the label."""


class Value(NamedTuple):
    """What a batch of points is worth to the attacker."""

    loss: Float[Tensor, " batch"]
    wrong: Bool[Tensor, " batch"]


class Surrogate:
    """One loss on one batch: labels and, for kl, the clean prediction are fixed at the start.

    The clean prediction costs one forward pass per attack, however many steps and restarts follow,
    or none if the caller had it.
    """

    def __init__(
        self,
        loss: LossName,
        model: Access,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
    ):
        """Takes the clean prediction where the loss needs one."""
        self._loss = loss
        self._model = model
        self._y = y
        self._clean = None
        if loss == "kl":
            known = model.known(x)
            self._clean = model.logits(x) if known is None else known

    @property
    def clean(self) -> Tensor | None:
        """Logits of the clean inputs, where the loss needs them."""
        return self._clean

    def select(self, rows: Int[Tensor, " rows"]) -> "Surrogate":
        """The same loss on some examples only, without another clean pass."""
        chosen = object.__new__(Surrogate)
        chosen._loss, chosen._model, chosen._y = self._loss, self._model, self._y[rows]
        chosen._clean = None if self._clean is None else self._clean[rows]
        return chosen

    def value(self, points: Float[Tensor, "batch ..."]) -> Value:
        """Loss and error at `points`, without gradient: one forward pass."""
        logits = self._model.logits(points)
        return Value(self._measure(logits, slice(None)), divergence.wrong(logits, self._y))

    def climb(self, points: Float[Tensor, "batch ..."]) -> tuple[Value, Float[Tensor, "batch ..."]]:
        """Loss, error and the gradient of each example's loss: one forward and one backward pass.

        Raises:
            ValueError: If the logits do not depend differentiably on the input.
        """
        logits, loss, gradient = self._model.climb(points, self._measure)
        return Value(loss, divergence.wrong(logits, self._y)), gradient

    def _measure(self, logits: Tensor, rows: slice) -> Tensor:
        if self._clean is not None:
            return divergence.kl(self._clean[rows], logits)
        measures = {
            "cross_entropy": divergence.cross_entropy,
            "margin": divergence.margin,
            "dlr": divergence.dlr,
        }
        return measures[self._loss](logits, self._y[rows])


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
