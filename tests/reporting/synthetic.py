"""Run directories as a run leaves them, with numbers that are chosen and not measured."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robustssm.records import EvaluationResult, Flagged, Provenance, StepRecord, write_json

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
) -> EvaluationResult:
    """An evaluation with the given rates; the first examples are the easy ones."""
    return EvaluationResult(
        clean=first(round(clean * n), n),
        survived={name: first(round(rate * n), n) for name, rate in attacks.items()},
        threat=dict(threat),
        warnings=warnings,
    )


def first(count: int, n: int) -> tuple[bool, ...]:
    return tuple(at < count for at in range(n))


def write_run(
    path: Path,
    *,
    layer: str = "s4",
    scaling: Mapping[str, Any] | None = None,
    method: str = "trades",
    dataset: str = "digits",
    seed: int = 0,
    best: EvaluationResult | None = None,
    last: EvaluationResult | None = None,
    epochs: int = 4,
    best_epoch: int = 3,
    recipe: str = "",
    provenance: Mapping[str, Any] | None = None,
    splits: tuple[str, ...] = ("train", "validation"),
    **experiment: Any,
) -> Path:
    """Writes a finished run; `experiment` adds to or replaces its settings."""
    best = best or result(0.9, ATTACKS)
    last = last or result(0.88, {name: rate - 0.05 for name, rate in ATTACKS.items()})
    settings = {
        "dataset": {"name": dataset, "validation": 50},
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
            "recipe": recipe or f"{dataset}.{layer}_{method}",
            "overrides": {"epochs": str(epochs)},
            "experiment": settings,
        },
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
