"""Run directories as a run leaves them, with numbers that are chosen and not measured."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robustssm.records import (
    Curve,
    EvaluationResult,
    Flagged,
    Provenance,
    StepRecord,
    SuiteRecord,
    write_json,
)

N = 200
THREAT = {"norm": "linf", "eps": 0.1, "bounds": [0.0, 1.0]}
ATTACKS = {"pgd-10": 0.6, "pgd-50x5": 0.55}


def result(
    clean: float,
    attacks: Mapping[str, float],
    *,
    n: int = N,
    threat: Mapping[str, Any] = THREAT,
    warnings: tuple[Flagged, ...] = (),
    **more: Any,
) -> EvaluationResult:
    """An evaluation with the given rates; the first examples are the easy ones."""
    return EvaluationResult(
        clean=first(round(clean * n), n),
        survived={name: first(round(rate * n), n) for name, rate in attacks.items()},
        threat=dict(threat),
        warnings=warnings,
        **more,
    )


STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")


def suite(
    clean: float, rates: tuple[float, ...], *, n: int = N, deviations: tuple[str, ...] = ()
) -> SuiteRecord:
    """A suite that leaves these rates after its stages."""
    counts = [round(rate * n) for rate in (clean, *rates)]
    stages = dict(zip(STAGES, counts[1:], strict=False))
    passes = {
        stage: {"calls": 3 * (at + 1), "forwards": 100 * before, "backwards": 100 * before - 7}
        for at, (stage, before) in enumerate(zip(stages, counts, strict=False))
    }
    return SuiteRecord(
        stages={stage: first(count, n) for stage, count in stages.items()},
        deviations=deviations,
        passes=passes,
    )


def attacked(
    clean: float,
    rates: tuple[float, ...],
    *,
    label: str = "autoattack_standard",
    attacks: Mapping[str, float] | None = None,
    deviations: tuple[str, ...] = (),
    **more: Any,
) -> EvaluationResult:
    """An evaluation by a suite, and possibly by other attacks before it."""
    return result(
        clean,
        {**(attacks or {}), label: rates[-1]},
        suites={label: suite(clean, rates, deviations=deviations)},
        **more,
    )


def curve(
    axis: str, values: tuple[float, ...], rates: tuple[float, ...], *, attack: str = "pgd-50x5"
) -> Curve:
    """A curve through these rates."""
    flags = tuple(first(round(rate * N), N) for rate in rates)
    return Curve(axis=axis, attack=attack, values=values, survived=flags)


def first(count: int, n: int) -> tuple[bool, ...]:
    return tuple(at < count for at in range(n))


def write_run(
    path: Path,
    *,
    layer: str = "s4",
    scaling: Mapping[str, Any] | None = None,
    method: str = "trades",
    dataset: str | Mapping[str, Any] = "digits",
    seed: int = 0,
    best: EvaluationResult | None = None,
    last: EvaluationResult | None = None,
    epochs: int = 4,
    best_epoch: int = 3,
    recipe: str = "",
    provenance: Mapping[str, Any] | None = None,
    splits: tuple[str, ...] = ("train", "validation"),
    data: Mapping[str, Any] | None = None,
    **experiment: Any,
) -> Path:
    """Writes a finished run; `experiment` adds to or replaces its settings."""
    best = best or result(0.9, ATTACKS)
    last = last or result(0.88, {name: rate - 0.05 for name, rate in ATTACKS.items()})
    if isinstance(dataset, str):
        dataset = {"name": dataset, "validation": 50}
    settings = {
        "dataset": dict(dataset),
        "model": {"name": "classifier", "layer": {"name": layer, "scaling": scaling}},
        "objective": {"name": method, "threat": dict(THREAT)},
        "threat": dict(best.threat),
        "selection": "validation_adversarial_accuracy",
        "epochs": epochs,
        "seed": seed,
    } | experiment
    write_json(
        path / "recipe.json",
        {
            "recipe": recipe or f"{dataset['name']}.{layer}_{method}",
            "overrides": {"epochs": str(epochs)},
            "experiment": settings,
        }
        | ({} if data is None else {"data": data}),
    )
    write_json(
        path / "provenance.json", asdict(origin(seed)) | {"resumed": []} | (provenance or {})
    )
    lines = "".join(record.to_line() + "\n" for record in history(epochs, splits, seed))
    (path / "metrics.jsonl").write_text(lines)
    record = {
        "checkpoint": "best",
        "selection": settings["selection"],
        "test_examples": {"used": best.n, "all": best.n},
        "checkpoints": {
            "best": best.to_dict() | {"epoch": best_epoch},
            "last": last.to_dict() | {"epoch": epochs},
        },
    }
    write_json(path / "evaluation.json", best.to_dict() | record)
    return path


def origin(seed: int) -> Provenance:
    return Provenance(
        version="0.1.0",
        commit="0123456789abcdef",
        command=f"robustssm run digits.s4_trades --set seed={seed}",
        seed=seed,
        device="cpu",
        packages={"python": "3.11.7", "torch": "2.11.0"},
        started="2026-01-02T03:04:05+00:00",
        seconds=81.5,
    )


def history(epochs: int, splits: tuple[str, ...], seed: int) -> list[StepRecord]:
    """Curves with some robust overfitting in them, and lines of single steps between."""
    records = []
    for epoch in range(1, epochs + 1):
        t = epoch / epochs
        values: dict[str, float] = {"seconds": 2.5, "images_per_second": 400.0 + seed}
        for split in splits:
            gap = 0.0 if split == "train" else 0.15 * t
            for attacked in ("", "adversarial_"):
                down = 0.25 if attacked else 0.0
                rate = (1 - math.exp(-4 * t)) * (0.98 - down) - gap * (1.6 if attacked else 0.6)
                values[f"{split}_{attacked}accuracy"] = max(0.05, rate - 0.01 * seed)
                values[f"{split}_{attacked}loss"] = -math.log(max(0.05, rate - 0.01 * seed))
        records.append(StepRecord(kind="step", epoch=epoch, step=10 * epoch, values={"loss": 1.0}))
        records.append(StepRecord(kind="epoch", epoch=epoch, step=10 * epoch, values=values))
    return records
