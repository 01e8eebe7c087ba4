"""Recurrences against hand-written sums, scipy and dense linear algebra."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.signal
import torch

from robustssm.core.errors import Inapplicable
from robustssm.core.rng import Noise
from robustssm.ops.recurrence import (
    Recurrence,
    impulse_response,
    run,
    spectral_radius,
    states,
)


def complex_normal(noise, *shape):
    parts = noise.normal(*shape, 2, dtype=torch.float64)
    return torch.view_as_complex(parts)


def diagonal(noise, *, batch=1, time=1, groups=3, state=4, inputs=1, outputs=1, **fields):
    """A stable complex diagonal system."""
    radius = noise.uniform(batch, time, groups, state, low=0.3, high=0.95, dtype=torch.float64)
    angle = noise.uniform(batch, time, groups, state, low=-3.0, high=3.0, dtype=torch.float64)
    return Recurrence(
        A=torch.polar(radius, angle),
        B=complex_normal(noise, batch, time, groups, state, inputs),
        C=complex_normal(noise, batch, time, groups, outputs, state),
        D=noise.normal(groups, outputs, inputs, dtype=torch.float64),
        **fields,
    )


@pytest.mark.parametrize("groups, inputs, outputs", [(3, 1, 1), (1, 5, 5), (2, 3, 2)])
def test_run_is_the_convolution_with_the_impulse_response(groups, inputs, outputs):
    system = diagonal(Noise(0), groups=groups, inputs=inputs, outputs=outputs, conjugate_pairs=True)
    u = Noise(1).normal(2, 9, groups * inputs, dtype=torch.float64)
    K = impulse_response(system, 9)
    grouped = u.reshape(2, 9, groups, inputs)
    expected = torch.zeros(2, 9, groups, outputs, dtype=torch.float64)
    for t in range(9):
        for s in range(t + 1):
            expected[:, t] += torch.einsum("goi,bgi->bgo", K[..., t - s], grouped[:, s])
    torch.testing.assert_close(run(system, u), expected.reshape(2, 9, -1), rtol=1e-10, atol=1e-12)


def test_a_dense_system_equals_scipy_dlsim():
    noise = Noise(2)
    A = 0.3 * noise.normal(1, 1, 2, 4, 4, dtype=torch.float64)
    B = noise.normal(1, 1, 2, 4, 1, dtype=torch.float64)
    C = noise.normal(1, 1, 2, 1, 4, dtype=torch.float64)
    D = noise.normal(2, 1, 1, dtype=torch.float64)
    u = noise.normal(1, 12, 2, dtype=torch.float64)
    y = run(Recurrence(A=A, B=B, C=C, D=D), u)
    for g in range(2):
        a, b, c = (M[0, 0, g].numpy() for M in (A, B, C))
        # scipy reads the state before the input enters: y = C (A h + B u) + D u.
        _, expected, _ = scipy.signal.dlsim((a, b, c @ a, c @ b + D[g].numpy(), 1.0), u[0, :, g])
        np.testing.assert_allclose(y[0, :, g, None], expected, rtol=1e-9, atol=1e-12)


def test_a_conjugate_pair_is_two_states():
    system = diagonal(Noise(3), conjugate_pairs=True)
    both = replace(
        system,
        A=torch.cat([system.A, system.A.conj()], -1),
        B=torch.cat([system.B, system.B.conj()], -2),
        C=torch.cat([system.C, system.C.conj()], -1),
        conjugate_pairs=False,
    )
    u = Noise(4).normal(2, 7, 3, dtype=torch.float64)
    torch.testing.assert_close(run(system, u), run(both, u), rtol=1e-10, atol=1e-12)


def test_time_varying_and_per_example_axes_are_indexed():
    system = diagonal(Noise(5), batch=2, time=6)
    u = Noise(6).normal(2, 6, 3, dtype=torch.float64)
    h = torch.zeros(2, 3, 4, dtype=torch.complex128)
    for t in range(6):
        h = system.A[:, t] * h + system.B[:, t, ..., 0] * u[:, t, :, None]
        y = (system.C[:, t, :, 0] * h).sum(-1).real + system.D[:, 0, 0] * u[:, t]
        torch.testing.assert_close(states(system, u)[:, t], h)
        torch.testing.assert_close(run(system, u)[:, t], y)


def test_axes_of_size_one_broadcast():
    system = diagonal(Noise(7), groups=1, inputs=1)
    shared = replace(system, D=system.D.expand(3, 1, 1))
    copied = replace(
        shared, **{name: getattr(system, name).expand(2, 6, 3, -1, *e) for name, e in AXES.items()}
    )
    u = Noise(8).normal(2, 6, 3, dtype=torch.float64)
    torch.testing.assert_close(run(shared, u), run(copied, u))
    torch.testing.assert_close(
        impulse_response(shared, 5), impulse_response(replace(copied, **first(copied)), 5)
    )


AXES = {"A": (), "B": (-1,), "C": (-1,)}


def first(system):
    return {name: getattr(system, name)[:1, :1] for name in AXES}


def test_backward_runs_from_the_end_and_adds():
    forward, backward = diagonal(Noise(9)), diagonal(Noise(10), time=8)
    u = Noise(11).normal(2, 8, 3, dtype=torch.float64)
    expected = run(forward, u) + run(backward, u.flip(1)).flip(1)
    torch.testing.assert_close(run(replace(forward, backward=backward), u), expected)
    assert replace(forward, backward=backward).directions[1] is backward


def test_spectral_radius_of_dense_and_diagonal_agree():
    system = diagonal(Noise(14))
    dense = replace(system, A=torch.diag_embed(system.A))
    torch.testing.assert_close(spectral_radius(dense), spectral_radius(system))


def test_what_has_no_impulse_response_is_refused():
    with pytest.raises(Inapplicable, match="same at every step"):
        impulse_response(diagonal(Noise(0), time=4), 4)
    with pytest.raises(Inapplicable, match="both ways"):
        impulse_response(diagonal(Noise(0), backward=diagonal(Noise(0))), 4)


def test_shapes_that_do_not_fit_are_named():
    system = diagonal(Noise(0))
    with pytest.raises(ValueError, match=r"`Recurrence\(C=\.\.\.\)` must have axes"):
        replace(system, C=system.C[:, :, :2])
    with pytest.raises(ValueError, match="must have a complex A"):
        replace(system, A=system.A.real, conjugate_pairs=True)
