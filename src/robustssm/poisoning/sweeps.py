"""What the effect depends on: one setting at a time, with the rest as published."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from robustssm.core.config import settings, to_dict
from robustssm.core.errors import violation
from robustssm.core.rng import Noise
from robustssm.poisoning.initialisation import tie_gap
from robustssm.poisoning.linear_study import Beyond, Maker, cases_of, descent_runs
from robustssm.poisoning.sequences import Sequences, at_positions, impulse, special
from robustssm.poisoning.study import Clock, part
from robustssm.poisoning.summaries import INTERVAL, sweep_row
from robustssm.poisoning.theory_study import Arm, Theory, flow_runs
from robustssm.poisoning.training import Progress
from robustssm.records.poisoning import PoisonResult, SweepRow

What = Literal["tie_gap", "init_scale", "amplitude", "count", "position"]

GAPS = (0.0, 1e-12, 1e-10, tie_gap(1e-3, 5.0), 1e-6, 1e-5, 1e-4, None)
SCALES = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
AMPLITUDES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
HIDDEN = (1e-3, 1e-2, 0.1, 1.0)
DILUTIONS = (1, 10, 100, 1000, 10_000, 100_000)
COUNTS = (0, 1, 2, 5, 10, 20)


@settings
class Sweep:
    """Which setting varies, and around which experiment.

    "tie_gap" is the distance of the two largest initial entries; "init_scale" their size;
    "amplitude" the size of the late entry, alone or hidden in an ordinary sequence; "count" the
    number of special sequences (of ordinary ones around a single special in the theorem's setting);
    "position" where the added sequences have their one entry.
    """

    what: What = "tie_gap"
    around: Literal["theory", "beyond"] | None = None
    """None is "beyond" for "count" and "position", "theory" for the others."""
    theory: Theory = Theory()
    beyond: Beyond = Beyond(seeds=tuple(range(8)))

    def __post_init__(self) -> None:
        if (self.centre, self.what) not in _VARIATIONS:
            known = [f"{name} around {centre}" for centre, name in _VARIATIONS]
            raise ValueError(
                violation(
                    "`Sweep(what=..., around=...)`",
                    f"be one of {', '.join(known)}",
                    f"{self.what} around {self.centre}",
                )
            )

    @property
    def centre(self) -> Literal["theory", "beyond"]:
        """The experiment around which the setting varies."""
        if self.around is not None:
            return self.around
        return "beyond" if self.what in ("count", "position") else "theory"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Variation:
    """One point of a sweep: an experiment and the conditions to run in it."""

    value: float | None
    label: str
    study: Theory | Beyond
    arms: Sequence[Arm] = ()
    """For the theorem's experiment."""
    makers: tuple[tuple[str, Maker], ...] = ()
    """For the one beyond it."""


def sweep(study: Sweep, *, progress: Progress | None = None) -> PoisonResult:
    """Runs every point of a sweep.

    Args:
        study: Which sweep.
        progress: Told how far it has come.
    """
    clock = Clock()
    centre = study.theory if study.centre == "theory" else study.beyond
    variations = list(_VARIATIONS[study.centre, study.what](study))
    rows: list[SweepRow] = []
    for number, variation in enumerate(variations):
        rows += _rows(variation)
        part(progress, study.what, 0, 1)((number + 1) / len(variations))
    stuck = sum(row.convergence_rate < 1 for row in rows)
    return PoisonResult(
        study=f"sweep_{study.what}",
        settings=to_dict(study),
        length=centre.length,
        horizon=centre.horizon,
        interval=INTERVAL,
        sweep=tuple(rows),
        remarks=(
            f"{stuck} of {len(rows)} rows have runs that did not reach their stop rule's training "
            "loss; they count with the error they had.",
        ),
        wall_seconds=clock.wall_seconds,
        cpu_seconds=clock.cpu_seconds,
    )


def _rows(variation: Variation) -> Iterator[SweepRow]:
    if isinstance(variation.study, Theory):
        _, runs = flow_runs(variation.study, variation.arms)
    else:
        runs = descent_runs(variation.study, cases_of(variation.study, dict(variation.makers)))
    for condition in dict.fromkeys(run.condition for run in runs):
        yield sweep_row(
            [run for run in runs if run.condition == condition],
            value=variation.value,
            label=variation.label,
            condition=condition,
            horizon=variation.study.horizon,
        )


def _pair(study: Theory, amplitude: float = 1.0) -> tuple[Arm, Arm]:
    plain = impulse((1, 1.0), length=study.length)
    poison = impulse((study.length - 1, amplitude), length=study.length, is_special=True)
    return (
        Arm(condition="ordinary", sequences=plain),
        Arm(condition="special", sequences=plain + poison),
    )


def _theory_gaps(study: Sweep) -> Iterator[Variation]:
    for gap in GAPS:
        chosen = dataclasses.replace(study.theory, gap=gap)
        label = "as drawn" if gap is None else f"{gap:.3g}"
        yield Variation(value=gap, label=label, study=chosen, arms=_pair(chosen))


def _theory_scales(study: Sweep) -> Iterator[Variation]:
    for scale in SCALES:
        chosen = dataclasses.replace(study.theory, scale=scale, gap=tie_gap(scale, 5.0))
        yield Variation(value=scale, label=f"{scale:g}", study=chosen, arms=_pair(chosen))


def _theory_amplitudes(study: Sweep) -> Iterator[Variation]:
    theory, length = study.theory, study.theory.length
    plain, late = impulse((1, 1.0), length=length), length - 1

    def hidden(value: float) -> Arm:
        made = impulse((1, 1.0), (late, value), length=length, is_special=True)
        return Arm(condition="", sequences=made)

    for value in AMPLITUDES:
        arms = [_pair(theory, value)[1]]
        if value in HIDDEN:
            up, down = hidden(value).sequences, hidden(-value).sequences
            arms += [
                Arm(condition="stealthy", sequences=plain + up),
                Arm(condition="stealthy_pair", sequences=up + down),
                Arm(condition="stealthy_alone", sequences=up),
            ]
        yield Variation(value=value, label=f"{value:g}", study=theory, arms=arms)


def _theory_counts(study: Sweep) -> Iterator[Variation]:
    length = study.theory.length
    poison = impulse((length - 1, 1.0), length=length, is_special=True)
    for count in DILUTIONS:
        crowd = impulse((1, 1.0), length=length, copies=count) + poison
        arm = Arm(condition="special", sequences=crowd)
        label = f"1 among {count:,}"
        yield Variation(value=float(count), label=label, study=study.theory, arms=(arm,))


def _beyond_gaps(study: Sweep) -> Iterator[Variation]:
    base = study.beyond
    for rate, label in ((base.start.gap_rate, "published"), (None, "as drawn")):
        start = dataclasses.replace(base.start, gap_rate=rate)
        chosen = dataclasses.replace(base, start=start)
        makers = tuple((name, chosen.makers()[name]) for name in ("ordinary", "special"))
        yield Variation(value=start.gap, label=label, study=chosen, makers=makers)


def _beyond_scales(study: Sweep) -> Iterator[Variation]:
    base = study.beyond
    for scale in SCALES:
        start = dataclasses.replace(base.start, a_scale=scale, weight_scale=scale)
        chosen = dataclasses.replace(base, start=start)
        makers = tuple((name, chosen.makers()[name]) for name in ("ordinary", "special"))
        yield Variation(value=scale, label=f"{scale:g}", study=chosen, makers=makers)


def _beyond_amplitudes(study: Sweep) -> Iterator[Variation]:
    base, plain = study.beyond, study.beyond.makers()["ordinary"]
    for value in AMPLITUDES:

        def scaled(noise: Noise, value: float = value) -> Sequences:
            made = special(base.extra_count, length=base.length, noise=noise.fork("special"))
            return plain(noise) + dataclasses.replace(made, x=value * made.x)

        yield Variation(value=value, label=f"{value:g}", study=base, makers=(("special", scaled),))


def _beyond_counts(study: Sweep) -> Iterator[Variation]:
    for count in COUNTS:
        # A count of 0 is the ordinary set itself.
        chosen = dataclasses.replace(study.beyond, extra_count=max(count, 1))
        name = "special" if count else "ordinary"
        makers = (("special", chosen.makers()[name]),)
        yield Variation(value=float(count), label=str(count), study=chosen, makers=makers)


def _beyond_positions(study: Sweep) -> Iterator[Variation]:
    base, plain = study.beyond, study.beyond.makers()["ordinary"]
    for position in range(1, base.length + 1):

        def added(noise: Noise, position: int = position) -> Sequences:
            return plain(noise) + at_positions(
                base.extra_count,
                length=base.length,
                support=(position,),
                noise=noise.fork("special"),
            )

        yield Variation(
            value=float(position), label=str(position), study=base, makers=(("added", added),)
        )


_VARIATIONS: dict[tuple[str, str], Callable[[Sweep], Iterator[Variation]]] = {
    ("theory", "tie_gap"): _theory_gaps,
    ("theory", "init_scale"): _theory_scales,
    ("theory", "amplitude"): _theory_amplitudes,
    ("theory", "count"): _theory_counts,
    ("beyond", "tie_gap"): _beyond_gaps,
    ("beyond", "init_scale"): _beyond_scales,
    ("beyond", "amplitude"): _beyond_amplitudes,
    ("beyond", "count"): _beyond_counts,
    ("beyond", "position"): _beyond_positions,
}
