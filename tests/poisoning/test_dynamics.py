"""Proposition 1 against autograd; gradient flow against its closed form."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustssm.core.errors import Inapplicable
from robustssm.core.rng import Noise
from robustssm.models.linear_ssm import LinearSSM, diagonal_teacher, theorem_teacher
from robustssm.poisoning.dynamics import (
    _Field,
    _Gram,
    closed_form_limit,
    compressed,
    gamma_coefficients,
    gradient_flow,
    time_to_fit,
    velocity,
)
from robustssm.poisoning.initialisation import Head, theorem_start
from robustssm.poisoning.network import with_head
from robustssm.poisoning.sequences import dense, impulse, ordinary, special


def drawn(noise: Noise, *shape: int) -> np.ndarray:
    return noise.normal(*shape, dtype=torch.float64).numpy()


def some_system(noise: Noise, d_state: int) -> LinearSSM:
    return LinearSSM(
        a=0.7 * drawn(noise, d_state), b=drawn(noise, d_state), c=drawn(noise, d_state)
    )


def phi(a: torch.Tensor, b: np.ndarray, c: np.ndarray, x: np.ndarray) -> torch.Tensor:
    """The last output by the recurrence, with a graph."""
    inputs, b_, c_ = (torch.from_numpy(np.ascontiguousarray(v)) for v in (x, b, c))
    state = torch.zeros(len(x), len(a), dtype=torch.float64)
    for step in range(x.shape[1]):
        state = a * state + b_ * inputs[:, step : step + 1]
    return state @ c_


@given(seed=st.integers(0, 200), d_state=st.integers(1, 6), length=st.integers(3, 10))
def test_proposition_1_is_the_gradient_of_a_standalone_ssm(seed, d_state, length):
    noise = Noise(seed)
    system = some_system(noise, d_state)
    data = dense(5, length=length, noise=noise).labelled(diagonal_teacher(0.9, 0.4))
    gamma = gamma_coefficients(data.x, data.y - system.last_output(data.x))
    a = torch.from_numpy(system.a).requires_grad_()
    loss = ((phi(a, system.b, system.c, data.x) - torch.from_numpy(data.y)) ** 2).mean()
    (gradient,) = torch.autograd.grad(loss, a)
    np.testing.assert_allclose(-velocity(system, gamma), gradient, rtol=1e-10, atol=1e-10)


@given(seed=st.integers(0, 200), d_state=st.integers(1, 6), width=st.integers(1, 7))
def test_proposition_1_is_the_gradient_of_an_ssm_in_a_network(seed, d_state, width):
    noise = Noise(seed)
    system, length = some_system(noise, d_state), 6
    head = Head(
        inward=drawn(noise, width), hidden=drawn(noise, width, width), outward=drawn(noise, width)
    )
    x, y = drawn(noise, 8, length), drawn(noise, 8)
    students = with_head(system, head)
    slope = students.slope(system.last_output(x))
    gamma = gamma_coefficients(x, y - students.predict(x), slope)
    a = torch.from_numpy(system.a).requires_grad_()
    z = phi(a, system.b, system.c, x)
    layers = (torch.from_numpy(v) for v in (head.inward[None], head.hidden, head.outward))
    first, second, last = layers
    predicted = torch.relu(torch.relu(z[:, None] @ first) @ second) @ last
    np.testing.assert_allclose(students.predict(x), predicted.detach(), rtol=1e-10, atol=1e-10)
    (gradient,) = torch.autograd.grad(((predicted - torch.from_numpy(y)) ** 2).mean(), a)
    np.testing.assert_allclose(-velocity(system, gamma), gradient, rtol=1e-10, atol=1e-10)


@given(seed=st.integers(0, 100), length=st.integers(4, 10))
def test_ordinary_sequences_do_not_push_all_entries_alike_and_special_ones_do(seed, length):
    noise = Noise(seed)
    plain = ordinary(4, length=length, support=range(1, length - 1), noise=noise)
    system, teacher = some_system(noise, 3), diagonal_teacher(1.0)

    def first_gamma(data):
        return gamma_coefficients(data.x, data.y - system.last_output(data.x))[0]

    assert first_gamma(plain.labelled(teacher)) == 0.0
    late = special(2, length=length, noise=noise)
    assert abs(first_gamma((plain + late).labelled(teacher))) > 1e-8
    # The last entry meets lag 0, where A has no say.
    last = special(2, length=length, noise=noise, positions=(length,))
    np.testing.assert_allclose(gamma_coefficients(last.x, np.ones(2)), np.zeros(length - 1), atol=0)


@given(seed=st.integers(0, 100), n=st.integers(1, 30))
def test_a_compressed_set_has_the_same_loss_whatever_the_labels(seed, n):
    noise = Noise(seed)
    data = dense(n, length=5, noise=noise).labelled(diagonal_teacher(0.7))
    wrong = type(data)(
        x=data.x, y=drawn(noise, n), is_special=data.is_special, support=data.support
    )
    h = drawn(noise, 5)
    factor, target, rest = compressed(wrong)
    assert factor.shape == (5, 5)
    expected = ((wrong.x[:, ::-1] @ h - wrong.y) ** 2).mean()
    np.testing.assert_allclose(((factor @ h - target) ** 2).sum() + rest, expected, rtol=1e-9)


@given(seed=st.integers(0, 50))
def test_the_flows_field_and_jacobian_are_derivatives_of_its_loss(seed):
    noise = Noise(seed)
    system = some_system(noise, 4)
    data = dense(9, length=6, noise=noise).labelled(diagonal_teacher(0.9, 0.3))
    field = _Field(b=system.b, c=system.c, gram=_Gram.of(data))

    def loss(a: torch.Tensor) -> torch.Tensor:
        return ((phi(a, system.b, system.c, data.x) - torch.from_numpy(data.y)) ** 2).mean()

    a = torch.from_numpy(system.a)
    hessian = torch.autograd.functional.hessian(loss, a)
    assert isinstance(hessian, torch.Tensor)
    gradient = torch.autograd.functional.jacobian(loss, a)
    assert isinstance(gradient, torch.Tensor)
    np.testing.assert_allclose(field.loss(system.a), loss(a).item(), rtol=1e-9)
    np.testing.assert_allclose(field.velocity(0.0, system.a), -gradient, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(field.jacobian(0.0, system.a), -hessian, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "length, d_state, scale, gap",
    [(3, 4, 0.1, None), (4, 6, 1e-2, 1e-5), (7, 10, 1e-3, 1.5e-8), (9, 20, 5e-3, 5e-12)],
)
def test_the_ordinary_half_ends_at_its_closed_form_at_the_time_it_says(length, d_state, scale, gap):
    a0 = theorem_start(3, d_state=d_state, scale=scale, gap=gap)
    ones = np.ones(d_state)
    data = impulse((1, 1.0), length=length).labelled(theorem_teacher(d_state))
    flow = gradient_flow(LinearSSM(a=a0, b=ones, c=ones), data)
    assert flow.converged and flow.train_mse[-1] <= 1e-24
    limit = closed_form_limit(a0, length=length)
    np.testing.assert_allclose(flow.a[-1], limit, rtol=1e-6)
    np.testing.assert_allclose((limit ** (length - 1)).sum(), 1, rtol=1e-9)
    if length > 4:  # else the time after the start matters as much as the wait
        np.testing.assert_allclose(time_to_fit(a0, length=length), flow.times[-1], rtol=1e-3)


def test_the_time_to_fit_scales_with_the_inverse_power_of_the_start():
    a0 = theorem_start(0, d_state=5, scale=1e-3, gap=None)
    ratio = time_to_fit(a0 / 10, length=7) / time_to_fit(a0, length=7)
    np.testing.assert_allclose(ratio, 1e4, rtol=1e-9)
    assert time_to_fit(a0 / 10, length=3) > time_to_fit(a0, length=3)


@pytest.mark.parametrize("a0", [np.array([0.1, -0.1]), np.array([0.9, 0.9]), np.array([0.0, 0.1])])
def test_the_closed_form_refuses_starts_that_it_does_not_cover(a0):
    with pytest.raises(Inapplicable, match="gradient_flow"):
        closed_form_limit(a0, length=5)


def test_the_closed_form_refuses_sequences_without_lags():
    with pytest.raises(ValueError, match="at least 3; got 2"):
        closed_form_limit(np.array([0.1, 0.2]), length=2)


def test_a_flow_that_runs_out_of_time_says_so():
    ones = np.ones(4)
    start = LinearSSM(a=np.full(4, 1e-3), b=ones, c=ones)
    data = impulse((1, 1.0), length=7).labelled(theorem_teacher(4))
    flow = gradient_flow(start, data, t_end=10.0)
    assert not flow.converged and flow.times[-1] == 10.0
