"""Perturbations that a training method moves itself, instead of asking an attack for them."""

from jaxtyping import Float
from torch import Tensor

from robustssm.attacks.region import Region
from robustssm.attacks.threat import Threat
from robustssm.core.errors import Inapplicable


def region_of(threat: Threat, x: Float[Tensor, "batch ..."], *, method: str) -> Region:
    """The one threat set around every example, in the units of the input.

    Args:
        threat: May be restricted to a fixed window or to channels.
        x: Clean inputs, (batch, ...).
        method: Who asks, for the message: "Free".

    Raises:
        ValueError: If `x` leaves the bounds or is not finite.
        Inapplicable: If the set is a union, or is measured in other units than the input's.
    """
    threat.check(x, attack=method)
    regions = list(threat.regions(x))
    first = regions[0]
    if len(regions) > 1 or not first.plain:
        raise Inapplicable(
            f"`{method}` needs a threat set that is a ball cut by a box, as it moves perturbations "
            f"without an attack; got {threat}. Use a threat without `band`, `channel_scales` and "
            "windows that may be anywhere, or `PGDTraining`."
        )
    return first


def require_plain_linf(threat: Threat, *, method: str) -> None:
    """Refuses what a released code does not know.

    Args:
        threat: The threat.
        method: Who asks, for the message: "Free(variant='released')".

    Raises:
        ValueError: If the norm is not linf, or the threat is restricted.
    """
    if threat.norm != "linf" or threat.restricted:
        raise ValueError(
            f"`{method}` must have a threat with norm='linf' and no restrictions, as the released "
            f"code knows no other; got {threat}. Use variant='paper'."
        )
