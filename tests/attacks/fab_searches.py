"""FAB as its tests call it: a search by itself, and flags of a search in batches."""

import functools

import torch

from robustssm.attacks.access import Access
from robustssm.attacks.fab import FAB, FABTargeted
from robustssm.core.rng import Noise
from robustssm.ops import divergence
from tests.attacks.digits_net import digits_net

NORMS = ("linf", "l2", "l1")
BOTH = {"targeted": FABTargeted, "untargeted": FAB}

net_and_data = functools.cache(digits_net)


def search(attack, model, x, y, threat, *, seed=0, mask=None):
    """What the attack itself says, before the base class projects."""
    region = threat.regions(x, mask=mask)[0]
    access = Access.of(model)
    return attack.perturb(access, x, y, region=region, noise=Noise(seed, torch.arange(len(x))))


def fooled(attack, model, x, y, threat, *, seed=0, size=500):
    """Flags of candidates that are searched for in batches of `size`, and judged in one.

    Candidates are so near to the boundary that rounding in the net, which differs from batch size
    to batch size, can decide: one of 500 under l2 leads by 9e-7 only.
    """
    found, noise = [], Noise(seed, torch.arange(len(x)))
    for rows in torch.arange(len(x)).split(size):
        found.append(attack(model, x[rows], y[rows], threat=threat, noise=noise.select(rows)))
    return divergence.wrong(model(torch.cat(found)), y)
