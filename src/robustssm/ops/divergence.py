"""How wrong a prediction is, per example: losses of logits (batch, classes) that attacks climb."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

_TINY = 1e-12  # keeps DLR finite where all logits are equal, as croce2020reliable does


def cross_entropy(
    logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """-log softmax(logits)[y]."""
    return F.cross_entropy(logits, y, reduction="none")


def kl(
    clean: Float[Tensor, "batch classes"], logits: Float[Tensor, "batch classes"]
) -> Float[Tensor, " batch"]:
    """KL(p || q) = sum_c p[c] (log p[c] - log q[c]), p = softmax(clean), q = softmax(logits).

    Gradients flow through both. Source: zhang2019trades, equation 5, in the form of its code.
    """
    log_p, log_q = F.log_softmax(clean, -1), F.log_softmax(logits, -1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def margin(
    logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """max_{c != y} z[c] - z[y]: positive where the prediction is wrong. Needs 2 classes."""
    true = logits.gather(1, y[:, None])
    rivals = logits.scatter(1, y[:, None], -torch.inf)
    return rivals.max(1).values - true.squeeze(1)


def cw_margin(
    logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"], *, confidence: float = 0.0
) -> Float[Tensor, " batch"]:
    """min(margin, confidence): stops rising, and pulling, once wrong by `confidence`.

    Source: carlini2017towards, section IV, loss f_6 with the sign turned.
    """
    return margin(logits, y).clamp(max=confidence)


def dlr(
    logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """The difference of logits ratio, margin / (z_1 - z_3) with z_1 >= z_2 >= z_3 sorted.

    Invariant to shift and scale of the logits. Source: croce2020reliable, equation 6.

    Raises:
        ValueError: With fewer than 3 classes: there is no third logit, and with two of them any
            such ratio is constantly +-1, with gradient zero. Climb `margin` there.
    """
    if not dlr_defined(logits.shape[1]):
        raise ValueError(
            "`dlr` needs at least 3 classes, as it divides by the gap to the third largest logit; "
            f"got {logits.shape[1]}. Climb loss='margin' instead."
        )
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + _TINY)


def dlr_defined(classes: int, *, targeted: bool = False) -> bool:
    """Whether `dlr`, or `dlr_targeted`, exists for so many classes: from 3, or from 4, on.

    Attacks made for these losses climb `margin`, or `margin_towards`, where it does not; what a
    suite then reports is no longer the published attack, and its record must say so.
    """
    return classes >= (4 if targeted else 3)


def dlr_targeted(
    logits: Float[Tensor, "batch classes"],
    y: Int[Tensor, " batch"],
    target: Int[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """(z[target] - z[y]) / (z_1 - (z_3 + z_4) / 2) with z_1 >= z_2 >= z_3 >= z_4 sorted.

    Invariant to shift and scale of the logits. Source: croce2020reliable, equation 7.

    Raises:
        ValueError: With fewer than 4 classes: there is no fourth logit. Climb `margin_towards`.
    """
    if not dlr_defined(logits.shape[1], targeted=True):
        raise ValueError(
            "`dlr_targeted` needs at least 4 classes, as it divides by the gap to the third and "
            f"fourth largest logits; got {logits.shape[1]}. Climb `margin_towards` instead."
        )
    top = logits.topk(4, dim=1).values
    gap = top[:, 0] - 0.5 * (top[:, 2] + top[:, 3])
    return margin_towards(logits, y, target) / (gap + _TINY)


def margin_towards(
    logits: Float[Tensor, "batch classes"],
    y: Int[Tensor, " batch"],
    target: Int[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """z[target] - z[y]: positive where the target beats the true class.

    Its gradient has the direction of this margin over any gap of logits that is held constant, and
    unlike that ratio, which with two classes is always +-1, its value says who is closer.
    """
    both = logits.gather(1, torch.stack((y, target), 1))
    return both[:, 1] - both[:, 0]


def wrong(
    logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]
) -> Bool[Tensor, " batch"]:
    """Whether the predicted class is not `y`; a row with a NaN predicts nothing and is wrong."""
    return (logits.argmax(1) != y) | logits.isnan().any(1)
