"""Systems run chunk by chunk in Triton against convolution with their kernels, in float64."""

import pytest
import torch

from robustssm.core.rng import Noise
from robustssm.ops import recurrence as recurrences
from robustssm.ops.convolution import causal_convolution_reference
from robustssm.ops.kernels.triton_state_space import (
    STEPS,
    from_modes,
    from_recurrence,
    prepare,
    run,
    supports,
)
from robustssm.ops.recurrence import Recurrence
from robustssm.ops.structured import vandermonde_reference

# Relative to the largest entry of the float64 result; measured 1.5e-7 in the interpreter.
TOLERANCE = 5e-7


def modes(channels, count, length):
    noise = Noise(length)
    size = torch.exp(-noise.fork("size").uniform(channels, count, dtype=torch.float64))
    angle = 3 * noise.fork("angle").normal(channels, count, dtype=torch.float64)
    weights = (noise.fork(name).normal(channels, count, dtype=torch.float64) for name in "ri")
    return torch.polar(size, angle), torch.complex(*weights)


def problem(batch, length, channels, count, device, steps=16):
    """Inputs, the system of random modes with a skip, and its kernel in float64."""
    base, weights = modes(channels, count, length)
    skip = Noise(2).normal(channels).double()
    kernel = vandermonde_reference(weights, base, length)
    kernel[:, 0] += skip
    system = prepare(*(x.to(device) for x in (*from_modes(base, weights), skip)), steps=steps)
    u = Noise(length).fork("u").normal(batch, length, channels)
    return u.to(device), system, kernel.to(device)


def agree(u, system, kernel, tolerance, **how):
    v = Noise(9).normal(*u.shape).to(u)
    found, wanted = [], []
    for x, function, out in [
        (u, lambda u: run(u, system, **how), found),
        (u.double(), lambda u: causal_convolution_reference(u, kernel), wanted),
    ]:
        x = x.detach().requires_grad_()
        y = function(x)
        out += [y.detach(), torch.autograd.grad(y, x, v.to(y))[0]]
    for got, expected in zip(found, wanted, strict=True):
        assert got.dtype == u.dtype
        assert (got.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (3, 5, 7, 2), (1, 33, 3, 8), (3, 100, 5, 5), (70, 17, 2, 3)], ids=str
)
def test_outputs_and_input_gradients_are_those_of_the_kernel(shape, device):
    agree(*problem(*shape, device), TOLERANCE)


def test_chunks_of_the_size_a_gpu_runs(device):
    agree(*problem(3, 130, 2, 32, device, steps=STEPS), TOLERANCE)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_other_precisions(precision, device):
    u, system, kernel = problem(3, 40, 2, 4, device)
    agree(u, system, kernel, 2e-2, precision=precision)
    with pytest.raises(ValueError, match="'ieee'"):
        run(u, system, precision="ieee")


def test_a_dense_system(device):
    noise = Noise(4)
    normal = lambda name, *shape: noise.fork(name).normal(*shape, dtype=torch.float64)  # noqa: E731
    A, b, c = 0.3 * normal("A", 1, 6, 6), normal("b", 1, 6), normal("c", 3, 6)
    columns = [b[..., None]]
    for _ in range(36):
        columns.append(A @ columns[-1])
    kernel = torch.cat([c[:, None] @ column for column in columns], 2)[:, 0]
    system = prepare(*(x.to(device) for x in (A, b, c)), steps=16)
    agree(noise.normal(2, 37, 3).to(device), system, kernel.to(device), TOLERANCE)


@pytest.mark.parametrize("kind", ["dense", "pairs", "real"])
def test_systems_of_layers(kind, device):
    noise = Noise(6)
    normal = lambda name, *shape: noise.fork(name).normal(*shape, dtype=torch.float64)  # noqa: E731
    base, weights = modes(3, 4, 20)
    D = normal("D", 3, 1, 1)
    if kind == "dense":
        A, B, C = (
            0.3 * normal("A", 1, 1, 3, 4, 4),
            normal("B", 1, 1, 1, 4, 1),
            normal("C", 1, 1, 3, 1, 4),
        )
    elif kind == "pairs":
        A, B, C = base[None, None], weights[None, None, ..., None], base[None, None, :, None]
    else:
        A, B, C = base.abs()[None, None], normal("B", 1, 1, 3, 4, 1), normal("C", 1, 1, 1, 1, 4)
    system = Recurrence(A=A, B=B, C=C, D=D, conjugate_pairs=kind == "pairs")
    u = normal("u", 2, 20, 3)
    expected = recurrences.run(system, u)
    chunks = from_recurrence(system, steps=16)
    got = run(u.float().to(device), type(chunks)(*(x.to(device) for x in chunks)))
    error = (got.double().cpu() - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE


def test_systems_that_vary_or_mix_channels_are_refused():
    A, D = torch.ones(1, 3, 2, 4), torch.ones(2, 1, 1)
    B, C = torch.ones(1, 1, 2, 4, 1), torch.ones(1, 1, 2, 1, 4)
    with pytest.raises(ValueError, match="constant in time"):
        from_recurrence(Recurrence(A=A, B=B, C=C, D=D))
    wide = Recurrence(A=A[:, :1], B=B.expand(-1, -1, -1, -1, 2), C=C, D=D.expand(-1, -1, 2))
    with pytest.raises(ValueError, match="one input and output"):
        from_recurrence(wide)


def test_bf16_inputs(device):
    u, system, kernel = problem(2, 20, 3, 4, device)
    agree(u.bfloat16(), system, kernel, 2e-2)


def test_against_time_is_the_adjoint_and_second_derivatives_exist(device):
    u, system, _ = problem(2, 37, 3, 4, device)
    v = Noise(8).normal(*u.shape).to(u).requires_grad_()
    u.requires_grad_()
    (slope,) = torch.autograd.grad(run(u, system), u, v, create_graph=True)
    torch.testing.assert_close(slope, run(v, system, reverse=True))
    (again,) = torch.autograd.grad(slope, v, u)
    torch.testing.assert_close(again, run(u, system))


def test_nan_in_nan_out_in_its_sequence_alone(device):
    u, system, _ = problem(2, 40, 3, 4, device)
    u[1, 20, 2] = torch.nan
    bad = run(u, system).isnan()
    assert bad[1, 20:, 2].all() and not bad[1, :16, 2].any()
    assert not bad[0].any() and not bad[1, :, :2].any()


def test_what_is_not_supported_is_said(device):
    u, system, _ = problem(2, 9, 3, 4, device)
    for inputs, reason in [
        ((u.double(), system), "float32 or bfloat16"),
        ((u[..., :2], system), "3 channels"),
        ((u, system._replace(taps=system.taps.to("meta"))), "one device"),
    ]:
        assert reason in supports(*inputs).reason
        with pytest.raises(ValueError, match=reason):
            run(*inputs)
    with pytest.raises(ValueError, match="at most 16 states"):
        prepare(*from_modes(*modes(2, 9, 5)), steps=16)


@pytest.mark.gpu
@pytest.mark.parametrize("precision, tolerance", [("tf32x3", 2e-5), ("tf32", 5e-3), ("bf16", 5e-2)])
@pytest.mark.parametrize("shape", [(16, 1024, 64, 32), (3, 1000, 33, 5), (65, 784, 5, 32)])
def test_on_a_gpu(shape, precision, tolerance):
    agree(*problem(*shape, "cuda", steps=STEPS), tolerance, precision=precision)
