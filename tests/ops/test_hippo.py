"""HiPPO matrices against printed values and their defining property."""

import math

import pytest
import torch

from robustssm.ops.hippo import diagonal, legs, legs_low_rank

F64 = torch.float64


def test_legs_of_three_states_by_hand():
    A, B = legs(3)
    expected = -torch.tensor(
        [[1, 0, 0], [math.sqrt(3), 2, 0], [math.sqrt(5), math.sqrt(15), 3]], dtype=F64
    )
    torch.testing.assert_close(A, expected, rtol=1e-15, atol=0)
    torch.testing.assert_close(B, torch.tensor([1.0, 3.0, 5.0], dtype=F64).sqrt())


@pytest.mark.parametrize(
    "state, at, expected",
    [
        (4, [0, 1], [4.603293007067, 0.556501115084]),
        (64, [0, 1, 2, -1], [1303.273842981196, 433.0307565, 258.1522102, 0.263856931111]),
    ],
)
def test_legs_eigenvalues(state, at, expected):
    eigenvalues, _, _ = legs_low_rank(state)
    assert (eigenvalues.real == -0.5).all() and len(eigenvalues) == state // 2
    torch.testing.assert_close(
        eigenvalues.imag[at], torch.tensor(expected, dtype=F64), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("state", [2, 6, 32])
def test_low_rank_coordinates_describe_the_same_system(state):
    """Markov parameters B^* A^k B do not depend on the (unitary) coordinates."""
    A, B = legs(state)
    pairs = legs_low_rank(state)
    a, P, b = (torch.cat([v, v.conj()]) for v in pairs)
    full = torch.diag(a) - torch.outer(P, P.conj())
    expected, found = B, b
    for _ in range(4):
        torch.testing.assert_close((b.conj() @ found).real, B @ expected, rtol=1e-9, atol=0)
        expected, found = A @ expected, full @ found
        scale = torch.linalg.norm(expected)
        expected, found = expected / scale, found / scale


def test_phases_are_fixed_by_a_positive_input_vector():
    _, P, B = legs_low_rank(16)
    assert (B.real > 0).all() and (B.imag == 0).all()
    torch.testing.assert_close(P, B / math.sqrt(2))


@pytest.mark.parametrize(
    "spectrum, expected",
    [
        ("lin", [-0.5 + 0j, -0.5 + 1j * math.pi]),
        ("inv", [-0.5 + 3.819718634205j, -0.5 + 0.424413181578j]),
        ("legs", [-0.5 + 4.603293007067j, -0.5 + 0.556501115084j]),
        ("real", [-1.0 + 0j, -2.0 + 0j]),
    ],
)
def test_diagonal_initial_values(spectrum, expected):
    found = diagonal(spectrum, 2)
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.complex128), rtol=1e-11, atol=0
    )
