"""Results of the poisoning laboratory with numbers that are chosen and not measured."""

from statistics import mean, median

from robustssm.records.audit import (
    AlarmRow,
    AuditResult,
    DefenceResult,
    DefenceRow,
    DetectorRow,
    Finding,
    LagFinding,
)
from robustssm.records.brewing import ArmRecord, BrewedRecord, BrewingResult, PairedDifference
from robustssm.records.poisoning import (
    Contrast,
    Path,
    PoisonResult,
    PoisonRun,
    Summary,
    SweepRow,
)

LEVELS = {"0.01": 4.0, "0.001": 2.0}
"""Training loss to the part of the final error that a run has there."""


def path(error, states=3, gamma=1.0):
    """Five points of a run."""
    steps = (0.0, 1.0, 10.0, 100.0, 1000.0)
    return Path(
        steps=steps,
        train_mse=tuple(1 / (1 + s) for s in steps),
        error=tuple(error * (1 + 1 / (1 + s)) for s in steps),
        moduli=tuple(tuple(0.1 * (j + 1) for j in range(states)) for _ in steps),
        effective_rank=tuple(3.0 - 0.1 * at for at in range(len(steps))),
        contribution_rank=tuple(2.0 - 0.1 * at for at in range(len(steps))),
        gamma=tuple((gamma, 0.5) for _ in steps),
    )


def run(condition, seed, error, *, matched=True, **more):
    """A run with an error at 20, 40 and 14 lags."""
    changed = {
        "condition": condition,
        "seed": seed,
        "train_mse": 1e-4,
        "error": {"14": 0.5 * error, "20": 0.8 * error, "40": error},
        "effective_rank": 2.5,
        "contribution_rank": 1.5,
        "max_modulus": 0.99,
        "steps": 1000.0,
        "converged": True,
        "matched": {k: error * part for k, part in LEVELS.items()} if matched else {},
        "response": tuple(1.0 + error * lag / 40 for lag in range(40)),
        "path": path(error),
    }
    return PoisonRun(**(changed | more))


def summary(condition, runs):
    """The summary of one condition, with its range as interval."""
    errors = [r.error["40"] for r in runs]
    good = [r.error["40"] for r in runs if r.converged]
    return Summary(
        condition=condition,
        seeds=len(runs),
        median=median(errors),
        mean=mean(errors),
        low=min(errors),
        high=max(errors),
        lowest=min(errors),
        highest=max(errors),
        convergence_rate=len(good) / len(runs),
        converged_median=median(good) if good else None,
        train_mse=mean(r.train_mse for r in runs),
        effective_rank=2.5,
        contribution_rank=1.5,
        max_modulus=max(r.max_modulus for r in runs),
        steps=1000.0,
    )


def contrast(above, below, place, ratio, low, high):
    """A ratio with its interval, of five runs each."""
    return Contrast(
        above=above,
        below=below,
        place=place,
        above_median=None if ratio is None else ratio * 0.1,
        below_median=0.1,
        ratio=ratio,
        low=low,
        high=high,
        above_seeds=0 if ratio is None else 5,
        below_seeds=5,
    )


def study(name="beyond", arms=(("ordinary", 0.1), ("special", 10.0)), contrasts=(), **more):
    """A study of five seeds with the given errors, a tenth apart."""
    runs = tuple(run(c, seed, e * (1 + 0.1 * seed)) for c, e in arms for seed in range(5))
    runs = more.pop("runs", runs)
    settings = {"length": 6, "d_state": 10} | more.pop("settings", {})
    return PoisonResult(
        study=name,
        settings=settings,
        length=more.pop("length", 6),
        horizon=40,
        interval="chosen, not measured",
        runs=runs,
        summaries=tuple(
            summary(c, [r for r in runs if r.condition == c])
            for c in dict.fromkeys(r.condition for r in runs)
        ),
        contrasts=tuple(contrasts),
        teacher_response=(1.0,) * 40,
        excited_lags={"ordinary": (4, 5), "special": (1, 4, 5)},
        remarks=("A remark of the record.",),
        **more,
    )


def sweep(what="tie_gap", rows=((1e-8, "1e-08", 40.0), (None, "as drawn", 0.9))):
    """A sweep of pairs of conditions with the given ratios."""
    made = []
    for value, label, ratio in rows:
        for condition, error in (("ordinary", 0.01), ("special", 0.01 * ratio)):
            made.append(
                SweepRow(
                    value=value,
                    label=label,
                    condition=condition,
                    errors=(0.9 * error, error, 1.2 * error),
                    median=error,
                    mean=error,
                    low=0.9 * error,
                    high=1.2 * error,
                    worst_train_mse=1e-20,
                    convergence_rate=1.0,
                    effective_rank=2.0,
                    max_modulus=1.0,
                )
            )
    return PoisonResult(
        study=f"sweep_{what}",
        settings={"what": what, "around": None},
        length=7,
        horizon=20,
        interval="chosen, not measured",
        sweep=tuple(made),
    )


def brewing(drop=0.05, spread=0.01, matched=True):
    """Three seeds of all arms; the poisoned one is `drop` below every other."""
    seeds = (0, 1, 2)
    names = ("clean", "poisoned", "noise", "duplicated", "unregularised")
    arms = tuple(
        ArmRecord(
            seed=seed,
            arm=name,
            examples=300,
            epochs=10,
            steps=100,
            train_loss=0.2,
            shared_loss=0.25,
            matched=matched,
            accuracy=0.9 - (drop if name == "poisoned" else 0.0) + spread * seed,
            target_accuracy=0.8,
            high_loss_accuracy=None if name == "clean" else 0.7,
            test_accuracy=0.85,
            test_loss=0.4,
            tail_energy=None if name == "clean" else 0.3,
        )
        for seed in seeds
        for name in names
    )
    differences = tuple(
        PairedDifference(
            arm="poisoned",
            control=control,
            measure=measure,
            differences=(-drop - spread, -drop, -drop + spread),
            matched_seeds=3,
            mean=-drop,
            low=-drop - 2 * spread,
            high=-drop + 2 * spread,
            lost=12,
            gained=3,
        )
        for control in names
        if control != "poisoned"
        for measure in ("accuracy", "train_loss")
    )
    group = BrewedRecord(
        group=0,
        targets=50,
        poisons=100,
        high_loss=True,
        similarity_before=0.1,
        similarity=0.6,
        penalty=0.01,
        objectives=(0.5, 0.4),
    )
    return BrewingResult(
        settings={},
        seeds=seeds,
        arms=arms,
        brewed={"poisoned": ((group,),) * 3},
        differences=differences,
        uniform_tail=0.25,
    )


def detector(attack, name, auroc, **more):
    """A detector with an error of twice the clean one after filtering."""
    changed = {
        "setting": "beyond",
        "attack": attack,
        "detector": name,
        "auroc": auroc,
        "auroc_low": None if auroc is None else auroc - 0.05,
        "auroc_high": None if auroc is None else min(1.0, auroc + 0.05),
        "fpr_at_95": None if auroc is None else 1 - auroc,
        "flagged_clean": 0.125,
        "flagged_poison": None if auroc is None else 0.9,
        "error": 0.2,
        "error_low": 0.1,
        "error_high": 0.4,
        "ratio": 2.0,
        "roc": () if auroc is None else ((0.0, 0.0), (0.2, auroc), (1.0, 1.0)),
    }
    return DetectorRow(**(changed | more))


def defence(attack, name, times, **more):
    """A defence with so many times a clean error of 0.1."""
    changed = {
        "setting": "beyond",
        "attack": attack,
        "defence": name,
        "seeds": 3,
        "error": 0.1 * times,
        "error_low": 0.08 * times,
        "error_high": 0.12 * times,
        "errors": (0.08 * times, 0.1 * times, 0.12 * times),
        "ratio": times,
        "max_modulus": 1.0,
        "converged": 1.0,
        "asks_teacher": name == "truncations",
    }
    return DefenceRow(**(changed | more))


def defended(**more):
    """Two detectors and three defences against no poison and two attackers, and an alarm."""
    attacks = {"none": (None, None), "published": (1.0, 0.9), "stealthy": (0.5, 0.8)}
    ratios = {"none": (1.0, 1.5, 1.1), "published": (100.0, 1.9, 30.0), "stealthy": (50.0, 2.1, 9)}
    detectors = tuple(
        detector(attack, name, auroc)
        for attack, pair in attacks.items()
        for name, auroc in zip(("tail energy", "excitation share"), pair, strict=True)
    )
    defences = tuple(
        defence(attack, name, float(ratio))
        for attack, found in ratios.items()
        for name, ratio in zip(("none", "exponential", "truncations"), found, strict=True)
    )
    alarm = AlarmRow(
        setting="beyond",
        attack="published",
        alarm="stability",
        auroc=0.97,
        fpr_at_95=0.1,
        clean=1.1,
        poisoned=float("inf"),
    )
    changed = {
        "settings": {},
        "interval": "chosen, not measured",
        "detectors": detectors,
        "defences": defences,
        "alarms": (alarm,),
        "verdicts": ("A verdict of the record.",),
    }
    return DefenceResult(**(changed | more))


def audited(flagged=25, length=7, **more):
    """An audit that flags the first rows, each at lag 1."""
    findings = tuple(
        Finding(
            index=3 * at,
            score=float("inf") if at == 0 else 50.0 - at,
            tail_z=0.5,
            lag_z=50.0 - at,
            lags=(1, 2),
            share=0.01,
        )
        for at in range(flagged)
    )
    lags = tuple(
        LagFinding(
            lag=lag,
            energy=0.0 if lag == 0 else 10.0**-lag,
            nonzero=0.5,
            carried_by=10.0,
            flagged=lag == 1 and flagged > 0,
        )
        for lag in range(length)
    )
    changed = {
        "source": "mine.npz",
        "settings": {"threshold": 6.0},
        "sequences": 1000,
        "length": length,
        "channels": 1,
        "flagged": flagged,
        "findings": findings,
        "lags": lags,
        "calibrated_on": 1000,
    }
    return AuditResult(**(changed | more))
