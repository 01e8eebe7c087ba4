"""Makes reference_apgd.npz with the reference implementation; see README.md.

From the root of the repository: python -m tests.data.reference_apgd --checkout PATH
"""

import argparse
import importlib
import sys
from pathlib import Path

import numpy as np
import torch

from tests.attacks.digits_net import digits_net

POINTS = 40
"""Examples whose final points are stored, to be attacked in one batch."""

SETTINGS = {
    "linf_ce": {"norm": "Linf", "eps": 0.15, "loss": "ce"},
    "linf_dlr": {"norm": "Linf", "eps": 0.15, "loss": "dlr"},
    "linf_t": {"norm": "Linf", "eps": 0.15},
    "l2_ce": {"norm": "L2", "eps": 1.0, "loss": "ce"},
    "l2_dlr": {"norm": "L2", "eps": 1.0, "loss": "dlr"},
    "l2_t": {"norm": "L2", "eps": 1.0},
    "l1_ce": {"norm": "L1", "eps": 2.0, "loss": "ce", "use_largereps": True},
    "l1_ce_plain": {"norm": "L1", "eps": 2.0, "loss": "ce"},
    "l1_t": {"norm": "L1", "eps": 2.0, "use_largereps": True},
}
"""A name without a loss is the targeted attack."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", required=True, help="of github.com/fra31/auto-attack")
    sys.path.insert(0, parser.parse_args().checkout)
    reference = importlib.import_module("autoattack.autopgd_base")
    torch.set_num_threads(1)
    net, x, y, _ = digits_net()

    def attack(name, **more):
        kind = "APGDAttack" if "loss" in SETTINGS[name] else "APGDAttack_targeted"
        made = getattr(reference, kind)(net, seed=0, device="cpu", **SETTINGS[name], **more)
        made.init_hyperparam(x)
        return made

    def right(points):
        with torch.no_grad():
            return torch.cat([net(p).argmax(1) for p in points.split(500)]) == y

    stored = {}
    clean = right(x)
    rows = clean.nonzero().squeeze(1)[:POINTS]
    for name, values in SETTINGS.items():
        some = attack(name)
        with torch.no_grad():
            some.y_target = net(x[rows]).sort(dim=1)[1][:, -2]
        torch.manual_seed(0)
        if values.get("use_largereps"):
            phases = [3 * some.eps, 2 * some.eps, some.eps], [30, 30, 40]
            best, held, _, last = some.decr_eps_pgd(x[rows], y[rows], *phases)
        else:
            best, held, _, last = some.attack_single_run(x[rows], y[rows])
        held = held.bool().reshape(-1, 1, 1, 1)
        stored[f"points_{name}"] = torch.where(held, best, last).detach().numpy()

    def survivors(name, before, **more):
        points = x.clone()
        points[before] = attack(name, **more).perturb(x[before], y[before])
        return right(points) & before

    after = survivors("l1_ce", clean, n_restarts=5)
    stored["survive_l1_ce_5"] = after.numpy()
    stored["survive_l1_t"] = survivors("l1_t", after, n_target_classes=5).numpy()
    for name in ("linf_dlr", "l2_dlr", "l1_ce"):
        stored[f"survive_{name}"] = survivors(name, clean).numpy()
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **stored)


if __name__ == "__main__":
    main()
