"""The training methods of the tables, and their usual rivals, as values."""

import dataclasses
from collections.abc import Callable

from robustssm.attacks.base import Attack
from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.errors import unknown
from robustssm.recipes import Method
from robustssm.training.fast import Fast
from robustssm.training.free import Free
from robustssm.training.jacobian import JacobianPenalty
from robustssm.training.mart import Mart
from robustssm.training.objective import Objective
from robustssm.training.pgd_training import PGDTraining
from robustssm.training.selection import Rule
from robustssm.training.standard import Standard
from robustssm.training.trades import Trades
from robustssm.training.warmup import EpsWarmup
from robustssm.training.weight_perturbation import AdversarialWeightPerturbation
from robustssm.training.yopo import Yopo


def objective(
    method: Method,
    *,
    threat: Threat,
    attack: Attack,
    kl_attack: Attack,
    beta: float,
    eps_warmup: EpsWarmup = 0.0,
    released: bool = False,
) -> Objective:
    """The objective of a method.

    Args:
        method: Its short name, as in recipes.
        threat: What the training attack may do.
        attack: Inner attack of PGD training, also under weight perturbation.
        kl_attack: Inner attack of TRADES and MART.
        beta: Weight of the robust term of TRADES.
        eps_warmup: Share of training over which eps rises linearly from 0, or begin and end.
        released: Free training and YOPO as the code released with qi2024exploring ran them.

    Raises:
        ValueError: If there is no such method.
    """
    variant = "released" if released else "paper"
    madry = PGDTraining(threat=threat, attack=attack, eps_warmup=eps_warmup)
    made: dict[str, Callable[[], Objective]] = {
        "standard": Standard,
        "pgd": lambda: madry,
        "trades": lambda: Trades(threat=threat, attack=kl_attack, beta=beta, eps_warmup=eps_warmup),
        "free": lambda: Free(threat=threat, eps_warmup=eps_warmup, variant=variant),
        "yopo": lambda: Yopo(threat=threat, eps_warmup=eps_warmup, variant=variant),
        "fast": lambda: Fast(threat=threat, eps_warmup=eps_warmup),
        "mart": lambda: Mart(threat=threat, attack=_ascending(kl_attack), eps_warmup=eps_warmup),
        "awp": lambda: AdversarialWeightPerturbation(objective=madry),
        "jacobian": JacobianPenalty,
    }
    if method not in made:
        raise ValueError(unknown("training method", method, made))
    return made[method]()


def _ascending(attack: Attack) -> Attack:
    """The same steps along the gradient of the cross-entropy: MART's inner attack."""
    return dataclasses.replace(attack, loss="cross_entropy") if isinstance(attack, PGD) else attack


def selection(method: Method) -> Rule:
    """How "best" is chosen: by robust accuracy on validation data, except where nothing is robust.

    Under standard training every epoch's robust accuracy is near zero, and its maximum is an almost
    untrained epoch (the published tables show such rows); there clean accuracy decides.
    """
    return "validation_accuracy" if method == "standard" else "validation_adversarial_accuracy"
