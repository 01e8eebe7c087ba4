"""Distances that the reference FAB (github.com/fra31/auto-attack, MIT) finds, on the digits net.

python -m tests.data.reference_fab --checkout PATH    writes tests/data/reference_fab.npz
"""

import argparse
import importlib
import math
import sys
from pathlib import Path

import numpy as np
import torch

from robustssm.core.rng import Noise
from tests.attacks.digits_net import digits_net

STORED = Path(__file__).with_suffix(".npz")
NORMS = {"linf": ("Linf", math.inf), "l2": ("L2", 2), "l1": ("L1", 1)}
STEPS = (20, 100)


def distance(found, x, order):
    """Norms of what was found; infinity where the attack gave the input back."""
    norms = (found - x).flatten(1).norm(order, dim=1)
    return torch.where(norms > 0, norms, math.inf)


def reference(make, net, x, y, norm, steps):
    """Distances per example: targeted (9 targets, examples), and untargeted (examples,)."""
    name, order = NORMS[norm]
    attack = make(net, norm=name, n_iter=steps, eps=1.0, device="cpu")
    whole = distance(attack.attack_single_run(x, y), x, order)
    rows = []
    for rank in range(2, 11):
        attack.target_class = rank
        rows.append(distance(attack.attack_single_run(x, y, is_targeted=True), x, order))
    return torch.stack(rows), whole


def hyperplanes():
    """Points of the unit cube, some on its sides, and planes that cut it."""
    points = Noise(0).uniform(200, 12, low=-0.2, high=1.2).clamp(0, 1)
    normals = Noise(1).normal(200, 12)
    centres = Noise(2).uniform(200, 12)
    return points, normals, (normals * centres).sum(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", type=Path, required=True, help="of fra31/auto-attack")
    sys.path.insert(0, str(parser.parse_args().checkout))
    projections = importlib.import_module("autoattack.fab_projections")
    make = importlib.import_module("autoattack.fab_pt").FABAttack_PT
    torch.set_num_threads(1)
    net, x, y, _ = digits_net()
    right = (net(x).argmax(1) == y).nonzero().squeeze(1)
    values = {"examples": right.numpy().astype(np.int16)}
    for norm, (_, order) in NORMS.items():
        moves = getattr(projections, f"projection_{norm}")(*hyperplanes())
        values[f"{norm}_projection"] = moves.norm(order, dim=1).numpy()
        for steps in STEPS:
            targeted, whole = reference(make, net, x[right], y[right], norm, steps)
            nearest, which = targeted.min(0)
            values[f"{norm}_{steps}_targeted"] = nearest.numpy()
            values[f"{norm}_{steps}_target"] = which.numpy().astype(np.int8)
            values[f"{norm}_{steps}_untargeted"] = whole.numpy()
    np.savez_compressed(STORED, **values)


if __name__ == "__main__":
    main()
