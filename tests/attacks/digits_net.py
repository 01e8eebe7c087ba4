"""The stored net, images and verdicts of the reference AutoAttack; see tests/data/README.md."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from robustssm.core.rng import Noise, global_stream

STORED = Path(__file__).parents[1] / "data" / "autoattack_digits.npz"


def digits_net() -> tuple[nn.Module, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The net in eval mode, x (500, 1, 8, 8) in [0, 1], y (500,), and flags by their stored names.

    A flag such as "survive_Linf_0.15_apgd-t" says who is still right after that stage.
    """
    stored = np.load(STORED)
    with global_stream(Noise(0)):  # the initial weights are overwritten below
        net = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )
    weights = {k[2:]: torch.from_numpy(stored[k]) for k in stored.files if k.startswith("w_")}
    net.load_state_dict(weights)
    flags = {k: torch.from_numpy(stored[k]) for k in stored.files if k.startswith("survive_")}
    x, y = torch.from_numpy(stored["x"]), torch.from_numpy(stored["y"])
    return net.eval(), x, y, flags
