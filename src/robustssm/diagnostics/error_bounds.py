"""What theory says of a perturbation in the linear layers of a trained model, beside what happens.

Theorem 4.1.1 of qi2024exploring as it is printed, what holds instead, and the exact values: see
docs/error-theory.md.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from robustssm.core.config import register, settings
from robustssm.core.errors import Inapplicable
from robustssm.core.rng import Noise
from robustssm.diagnostics.base import Probe, Subject
from robustssm.diagnostics.systems import layer_inputs, systems_of
from robustssm.diagnostics.theorem import paper_bounds
from robustssm.ops.gains import l1_norms, l2_gain, l2_gain_bound, linf_gain, pooled_gains
from robustssm.ops.h_infinity import h_infinity
from robustssm.ops.recurrence import Recurrence, spectral_radius
from robustssm.ops.response import convolve, two_sided_response
from robustssm.ops.second_moments import (
    Moments,
    iid_mean_square,
    mean_square,
    mean_square_bounds,
)
from robustssm.records import Axis, ProbeResult, Quantity

LARGEST = 8192
"""Outputs (or inputs) of a system times length up to which its exact l2 gain takes seconds."""

CLAIM = "qi2024exploring, theorem 4.1.1"


class _Named(NamedTuple):
    """A quantity by its name, what it is, and what it bounds on which side."""

    name: str
    text: str
    bounds: str = ""
    side: Literal["upper", "lower", ""] = ""
    claim: str = ""


_QUANTITIES = (
    _Named("input_energy", "Mean over examples of ||e||^2, e the shift of what the SSM reads."),
    _Named("measured", "Mean over examples of ||y' - y||^2 at the SSM's output: H e, exactly."),
    _Named("exact", "E ||y' - y||^2 for the shift's mean and covariance: closed form."),
    _Named(
        "predicted_iid",
        "E ||y' - y||^2 if e had one mean and variance per channel and were independent over time, "
        "as the theorem supposes.",
        claim=CLAIM,
    ),
    _Named("lower", "||H m||^2 + lambda_min(V) ||H||_F^2, m and V of e.", "measured", "lower"),
    _Named("upper_spectral", "E ||e||^2 sigma_max(H)^2.", "measured", "upper"),
    _Named(
        "upper_minkowski",
        "sum over t of (sum over lags up to t of |K| sqrt(max E e^2))^2.",
        "measured",
        "upper",
    ),
    _Named("upper_l1", "L ||K||_1^2 max E e^2.", "measured", "upper"),
    _Named("printed_lower", "The theorem's lower bound as printed, without D.", claim=CLAIM),
    _Named("printed_upper", "The theorem's upper bound as printed, without D.", claim=CLAIM),
    _Named("exact_without_skip", "E ||y' - y||^2 with D = 0, as the theorem leaves D out."),
    _Named("monte_carlo", "E ||y' - y||^2 from normal draws with the shift's mean and covariance."),
    _Named("monte_carlo_error", "Standard error of these draws, channels taken as independent."),
    _Named(
        "printed_lower_false",
        "Share of channels whose printed lower bound lies above the exact error.",
        claim=CLAIM,
    ),
    _Named(
        "printed_upper_false",
        "Share of channels whose printed upper bound lies below the exact error.",
        claim=CLAIM,
    ),
    _Named("largest", "The largest |y' - y| over examples, time and channels."),
    _Named("largest_bound", "max|e| times the l1 norm of the response.", "largest", "upper"),
    _Named("pooled", "The largest |mean over time of y' - y| over examples and channels."),
    _Named(
        "pooled_bound", "max|e| times the exact linf gain of the pooled output.", "pooled", "upper"
    ),
    _Named("amplification", "The largest ||y' - y|| / ||e|| over examples, one system (group)."),
    _Named(
        "l2_gain",
        "sigma_max of H over this length, the largest over systems with the largest bound.",
    ),
    _Named("l2_gain_bound", "A certain bound on sigma_max of H.", "amplification", "upper"),
    _Named("h_infinity", "The l2 gain over unlimited time; none if unstable.", "l2_gain", "upper"),
    _Named("l1_norm", "||K||_1, with all inputs of an output, the largest over systems."),
    _Named("linf_gain", "The largest |y| for |e| <= 1 over this length."),
    _Named("pooled_gain", "The largest |mean over time of y| for |e| <= 1."),
    _Named("spectral_radius", "The largest |eigenvalue| of A."),
)


@register("error_bounds")
@settings
class ErrorBounds(Probe):
    """Exact, bounded, printed and measured error of every linear time-invariant SSM.

    e is the shift of what the SSM reads, as the attack on the whole model causes it there; E, mean
    and covariance are over the examples looked at; sums run over time and channels. Layers whose
    system follows their input (Mamba) have no values here: `error_growth` is for them. The printed
    theorem speaks of causal systems of one input and output (S4, S4D, DSS) alone.

    Source: qi2024exploring, theorem 4.1.1; corrected in docs/error-theory.md, with tests.
    """

    examples: Annotated[int, Field(ge=1)] = 64
    """The first so many of the subject's."""
    systems: Annotated[int, Field(ge=1)] = 4
    """Exact l2 gain and H-infinity norm are taken over so many systems (channels) of a layer, those
    with the largest bound."""
    draws: Annotated[int, Field(ge=2)] = 100
    """Monte-Carlo draws that check the exact error of the theorem's system."""

    def measure(self, subject: Subject) -> ProbeResult:
        """Measures every layer on its shift under the subject's attack.

        Raises:
            Inapplicable: If no layer has a time-invariant recurrence; names the layers found.
        """
        clean = layer_inputs(subject.model, subject.x[: self.examples])
        moved = layer_inputs(subject.model, subject.x_adv[: self.examples])
        systems = systems_of(subject.model, clean)
        columns: list[Mapping[str, float]] = []
        remarks: list[str] = []
        for number, layer in enumerate(systems):
            if layer.driven is None or layer.driven.varies:
                columns.append({})
                continue
            shift = moved[number][0].double() - clean[number][0].double()
            found, said = self._of(layer.driven.recurrence, shift, Noise(0).fork("layer", number))
            columns.append(found)
            remarks += [f"Layer {number}: {text}" for text in said]
        if not any(columns):
            kinds = ", ".join(sorted({layer.kind for layer in systems}))
            raise Inapplicable(
                "Error bounds of linear systems need a layer whose recurrence no input changes "
                f"(S4, S4D, DSS, S5, Mega); found {kinds}. Ask for `error_growth`."
            )
        axis = Axis(name="layer", labels=tuple(str(n) for n in range(len(systems))))
        return ProbeResult(
            probe=self.name,
            settings=self.record(subject),
            quantities=tuple(_quantities(columns, axis)),
            remarks=tuple(dict.fromkeys(remarks)),
        )

    def _of(
        self, system: Recurrence, e: Float[Tensor, "batch length channels"], noise: Noise
    ) -> tuple[dict[str, float], list[str]]:
        """All numbers of one layer, and remarks."""
        gain = l2_gain_bound(system, e.shape[1])
        gains, said = _gains(system, e.shape[1], gain, self.systems)
        printed, also = _printed(system, e, noise, self.draws)
        return _errors(system, e, gain) | gains | printed, said + also


def _errors(
    system: Recurrence, e: Float[Tensor, "batch length channels"], gain: Float[Tensor, " groups"]
) -> dict[str, float]:
    """Measured, exact and bounded errors; `gain` bounds the l2 gain of each group."""
    length = e.shape[1]
    dy = convolve(two_sided_response(system, length), e)
    moments = Moments.of(e)
    bounds = mean_square_bounds(system, moments, gain=gain)
    size = e.abs().amax().item()
    pooled = pooled_gains(system, length).linf.amax().item()
    linf = linf_gain(system, length).amax().item()
    mean, variance = e.mean((0, 1)), e.var((0, 1), correction=0)
    return {
        "input_energy": e.square().sum((1, 2)).mean().item(),
        "measured": dy.square().sum((1, 2)).mean().item(),
        "exact": mean_square(system, moments).exact.sum().item(),
        "predicted_iid": iid_mean_square(system, length, mean=mean, variance=variance)
        .exact.sum()
        .item(),
        "lower": bounds.lower.sum().item(),
        "upper_spectral": bounds.spectral.sum().item(),
        "upper_minkowski": bounds.minkowski.sum().item(),
        "upper_l1": bounds.l1.sum().item(),
        "largest": dy.abs().amax().item(),
        "largest_bound": size * linf,
        "pooled": dy.mean(1).abs().amax().item(),
        "pooled_bound": size * pooled,
        "amplification": _amplification(system, e, dy),
        "l2_gain_bound": gain.amax().item(),
        "l1_norm": l1_norms(system, length).sum(-1).amax().item(),
        "linf_gain": linf,
        "pooled_gain": pooled,
    }


def _gains(
    system: Recurrence, length: int, gain: Float[Tensor, " groups"], count: int
) -> tuple[dict[str, float], list[str]]:
    """The costly gains, of the `count` systems whose bound is largest; and remarks."""
    radius = max(spectral_radius(way).amax().item() for way in system.directions)
    found, remarks = {"spectral_radius": radius}, []
    few = _some(system, gain.topk(min(count, len(gain))).indices)
    if max(few.D.shape[1:]) * length <= LARGEST:
        found["l2_gain"] = l2_gain(few, length).amax().item()
    else:
        remarks.append("too large for the exact l2 gain; its bound is there.")
    if radius < 1:
        found["h_infinity"] = h_infinity(few).upper.amax().item()
    else:
        remarks.append(
            f"the largest eigenvalue has modulus {radius:.6f}, so the gain over unlimited time is "
            "infinite or unknown; all other values are exact for this length."
        )
    return found, remarks


def _printed(
    system: Recurrence, e: Float[Tensor, "batch length channels"], noise: Noise, draws: int
) -> tuple[dict[str, float], list[str]]:
    """The theorem as printed, where it speaks of the system; else the reason."""
    try:
        printed = paper_bounds(system, Moments.of(e), noise=noise, samples=draws)
    except Inapplicable:
        reason = (
            "the printed theorem does not speak of it, only of causal systems of one input and "
            "one output."
        )
        return {}, [reason]
    broken = printed.violations()
    return {
        "printed_lower": printed.lower.sum().item(),
        "printed_upper": printed.upper.sum().item(),
        "exact_without_skip": printed.exact_without_skip.sum().item(),
        "monte_carlo": printed.estimate.sum().item(),
        "monte_carlo_error": printed.standard_error.norm().item(),
        "printed_lower_false": broken["lower"].double().mean().item(),
        "printed_upper_false": broken["upper"].double().mean().item(),
    }, []


def _some(system: Recurrence, groups: Tensor) -> Recurrence:
    """The system with these groups alone."""

    def pick(M: Tensor) -> Tensor:
        return M if M.shape[2] == 1 and system.groups > 1 else M[:, :, groups]

    return replace(
        system,
        A=pick(system.A),
        B=pick(system.B),
        C=pick(system.C),
        D=system.D[groups],
        backward=None if system.backward is None else _some(system.backward, groups),
    )


def _amplification(system: Recurrence, e: Tensor, dy: Tensor) -> float:
    """The largest ratio over examples and groups; 0 where nothing moved."""

    def sizes(v: Tensor) -> Tensor:
        return v.unflatten(-1, (system.groups, -1)).square().sum((1, 3)).sqrt()

    before, after = sizes(e), sizes(dy)
    return torch.where(before > 0, after / before.clamp(min=1e-300), 0.0).amax().item()


def _quantities(columns: list[Mapping[str, float]], axis: Axis) -> Iterator[Quantity]:
    for each in _QUANTITIES:
        yield Quantity(
            name=each.name,
            text=each.text,
            values=tuple(column.get(each.name) for column in columns),
            axes=(axis,),
            claim=each.claim,
            bounds=each.bounds,
            side=each.side,
        )
