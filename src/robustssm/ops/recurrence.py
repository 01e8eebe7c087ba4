"""Linear recurrences as values: what a layer with a state says about itself, and what follows.

Legend: b batch, t time, g group, s state, z state again, i input and o output of a group. Groups
are independent: group g reads channels g*inputs .. (g+1)*inputs - 1 of u and writes the
corresponding outputs of y.

| layer | groups | inputs = outputs | A | time-varying |
|---|---|---|---|---|
| S4 | d_model | 1 | dense, real coordinates (Re, Im) of the conjugate pairs | no |
| S4D, DSS | d_model | 1 | diagonal, complex | no |
| S5 | 1 | d_model | diagonal, complex | no |
| Mega's moving average | d_model | 1 | diagonal, real; twice, the second one in `backward` | no |
| LRU | 1 | d_model | diagonal, complex | no |
| LRU, channelwise | d_model | 1 | diagonal, complex, shared | no |
| Mamba | d_inner | 1 | diagonal, real | yes |
| Mamba-2 | d_inner | 1 | diagonal, real | yes |
"""

from dataclasses import dataclass, replace

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Inexact
from torch import Tensor

from robustssm.core.errors import Inapplicable


@dataclass(frozen=True, kw_only=True, eq=False)
class Recurrence:
    """The linear system h[t] = A[t] h[t-1] + B[t] u[t], y[t] = read(C[t] h[t]) + D u[t], h[-1] = 0.

    A, B and C, real or complex, have size 1 along batch and time where they do not vary, and along
    groups where all groups share them. read(v) = Re v, or 2 Re v with `conjugate_pairs`.

    Args:
        A: (batch, time, groups, state) if diagonal, (batch, time, groups, state, state) if dense.
        B: (batch, time, groups, state, inputs).
        C: (batch, time, groups, outputs, state).
        D: (groups, outputs, inputs), real; its first axis always has full size.
        conjugate_pairs: Each state stands for itself and for its complex conjugate, which is not
            stored.
        backward: A second system that runs from the last token to the first, on the same u; its
            outputs are added. Its time axis is in the order in which it runs: entry 0 meets the
            last token.
        u: What drives the system, (batch, time, groups * inputs), where that is not the layer's
            own input.
    """

    # Sizes are checked below, where the message can say which two do not fit.
    A: Inexact[Tensor, "_ _ _ _ ..."]
    B: Inexact[Tensor, "_ _ _ _ _"]
    C: Inexact[Tensor, "_ _ _ _ _"]
    D: Float[Tensor, "groups outputs inputs"]
    conjugate_pairs: bool = False
    backward: "Recurrence | None" = None
    u: Float[Tensor, "batch time channels"] | None = None

    def __post_init__(self) -> None:
        groups, outputs, inputs = self.D.shape
        state = self.A.shape[3]
        for name, shape in {
            "A": (groups, state) if self.diagonal else (groups, state, state),
            "B": (groups, state, inputs),
            "C": (groups, outputs, state),
        }.items():
            found = tuple(getattr(self, name).shape[2:])
            if found not in (shape, (1, *shape[1:])):
                raise ValueError(
                    f"`Recurrence({name}=...)` must have axes {shape} after batch and time, as D "
                    f"has shape {tuple(self.D.shape)} and A has {state} states; got {found}. "
                    "Groups may have size 1."
                )
        if self.conjugate_pairs and not self.A.is_complex():
            raise ValueError(
                "`Recurrence(conjugate_pairs=True)` must have a complex A, as a real state is its "
                f"own conjugate; got {self.A.dtype}. Leave conjugate_pairs at False."
            )

    @property
    def diagonal(self) -> bool:
        """Whether A is stored as its diagonal."""
        return self.A.ndim == 4

    @property
    def groups(self) -> int:
        """Number of independent systems side by side."""
        return self.D.shape[0]

    @property
    def time_invariant(self) -> bool:
        """Whether the same A, B and C act at every step."""
        return all(M.shape[1] == 1 for M in (self.A, self.B, self.C))

    @property
    def input_independent(self) -> bool:
        """Whether one system serves every example of the batch."""
        return all(M.shape[0] == 1 for M in (self.A, self.B, self.C))

    @property
    def directions(self) -> tuple["Recurrence", ...]:
        """The causal systems whose outputs add up: this one alone, then those of `backward`."""
        if self.backward is None:
            return (self,)
        return (replace(self, backward=None), *self.backward.directions)


def run(
    recurrence: Recurrence, u: Float[Tensor, "batch time channels_in"]
) -> Float[Tensor, "batch time channels_out"]:
    """Runs the system, one step after the other: the definition, slow and obvious.

    Args:
        recurrence: The system; its batch and time axes have size 1 or those of `u`.
        u: What drives it, (batch, time, groups * inputs).

    Returns:
        y, (batch, time, groups * outputs).
    """
    h, outputs = initial_state(recurrence, u[:, 0]), []
    for t, token in enumerate(u.unbind(1)):
        h = advance(recurrence, h, token, t)
        outputs.append(read(recurrence, h, token, t))
    y = torch.stack(outputs, 1)
    if recurrence.backward is None:
        return y
    return y + run(recurrence.backward, u.flip(1)).flip(1)


def states(
    recurrence: Recurrence, u: Float[Tensor, "batch time channels"]
) -> Inexact[Tensor, "batch time groups state"]:
    """The states h of the forward system as driven by `u`, (batch, time, groups, state)."""
    h, found = initial_state(recurrence, u[:, 0]), []
    for t, token in enumerate(u.unbind(1)):
        h = advance(recurrence, h, token, t)
        found.append(h)
    return torch.stack(found, 1)


def initial_state(
    recurrence: Recurrence, u: Float[Tensor, "batch channels"]
) -> Inexact[Tensor, "batch groups state"]:
    """Zeros, for as many examples as the token `u` has, in the common dtype of system and token."""
    A, B = recurrence.A, recurrence.B
    dtype = torch.promote_types(torch.promote_types(A.dtype, B.dtype), u.dtype)
    return torch.zeros(len(u), recurrence.groups, A.shape[3], dtype=dtype, device=A.device)


def advance(
    recurrence: Recurrence,
    h: Inexact[Tensor, "batch groups state"],
    u: Float[Tensor, "batch channels_in"],
    t: int = 0,
) -> Inexact[Tensor, "batch groups state"]:
    """One step of the state: A[t] h + B[t] u, where `u` is the token at time t."""
    A, B = _at(recurrence.A, t).to(h.dtype), _at(recurrence.B, t).to(h.dtype)
    drive = einsum(B, _grouped(recurrence, u).to(h.dtype), "b g s i, b g i -> b g s")
    if recurrence.diagonal:
        return A * h + drive
    return einsum(A, h, "b g s z, b g z -> b g s") + drive


def read(
    recurrence: Recurrence,
    h: Inexact[Tensor, "batch groups state"],
    u: Float[Tensor, "batch channels_in"],
    t: int = 0,
) -> Float[Tensor, "batch channels_out"]:
    """What the system puts out at time t, from the state that has taken in the token `u`."""
    C = _at(recurrence.C, t)
    dtype = torch.promote_types(C.dtype, h.dtype)
    y = einsum(C.to(dtype), h.to(dtype), "b g o s, b g s -> b g o")
    y = (2.0 if recurrence.conjugate_pairs else 1.0) * (y.real if y.is_complex() else y)
    skip = einsum(recurrence.D, _grouped(recurrence, u), "g o i, b g i -> b g o")
    return (y + skip).flatten(1)


def step(
    recurrence: Recurrence,
    h: Inexact[Tensor, "batch groups state"],
    x: Float[Tensor, "batch channels_in"],
) -> tuple[Float[Tensor, "batch channels_out"], Inexact[Tensor, "batch groups state"]]:
    """Takes in one token in the precision of the system, whatever autocast says.

    Args:
        recurrence: A system that ignores its input, with a time axis of size 1.
        h: The state before.
        x: The token.

    Returns:
        What the system puts out, in the dtype of `x`, and the state after.
    """
    with torch.autocast(x.device.type, enabled=False):
        u = x.to(recurrence.D.dtype)
        h = advance(recurrence, h, u)
        return read(recurrence, h, u).to(x.dtype), h


def impulse_response(
    recurrence: Recurrence, length: int
) -> Float[Tensor, "groups outputs inputs length"]:
    """K[0] = read(C B) + D and K[t] = read(C A^t B): what one unit at time 0 does t steps later.

    Args:
        recurrence: A time-invariant system that is the same for every example, without `backward`.
        length: Number of lags, at least 1.

    Returns:
        K, (groups, outputs, inputs, length).

    Raises:
        Inapplicable: If the system varies with time or example, or runs both ways (take its
            `directions`).
    """
    _require_invariant(recurrence)
    A, B, C = (M[0, 0] for M in (recurrence.A, recurrence.B, recurrence.C))
    h, taps = B, []
    for _ in range(length):
        taps.append(einsum(C, h, "g o s, g s i -> g o i"))
        h = A[..., None] * h if recurrence.diagonal else A @ h
    K = torch.stack(taps, -1)
    K = (2.0 if recurrence.conjugate_pairs else 1.0) * (K.real if K.is_complex() else K)
    K = K.expand(recurrence.groups, -1, -1, -1).clone()
    K[..., 0] += recurrence.D
    return K


def spectral_radius(recurrence: Recurrence) -> Float[Tensor, "batch time groups"]:
    """The largest |eigenvalue| of A[t]; a time-invariant system is stable if it is below 1."""
    if recurrence.diagonal:
        return recurrence.A.abs().amax(-1)
    return torch.linalg.eigvals(recurrence.A).abs().amax(-1)


def _at(M: Tensor, t: int) -> Tensor:
    return M[:, t if M.shape[1] > 1 else 0]


def _grouped(recurrence: Recurrence, u: Tensor) -> Float[Tensor, "batch groups inputs"]:
    return rearrange(u, "b (g i) -> b g i", g=recurrence.groups, i=recurrence.D.shape[-1])


def _require_invariant(recurrence: Recurrence) -> None:
    if not (recurrence.time_invariant and recurrence.input_independent):
        raise Inapplicable(
            "An impulse response needs a recurrence that is the same at every step and for every "
            f"example; got A {tuple(recurrence.A.shape)}, B {tuple(recurrence.B.shape)}, "
            f"C {tuple(recurrence.C.shape)}."
        )
    if recurrence.backward is not None:
        raise Inapplicable(
            "An impulse response here is causal, and this recurrence runs both ways. Ask each of "
            "its `directions` for its own."
        )
