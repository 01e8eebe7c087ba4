"""What a time-invariant system answers over a finite time, both directions in one.

Legend: g group, o output and i input of a group, t and s time, l = t - s lag, f frequency, b batch.
T[l] is the two-sided response, zero for l < 0 in a causal system; H is the matrix of the map from u
to y, y[t] = sum over s of T[t - s] u[s]. All is computed and returned in float64.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Complex, Float
from torch import Tensor

from robustssm.core.errors import Inapplicable, violation
from robustssm.ops.recurrence import Recurrence, impulse_response


def two_sided_response(
    recurrence: Recurrence, length: int
) -> Float[Tensor, "groups outputs inputs lags"]:
    """T[..., length - 1 + l] is what one unit does l steps later, or earlier for l < 0.

    Lags are those within the length, -length < l < length. Both directions add up, and both see
    the present token.

    Raises:
        Inapplicable: If the system varies with time or example.
    """
    if length < 1:
        raise ValueError(violation("`length`", "be at least 1", length))
    groups, outputs, inputs = recurrence.D.shape
    T = recurrence.D.new_zeros(groups, outputs, inputs, 2 * length - 1, dtype=torch.float64)
    for k, way in enumerate(in_float64(recurrence).directions):
        K = impulse_response(way, length)
        ahead = F.pad(K, (length - 1, 0))
        T = T + (ahead if k % 2 == 0 else ahead.flip(-1))
    return T


def step_response(
    recurrence: Recurrence, length: int
) -> Float[Tensor, "groups outputs inputs length"]:
    """S[t]: what a constant 1 over all `length` steps gives at time t.

    For a causal system the sum of its impulse response up to lag t, whatever the length.

    Raises:
        Inapplicable: As `two_sided_response`.
    """
    return window_sums(two_sided_response(recurrence, length))


def modal_bound(
    recurrence: Recurrence, length: int
) -> Float[Tensor, "groups outputs inputs length"]:
    """A bound on every tap: |K[t]| <= sum over n of |C[n] B[n]| |A[n]|^t, and |D| more at t = 0.

    The modes may cancel, so no such sum bounds taps from below.

    Raises:
        Inapplicable: If A is dense, whose eigenvalues do not bound its powers, or as
            `impulse_response`, or if the system runs both ways (ask its `directions`).
    """
    if not recurrence.diagonal or recurrence.backward is not None:
        raise Inapplicable(
            "A bound by modes needs one causal direction with a diagonal A, as the eigenvalues of "
            "a matrix that is not normal do not bound its powers. Ask each of the `directions`, "
            "and for a dense A the impulse response."
        )
    size = replace(
        in_float64(recurrence),
        A=recurrence.A.abs().double(),
        B=recurrence.B.abs().double(),
        C=recurrence.C.abs().double() * (2 if recurrence.conjugate_pairs else 1),
        D=recurrence.D.abs().double(),
        conjugate_pairs=False,
    )
    return impulse_response(size, length)


def convolve(
    response: Float[Tensor, "groups outputs inputs lags"],
    u: Float[Tensor, "batch time channels_in"],
) -> Float[Tensor, "batch time channels_out"]:
    """H u, by FFT: what `run` gives, for as many steps as the response was made for.

    Args:
        response: Of `two_sided_response`.
        u: What drives the system, (batch, time, groups * inputs).
    """
    groups, _, inputs, lags = response.shape
    if u.shape[1] != (lags + 1) // 2 or u.shape[2] != groups * inputs:
        raise ValueError(
            violation(
                "`convolve(u=...)`",
                f"have {(lags + 1) // 2} steps of {groups * inputs} channels, as the response does",
                tuple(u.shape),
            )
        )
    grouped = rearrange(u.double(), "b t (g i) -> b g i t", g=groups)
    y = circulant_product(circulant_spectrum(response), grouped)
    return rearrange(y, "b g o t -> b t (g o)")


def operator_matrix(
    recurrence: Recurrence, length: int
) -> Float[Tensor, "groups outputs_length inputs_length"]:
    """H itself, its rows by output then time, its columns by input then time.

    Raises:
        Inapplicable: As `two_sided_response`.
    """
    return _matrix(two_sided_response(recurrence, length))


def window_sums(
    values: Float[Tensor, "groups outputs inputs lags"],
) -> Float[Tensor, "groups outputs inputs length"]:
    """Sums over the lags that reach time t, t - length < l <= t; never a difference of sums."""
    length = (values.shape[-1] + 1) // 2
    past = values[..., length - 1 :].cumsum(-1)
    future = F.pad(values[..., : length - 1].flip(-1).cumsum(-1), (1, 0))
    return past + future.flip(-1)


def in_float64(recurrence: Recurrence) -> Recurrence:
    """The same system with all its matrices in float64 or complex128."""
    return replace(
        recurrence,
        **{
            name: (M := getattr(recurrence, name)).to(torch.promote_types(M.dtype, torch.float64))
            for name in ("A", "B", "C", "D")
        },
        backward=None if recurrence.backward is None else in_float64(recurrence.backward),
    )


def _matrix(T: Tensor) -> Float[Tensor, "groups outputs_length inputs_length"]:
    length = (T.shape[-1] + 1) // 2
    time = torch.arange(length, device=T.device)
    H = T[..., length - 1 + time[:, None] - time]
    return rearrange(H, "g o i t s -> g (o t) (i s)")


def circulant_spectrum(
    T: Float[Tensor, "groups outputs inputs lags"],
) -> Complex[Tensor, "groups outputs inputs frequencies"]:
    """The transform of the circulant of size 2 * length in whose corner H stands."""
    length = (T.shape[-1] + 1) // 2
    return torch.fft.rfft(
        torch.cat([F.pad(T[..., length - 1 :], (0, 1)), T[..., : length - 1]], -1)
    )


def circulant_product(
    spectrum: Complex[Tensor, "groups outputs inputs frequencies"],
    u: Float[Tensor, "batch groups inputs length"],
) -> Float[Tensor, "batch groups outputs length"]:
    """H u, from the transform of the circulant in whose corner H stands."""
    size = 2 * u.shape[-1]
    product = einsum(spectrum, torch.fft.rfft(u, n=size), "g o i f, b g i f -> b g o f")
    return torch.fft.irfft(product, n=size)[..., : u.shape[-1]]
