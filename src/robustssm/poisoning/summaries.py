"""Runs over seeds: summaries, contrasts of two conditions, rows of a sweep."""

from collections.abc import Sequence

import numpy as np

from robustssm.core.rng import Noise
from robustssm.poisoning.metrics import bootstrap, bootstrap_ratio
from robustssm.records.poisoning import Contrast, PoisonRun, Summary, SweepRow

INTERVAL = (
    "95 % percentile bootstrap of the median over seeds, 2000 resamples; for a ratio of medians "
    "the arms are resampled independently"
)


def summarise(runs: Sequence[PoisonRun], horizon: int, noise: Noise) -> Summary:
    """One condition over its seeds."""
    errors = np.array([run.error[str(horizon)] for run in runs])
    low, high = bootstrap(errors, noise=noise.fork(runs[0].condition))
    good = [run.error[str(horizon)] for run in runs if run.converged]
    return Summary(
        condition=runs[0].condition,
        seeds=len(runs),
        median=float(np.median(errors)),
        mean=float(errors.mean()),
        low=low,
        high=high,
        lowest=float(errors.min()),
        highest=float(errors.max()),
        convergence_rate=len(good) / len(runs),
        converged_median=float(np.median(good)) if good else None,
        train_mse=float(np.mean([run.train_mse for run in runs])),
        effective_rank=float(np.median([run.effective_rank for run in runs])),
        contribution_rank=float(np.median([run.contribution_rank for run in runs])),
        max_modulus=max(run.max_modulus for run in runs),
        steps=float(np.median([run.steps for run in runs])),
    )


def contrast(
    runs: Sequence[PoisonRun], *, above: str, below: str, horizon: int, level: float | None = None
) -> Contrast:
    """Compares two conditions where they stopped, or at one training loss.

    Args:
        runs: All runs of the study.
        above: Condition in the numerator.
        below: Condition in the denominator.
        horizon: Of the errors where they stopped.
        level: Training loss of the comparison; None compares the ends.
    """
    place = "stop" if level is None else f"{level:g}"

    def read(condition: str) -> np.ndarray:
        chosen = (run for run in runs if run.condition == condition)
        found = (run.error[str(horizon)] if level is None else run.matched[place] for run in chosen)
        return np.array([value for value in found if value is not None], dtype=float)

    up, down = read(above), read(below)
    medians = [float(np.median(v)) if len(v) else None for v in (up, down)]
    ratio = low = high = None
    if medians[0] is not None and medians[1]:
        ratio = medians[0] / medians[1]
        noise = Noise(0).fork("ratio", above, below, place)
        low, high = bootstrap_ratio(up, down, noise=noise)
    return Contrast(
        above=above,
        below=below,
        place=place,
        above_median=medians[0],
        below_median=medians[1],
        ratio=ratio,
        low=low,
        high=high,
        above_seeds=len(up),
        below_seeds=len(down),
    )


def sweep_row(
    runs: Sequence[PoisonRun], *, value: float | None, label: str, condition: str, horizon: int
) -> SweepRow:
    """One condition of a sweep at one value."""
    summary = summarise(runs, horizon, Noise(0).fork("sweep", label))
    return SweepRow(
        value=value,
        label=label,
        condition=condition,
        errors=tuple(run.error[str(horizon)] for run in runs),
        median=summary.median,
        mean=summary.mean,
        low=summary.low,
        high=summary.high,
        worst_train_mse=max(run.train_mse for run in runs),
        convergence_rate=summary.convergence_rate,
        effective_rank=summary.effective_rank,
        max_modulus=summary.max_modulus,
    )
