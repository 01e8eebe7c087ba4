"""The state matrix of every layer: eigenvalues, memory, states really used, gain over frequency."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustssm.core.config import register, settings
from robustssm.core.errors import violation
from robustssm.diagnostics.base import Probe, Subject, numbers
from robustssm.diagnostics.systems import Driven, LayerSystem, layer_inputs, systems_of
from robustssm.ops.gains import spectral_norm, two_sided_response
from robustssm.ops.realization import hankel_singular_values, memory_horizons, weighted_rank
from robustssm.ops.recurrence import Recurrence
from robustssm.records import Axis, ProbeResult, Quantity

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@register("spectrum")
@settings
class Spectrum(Probe):
    """What the state matrices of a model remember, use and amplify.

    Every channel of S4, S4D, DSS and Mega's average is a system of its own, S5 one for all
    channels. Mamba's systems follow the input: their eigenvalues are medians over examples and
    positions, their spectral radii and step sizes are given as quantiles, and a gain over frequency
    they have not. All is over the length of the sequence unless it says otherwise.

    Source: none: textbook quantities of linear systems.
    """

    checkpoints: ClassVar[tuple[str, ...]] = ("initial", "best")

    examples: Annotated[int, Field(ge=1)] = 8
    """Most examples that choose the systems of input-dependent layers, the first of the subject."""
    eigenvalues: Annotated[int, Field(ge=1)] = 256
    """Most eigenvalues listed for a layer, evenly spaced among all of its systems."""
    frequencies: Annotated[int, Field(ge=2)] = 33
    """Frequencies of the gain, evenly spaced from 0 to half the sampling rate."""
    length: Annotated[int, Field(ge=1)] | None = None
    """Steps looked at; None: as many as the sequences have. Others are refused where a system
    depends on the length (DSS) or on the input (Mamba)."""

    def measure(self, subject: Subject) -> ProbeResult:
        """Measures the layers at the clean examples.

        Raises:
            Inapplicable: If no layer has a recurrence (names the layers found), or a system cannot
                be looked at over `length` steps.
            ValueError: If there are no examples.
        """
        x = subject.x[: self.examples]
        if not len(x):
            raise ValueError(
                violation("`Spectrum`", "be given at least one example", "none", "Give some.")
            )
        systems = systems_of(subject.model, layer_inputs(subject.model, x))
        with torch.no_grad():
            rows = [self._layer(system) for system in systems]
        remarks = [row.remark for row in rows if row.remark]
        return ProbeResult(
            probe=self.name,
            settings={**self.record(subject), "looked_at": len(x)},
            quantities=tuple(self._quantities(rows)),
            remarks=tuple(remarks),
        )

    def _layer(self, system: LayerSystem) -> "_Row":
        row = _Row(label=system.label, remark=system.reason)
        if system.driven is None:
            row.remark = f"Layer {row.label}: {system.reason}"
            return row
        length = self.length or system.driven.u.shape[1]
        driven = system.at_length(length)
        ways = driven.recurrence.directions
        spectra = [_eigenvalues(way) for way in ways]
        moduli = torch.cat([s.abs().amax(0).flatten() for s in spectra])
        row.spectral_radius, row.unstable = moduli.max().item(), int((moduli >= 1).sum())
        row.eigenvalues = _spaced(torch.cat([_median(s) for s in spectra]), self.eigenvalues)
        self._memory(row, ways, length)
        if driven.varies:
            self._chosen(row, system, driven)
        else:
            row.gain_max, row.gain_mean = _gains(driven.recurrence, length, self._angles())
        if row.unstable:
            row.remark = (
                f"Layer {row.label}: {row.unstable} of {len(moduli)} eigenvalues have modulus 1 or "
                "more; what needs unlimited time is left out, the rest is over the sequence."
            )
        return row

    def _memory(self, row: "_Row", ways: Sequence[Recurrence], length: int) -> None:
        horizons = torch.cat([memory_horizons(way, length).flatten() for way in ways])
        row.memory_horizon = [horizons.quantile(q).item() for q in (0.5, 1.0)]
        row.effective_rank = _rank(ways, length)
        row.states = max(way.A.shape[3] * (1 + way.A.is_complex()) for way in ways)
        assert row.spectral_radius is not None
        if row.spectral_radius < 1:
            row.time_constant = -1 / math.log(row.spectral_radius) if row.spectral_radius else 0.0
            if all(way.time_invariant for way in ways):
                row.effective_rank_unlimited = _rank(ways, None)

    def _chosen(self, row: "_Row", system: LayerSystem, driven: Driven) -> None:
        """Quantiles over examples, positions and channels."""
        radii = torch.cat(
            [_eigenvalues(way).abs().amax(-1).flatten() for way in driven.recurrence.directions]
        )
        row.radii = _quantiles(radii)
        selective = system.selective()
        if selective is not None:
            row.step_sizes = _quantiles(selective.delta(driven.u))

    def _angles(self) -> Tensor:
        return torch.linspace(0, math.pi, self.frequencies, dtype=torch.float64)

    def _quantities(self, rows: Sequence["_Row"]) -> Iterable[Quantity]:
        layer = Axis(name="layer", labels=tuple(row.label for row in rows))
        most = max(len(row.eigenvalues) for row in rows if row.eigenvalues is not None)
        axes = {
            "state": tuple(str(n) for n in range(most)),
            "frequency": tuple(f"{w / math.pi:.4g}" for w in self._angles().tolist()),
            "quantile": tuple(f"{q:g}" for q in _QUANTILES),
            "statistic": ("median", "largest"),
        }
        for name, text, unit, over in _SHAPES:
            count = len(axes[over]) if over else 1
            yield Quantity(
                name=name,
                text=text,
                values=tuple(v for row in rows for v in _padded(row.values(name), count)),
                axes=(layer, Axis(name=over, labels=axes[over])) if over else (layer,),
                unit=unit,
            )

    @classmethod
    def samples(cls) -> tuple["Probe", ...]:
        """The defaults, and as little as possible."""
        return (cls(), cls(examples=1, eigenvalues=3, frequencies=2))


_SHAPES = (
    (
        "eigenvalue_real",
        "Real part of eigenvalues of A as the layer stores them (one of a conjugate pair where "
        "only one is stored).",
        "1",
        "state",
    ),
    ("eigenvalue_imag", "Imaginary part of the same eigenvalues.", "1", "state"),
    ("spectral_radius", "The largest |eigenvalue|, over all systems and inputs.", "1", ""),
    ("unstable", "How many eigenvalues have modulus 1 or more for some input.", "", ""),
    (
        "memory_horizon",
        "Steps after which less than 1 % of the energy of the impulse response, without the skip, "
        "is left within the sequence, over outputs of systems; for Mamba of an impulse at the "
        "first position.",
        "step",
        "statistic",
    ),
    (
        "time_constant",
        "-1 / log of the spectral radius: steps in which the slowest mode falls to 1 / e.",
        "step",
        "",
    ),
    (
        "states",
        "States of a system, conjugates included: the largest effective rank there could be.",
        "",
        "",
    ),
    (
        "effective_rank",
        "Participation ratio (sum s)^2 / sum s^2 of the Hankel singular values s from the first "
        "half of the sequence to the second, mean over systems weighted by sum s.",
        "",
        "",
    ),
    ("effective_rank_unlimited", "The same for an unlimited past and future.", "", ""),
    (
        "gain_max",
        "Largest singular value of the transfer function over the sequence, skip included, at "
        "frequencies as a part of half the sampling rate.",
        "1",
        "frequency",
    ),
    ("gain_mean", "Root mean square of the same singular values.", "1", "frequency"),
    (
        "step_size",
        "Quantiles of the step size that inputs choose, over examples, positions and channels.",
        "1",
        "quantile",
    ),
    (
        "chosen_radius",
        "Quantiles of the spectral radius that inputs choose, over the same.",
        "1",
        "quantile",
    ),
)
"""Name, text, unit and second axis of every quantity."""


@dataclass(kw_only=True, eq=False)
class _Row:
    """What was found of one layer; None where it has no such thing."""

    label: str
    remark: str
    eigenvalues: Tensor | None = None
    spectral_radius: float | None = None
    unstable: int | None = None
    memory_horizon: Sequence[float] | None = None
    time_constant: float | None = None
    states: int | None = None
    effective_rank: float | None = None
    effective_rank_unlimited: float | None = None
    gain_max: Tensor | None = None
    gain_mean: Tensor | None = None
    step_sizes: Tensor | None = None
    radii: Tensor | None = None

    def values(self, name: str) -> Sequence[float]:
        """Those of one quantity, none where the layer has no such thing."""
        if self.eigenvalues is not None and name.startswith("eigenvalue_"):
            found = self.eigenvalues.real
            if name == "eigenvalue_imag":
                found = self.eigenvalues.imag if self.eigenvalues.is_complex() else 0 * found
        else:
            attribute = {"step_size": "step_sizes", "chosen_radius": "radii"}.get(name, name)
            found = getattr(self, attribute, None)
        if isinstance(found, Tensor):
            return numbers(found)
        if found is None or isinstance(found, Sequence):
            return found or ()
        return (float(found),)


def _padded(values: Sequence[float], count: int) -> Sequence[float | None]:
    return [*values, *[None] * (count - len(values))]


def _eigenvalues(recurrence: Recurrence) -> Tensor:
    """(inputs, groups, state), inputs being examples times positions."""
    A = recurrence.A if recurrence.diagonal else torch.linalg.eigvals(recurrence.A)
    return A.flatten(0, 1)


def _median(values: Tensor) -> Tensor:
    """Over inputs."""
    if len(values) > 1 and values.is_complex():
        return torch.complex(_median(values.real), _median(values.imag))
    return (values.median(0).values if len(values) > 1 else values[0]).flatten()


def _spaced(values: Tensor, most: int) -> Tensor:
    if len(values) <= most:
        return values
    return values[torch.linspace(0, len(values) - 1, most).round().long()]


def _rank(ways: Sequence[Recurrence], length: int | None) -> float:
    values = [hankel_singular_values(way, length) for way in ways]
    return weighted_rank(torch.cat(values, 1)).item()


def _gains(recurrence: Recurrence, length: int, angles: Tensor) -> tuple[Tensor, Tensor]:
    """Largest and root mean square singular value of the transfer function at every frequency."""
    T = two_sided_response(recurrence, length)
    lags = torch.arange(1 - length, length, dtype=T.dtype, device=T.device)
    turns = lags[:, None] * angles.to(T.device)
    G = torch.complex(T @ turns.cos(), -(T @ turns.sin())).movedim(-1, 0)
    channels = G.shape[1] * G.shape[2]
    mean = (G.abs().square().sum((1, 2, 3)) / channels).sqrt()
    return spectral_norm(G).amax(-1), mean


def _quantiles(values: Tensor) -> Tensor:
    q = torch.tensor(_QUANTILES, dtype=values.dtype, device=values.device)
    ordered = values.flatten().sort().values  # torch.quantile refuses more than 2^24 numbers
    return ordered[(q * (len(ordered) - 1)).round().long()]
