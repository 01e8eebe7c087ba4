"""S4 and S4D against the official package's layers (tests/data/README.md), parameter by parameter.

The stored values are float32 results of float32 code. Ours are computed in float64 from the same
parameters, so what differs is their rounding: their own two modes differ by 7e-6.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from robustssm.core.rng import Noise
from robustssm.layers.s4 import S4Config
from robustssm.layers.s4d import S4DConfig
from robustssm.ops.discretize import real_pairs
from robustssm.testing import tolerances
from tests.ops.real_form import real_low_rank

STORED = Path(__file__).parents[1] / "data" / "s4_layers.npz"
LENGTH = 100
CONFIGS = {
    "s4_dplr_legs": S4Config(d_state=16, ssm_copies=None, trainable_real=True),
    "s4d_lin_zoh": S4DConfig(d_state=16),
    "s4d_inv_zoh": S4DConfig(d_state=16),
    "s4d_legs_bilinear": S4DConfig(d_state=16, discretization="bilinear"),
}


def stored(name):
    with np.load(STORED) as archive:
        return {
            key.removeprefix(f"{name}/").removeprefix("param/"): torch.from_numpy(archive[key])
            for key in archive.files
            if key.startswith(f"{name}/")
        }


def pairs(complex_values):
    return torch.view_as_real(complex_values.resolve_conj().contiguous())


def conjugate(values, name):
    """A stored complex parameter; theirs is the other one of each conjugate pair."""
    return torch.view_as_complex(values[f"kernel.{name}"].double())[0].conj()


def untruncated(layer, C):
    """Solves C (I - A^L) = stored C, which is what the official layer keeps."""
    a = torch.complex(-layer.log_decay.exp(), layer.frequency)
    P, B = (torch.view_as_complex(v) for v in (layer.P, layer.B))
    A, _ = real_low_rank(a, P, B, layer.log_dt.exp())
    left = torch.eye(16, dtype=A.dtype) - torch.linalg.matrix_power(A, LENGTH)
    c = torch.linalg.solve(left.mT, real_pairs(C.conj())[..., None])[..., 0]
    return torch.complex(*c.chunk(2, -1)).conj() / 2**0.5


@torch.no_grad()
def load(name):
    values = stored(name)
    layer = CONFIGS[name].build(d_model=4, length=LENGTH, noise=Noise(0)).double()
    layer.log_dt.copy_(values["kernel.inv_dt"][:, 0])
    layer.log_decay.copy_(values["kernel.A_real"])
    layer.frequency.copy_(values["kernel.A_imag"])
    layer.D.copy_(values["D"][0])
    B, C = conjugate(values, "B"), conjugate(values, "C")
    if name == "s4_dplr_legs":
        layer.P.copy_(pairs(conjugate(values, "P")))
        layer.B.copy_(pairs(B))
        layer.C.copy_(pairs(untruncated(layer, C)))
    else:
        layer.C.copy_(pairs(B * C))
    return layer, values


def assert_near(found, expected):
    gap = (found - expected.double()).abs().max() / expected.abs().max()
    assert gap < tolerances.OTHER_FLOAT32, gap.item()


@pytest.mark.parametrize("name", CONFIGS)
def test_kernel_and_outputs(name):
    layer, values = load(name)
    assert_near(layer.kernel(LENGTH, dtype=torch.float64), values["kernel"][0])
    x = values["u"].double().mT
    for mode in ("y_conv", "y_step"):
        assert_near(layer(x).mT, values[mode])
    assert_near(layer.reference(x).mT, values["y_step"])


@pytest.mark.parametrize("name", CONFIGS)
def test_discretised_eigenvalues(name):
    layer, values = load(name)
    theirs, ours = values["dA"].to(torch.complex128), layer.system(dtype=torch.float64).A[0, 0]
    if name == "s4_dplr_legs":
        # Characteristic polynomials at a few points, as eigenvalues have no order.
        for point in (1.5, -1.5, 1.2j):
            eye = point * torch.eye(16, dtype=theirs.dtype)
            ratio = torch.linalg.det(eye - ours) / torch.linalg.det(eye - theirs)
            assert_near(ratio, torch.ones_like(ratio).real)
    else:
        assert_near(torch.view_as_real(ours.conj().resolve_conj()), torch.view_as_real(theirs))
