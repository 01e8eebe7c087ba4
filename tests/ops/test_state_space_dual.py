"""The scan of Mamba-2 against its loop, its matrix and Mamba's scan, with all gradients."""

import pytest
import torch

from robustssm.core.rng import Noise, global_stream
from robustssm.ops.kernels import native
from robustssm.ops.selective_scan import selective_scan_reference
from robustssm.ops.state_space_dual import state_space_dual, state_space_dual_reference

F64 = torch.float64
compiled = pytest.mark.skipif(native.state().level is None, reason="no compiled kernels")


def inputs(noise, batch, time, heads, width, state, *, dtype=F64, step=-2.0):
    """u, delta, A, B, C, D and a gate; step sizes about exp(step)."""
    u, gate = (noise.normal(batch, time, heads, width, dtype=dtype) for _ in range(2))
    delta = torch.nn.functional.softplus(noise.normal(batch, time, heads, dtype=dtype) + step)
    A = -noise.uniform(heads, low=0.5, high=16, dtype=dtype)
    B, C = (noise.normal(batch, time, state, dtype=dtype) for _ in range(2))
    D = noise.normal(heads, dtype=dtype)
    return [x.requires_grad_() for x in (u, delta, A, B, C, D, gate)]


def run(function, given, **options):
    *system, gate = given
    return function(*system, gate=gate, **options)


def outcome(function, given, **options):
    """Values and the gradients with respect to every input."""
    y = run(function, given, **options)
    v = Noise(99).normal(*y.shape, dtype=y.dtype)
    return y, *torch.autograd.grad(y, given, v)


def worst(found, expected):
    """The largest difference, relative to the largest entry, tensor by tensor."""
    pairs = zip(found, expected, strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


@pytest.mark.parametrize("time, chunk", [(1, 4), (3, 4), (4, 4), (5, 4), (37, 8), (23, 1), (7, 99)])
def test_chunks_are_the_loop_with_all_gradients(time, chunk):
    given = inputs(Noise(time), 2, time, 3, 2, 5)
    found = outcome(state_space_dual, given, chunk=chunk)
    for got, want in zip(found, outcome(state_space_dual_reference, given), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_one_chunk_is_the_masked_matrix_of_the_paper():
    """y = (L * (C B^T)) x with L[i, j] the product of the decays from j + 1 to i."""
    u, delta, A, B, C, D, _ = (x.detach() for x in inputs(Noise(1), 1, 6, 1, 2, 3))
    decays = torch.exp(delta[0, :, 0] * A)
    L = torch.zeros(6, 6, dtype=F64)
    for i in range(6):
        for j in range(i + 1):
            L[i, j] = decays[j + 1 : i + 1].prod()
    expected = (L * (C[0] @ B[0].T)) @ (delta[0] * u[0, :, 0]) + D * u[0, :, 0]
    for chunk in (6, 4):
        y = state_space_dual(u, delta, A, B, C, D, chunk=chunk)
        torch.testing.assert_close(y[0, :, 0], expected, rtol=1e-12, atol=1e-13)


def test_loop_is_mambas_with_one_decay_for_every_head():
    u, delta, A, B, C, D, gate = inputs(Noise(2), 2, 9, 3, 4, 5)
    y = state_space_dual_reference(u, delta, A, B, C, D, gate=gate)
    spread = A.repeat_interleave(4)[:, None].expand(12, 5)
    expected = selective_scan_reference(
        u.flatten(2),
        delta.repeat_interleave(4, 2),
        spread,
        B,
        C,
        D.repeat_interleave(4),
        gate=gate.flatten(2),
    )
    torch.testing.assert_close(y.flatten(2), expected, rtol=1e-12, atol=1e-13)


def test_first_and_second_derivatives_by_differences():
    given = inputs(Noise(3), 1, 5, 2, 2, 2, step=-1.0)
    function = lambda *given: run(state_space_dual, given, chunk=2)  # noqa: E731
    with global_stream(Noise(98)):  # torch's checks draw their directions globally
        assert torch.autograd.gradcheck(function, given)
        assert torch.autograd.gradgradcheck(function, given)


@compiled
@pytest.mark.parametrize("time, state", [(2, 3), (40, 16), (67, 33)])
def test_forms_agree_in_float32(time, state):
    """Measured over 20 seeds 1.1e-6, and 2.5e-5 for the gradients of A and D, which cancel."""
    for seed in range(3):
        double = inputs(Noise(seed), 3, time, 2, 4, state)
        single = [x.detach().float().requires_grad_() for x in double]
        expected = outcome(state_space_dual_reference, double)
        for form in ("compiled", "chunked"):
            found = outcome(state_space_dual, single, form=form)
            for name, got, want in zip(("y", *"udABCDg"), found, expected, strict=True):
                assert worst([got], [want]) < (1e-4 if name in "AD" else 4e-6), name


@compiled
def test_second_derivatives_of_the_compiled_form():
    """Inputs of a head that were spread over its channels give back the gradient of the head."""
    double = inputs(Noise(4), 2, 40, 3, 4, 5)
    single = [x.detach().float().requires_grad_() for x in double]

    def second(given, **options):
        y = run(state_space_dual, given, **options)
        v = Noise(9).normal(*y.shape).to(y.dtype)
        first = torch.autograd.grad(y, given, v, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), given)

    found = second(single, form="compiled", chunk=8)
    assert worst(found, second(double, form="chunked", chunk=8)) < 2e-5


@compiled
def test_the_faster_form_is_taken():
    few, many = (
        [x.detach().float() for x in inputs(Noise(5), 1, 3, 1, 2, state)] for state in (16, 65)
    )
    for given, form in ((few, "compiled"), (many, "chunked")):
        assert torch.equal(run(state_space_dual, given), run(state_space_dual, given, form=form))
        other = {"compiled": "chunked", "chunked": "compiled"}[form]
        assert worst([run(state_space_dual, given, form=other)], [run(state_space_dual, given)]) > 0


def test_large_steps_forget_everything_without_overflow():
    """Decays of 1e-100 and less, whose reciprocals are beyond float32."""
    u, delta, A, B, C, D, _ = inputs(Noise(6), 1, 20, 2, 3, 4, dtype=torch.float32, step=40.0)
    y = state_space_dual(u, delta, A, B, C, D, chunk=8, form="chunked")
    alone = delta[..., None] * u * (B * C).sum(-1)[..., None, None] + D[:, None] * u
    torch.testing.assert_close(y, alone, rtol=1e-5, atol=1e-4)
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), [u, delta, A, B, C, D]))


def test_a_small_decay_is_kept_behind_a_large_one():
    """Differences of sums of logarithms: in float32 they would lose what the large step took."""
    u, delta, A, B, C, D, _ = (x.detach() for x in inputs(Noise(7), 1, 32, 1, 2, 3))
    delta[:, 0] = 1e4
    expected = state_space_dual_reference(u, delta, A, B, C, D)
    single = [x.float() for x in (u, delta, A, B, C, D)]
    y = state_space_dual(*single, form="chunked")
    # Of the late steps alone: the first one's output is 1e4 times theirs. Measured 2e-7.
    assert worst([y[:, 1:].double()], [expected[:, 1:]]) < 1e-6


def test_output_ignores_the_future():
    given = [x.detach() for x in inputs(Noise(8), 2, 20, 2, 3, 4)]
    moved = [x.clone() for x in given]
    for at in (0, 1, 3, 4, 6):
        moved[at][:, 11:] += 1
    y, z = (run(state_space_dual, x, chunk=8) for x in (given, moved))
    assert torch.equal(y[:, :11], z[:, :11]) and not torch.equal(y[:, 11], z[:, 11])


def test_what_does_not_fit_is_refused():
    u, delta, A, B, C, D, gate = inputs(Noise(14), 2, 5, 3, 2, 4)
    unchecked = getattr(state_space_dual, "__wrapped__", state_space_dual)  # by the annotations
    with pytest.raises(
        ValueError, match=r"`state_space_dual\(C=...\)` must have shape \(2, 5, 4\)"
    ):
        unchecked(u, delta, A, B, C[:, :4], D)
    with pytest.raises(ValueError, match=r"`state_space_dual\(gate=...\)` must have shape"):
        unchecked(u, delta, A, B, C, D, gate=gate[..., :1])
    with pytest.raises(ValueError, match=r"`state_space_dual\(chunk=...\)` must be at least 1"):
        state_space_dual(u, delta, A, B, C, D, chunk=0)
    with pytest.raises(
        ValueError, match=r"must have float32 tensors on the CPU.*got torch.float64"
    ):
        state_space_dual(u, delta, A, B, C, D, form="compiled")
