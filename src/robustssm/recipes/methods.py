"""The three training methods of the tables, as values."""

from robustssm.attacks.base import Attack
from robustssm.attacks.threat import Threat
from robustssm.core.errors import unknown
from robustssm.training.objective import Objective
from robustssm.training.pgd_training import PGDTraining
from robustssm.training.selection import Rule
from robustssm.training.standard import Standard
from robustssm.training.trades import Trades


def objective(
    method: str,
    *,
    threat: Threat,
    attack: Attack,
    kl_attack: Attack,
    beta: float,
    eps_warmup: float = 0.0,
) -> Objective:
    """The objective of a method.

    Args:
        method: "standard", "pgd" or "trades".
        threat: What the training attack may do.
        attack: Inner attack of PGD training.
        kl_attack: Inner attack of TRADES.
        beta: Weight of the robust term of TRADES.
        eps_warmup: Share of training over which eps rises linearly from 0.

    Raises:
        ValueError: If there is no such method.
    """
    if method == "standard":
        return Standard()
    if method == "pgd":
        return PGDTraining(threat=threat, attack=attack, eps_warmup=eps_warmup)
    if method == "trades":
        return Trades(threat=threat, attack=kl_attack, beta=beta, eps_warmup=eps_warmup)
    raise ValueError(unknown("training method", method, ("standard", "pgd", "trades")))


def selection(method: str) -> Rule:
    """How "best" is chosen: by robust accuracy on validation data, except where nothing is robust.

    Under standard training every epoch's robust accuracy is near zero, and its maximum is an almost
    untrained epoch (the published tables show such rows); there clean accuracy decides.
    """
    return "validation_accuracy" if method == "standard" else "validation_adversarial_accuracy"
