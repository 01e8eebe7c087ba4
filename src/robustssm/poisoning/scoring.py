"""Scores every detector and defence against the published poison and attackers that know them."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from robustssm.core.config import settings, to_dict
from robustssm.core.errors import unknown
from robustssm.core.rng import Noise
from robustssm.poisoning.attackers import attacker_makers, theory_makers
from robustssm.poisoning.bench import (
    DETECTORS,
    Bench,
    BeyondBench,
    TheoryBench,
    Trained,
    suspicions,
)
from robustssm.poisoning.defences import Defence, filtered
from robustssm.poisoning.detectors import rank_alarm, robust_z, stability_alarm
from robustssm.poisoning.linear_study import Beyond
from robustssm.poisoning.metrics import bootstrap
from robustssm.poisoning.rates import GRID, auroc, false_positives_at, roc
from robustssm.poisoning.study import Case, Clock, part
from robustssm.poisoning.summaries import INTERVAL
from robustssm.poisoning.theory_study import Theory
from robustssm.poisoning.training import Progress
from robustssm.records.audit import AlarmRow, DefenceResult, DefenceRow, DetectorRow

DEFENCES = (
    Defence(),
    Defence(name="exponential", parametrisation="exponential"),
    Defence(name="clamped", parametrisation="clamped"),
    Defence(name="clip 0.1", clip=0.1),
    Defence(name="clip 0.01", clip=0.01),
    Defence(name="l1 1e-6", l1=1e-6),
    Defence(name="l1 1e-3", l1=1e-3),
    Defence(name="hankel 1e-3", hankel=1e-3),
    Defence(name="hankel 1e-2", hankel=1e-2),
    Defence(name="noisy initial state", forget=1e-2),
    Defence(name="random truncation", truncations=4),
    Defence(name="state passing", passed=1),
    Defence(name="untied start", untied=True),
    Defence(name="longer training", extra_steps=28_500),
)
FLOW_DEFENCES = (
    Defence(),
    Defence(name="exponential", parametrisation="exponential"),
    Defence(name="state passing", passed=1),
    Defence(name="untied start", untied=True),
)
CLEAN = ("clean", "none", "noise")
"""Conditions without poison."""
UNDEFENDED = ("none", "noise", "stealthy in noise")
"""Conditions in which defences are not tried."""
CONTROLS = ("none", "exponential", "clamped", "hankel 1e-2", "state passing", "longer training")
"""Defences that are tried with another teacher as well, one that forgets."""


@settings
class Scoring:
    """What is scored, and how."""

    beyond: Beyond = Beyond(seeds=tuple(range(16)))
    theory: Theory = Theory(seeds=tuple(range(8)))
    theory_ordinary: Annotated[int, Field(ge=1)] = 16
    theory_extra: Annotated[int, Field(ge=1)] = 4
    stealthy: Annotated[float, Field(gt=0)] = 1e-3
    """Late entry of the stealthy attacker."""
    hidden: Annotated[float, Field(gt=0)] = 1.0
    """Late entry of the attacker who hides a large one."""
    threshold: Annotated[float, Field(gt=0)] = 6.0
    """Robust z beyond which a sequence counts as flagged."""
    detectors: tuple[str, ...] = tuple(DETECTORS)
    defences: tuple[Defence, ...] = DEFENCES
    flow_defences: tuple[Defence, ...] = FLOW_DEFENCES
    controls: tuple[str, ...] = CONTROLS
    control_teacher: tuple[float, ...] = (0.9,)

    def __post_init__(self) -> None:
        for name in self.detectors:
            if name not in DETECTORS:
                raise ValueError(unknown("detector", name, DETECTORS))


def score_all(study: Scoring, *, progress: Progress | None = None) -> DefenceResult:
    """Scores detectors, defences and alarms over seeds.

    Filters remove as many sequences as the attacker added, which a defender would not know; on
    clean sets they remove as many clean ones. Students of all arms start from the same seeds.

    Args:
        study: Setting.
        progress: Told how far it has come.
    """
    clock = Clock()
    benches = _benches(study)
    detectors: list[DetectorRow] = []
    defences: list[DefenceRow] = []
    alarms: list[AlarmRow] = []
    spans = ((0.0, 0.7), (0.7, 0.85), (0.85, 1.0))
    for (bench, kinds, detect), (begin, end) in zip(benches, spans, strict=True):
        tell = part(progress, bench.name, begin, end)
        plain = {attack: bench.train(bench.cases(attack), Defence()) for attack in bench.makers}
        usual = float(np.median([each.error for each in plain["clean"]]))
        tell(0.1)
        if detect:
            for done, attack in enumerate(plain):
                if attack not in ("clean", "noise"):
                    detectors += _detector_rows(bench, plain[attack], usual, study)
                tell(0.1 + 0.4 * (done + 1) / len(plain))
            alarms += _alarm_rows(bench, plain)
        for done, defence in enumerate(kinds):
            for attack in bench.makers:
                if defence == Defence():
                    defences.append(_defence_row(bench, defence, plain[attack], usual))
                elif attack not in UNDEFENDED:
                    trained = bench.train(bench.cases(attack), defence)
                    defences.append(_defence_row(bench, defence, trained, usual))
            tell(0.5 + 0.5 * (done + 1) / len(kinds))
    return DefenceResult(
        settings=to_dict(study),
        interval=INTERVAL,
        detectors=tuple(detectors),
        defences=tuple(defences),
        alarms=tuple(alarms),
        verdicts=tuple(_verdicts(detectors, defences)),
        remarks=_remarks(study),
        wall_seconds=clock.wall_seconds,
        cpu_seconds=clock.cpu_seconds,
    )


def _benches(study: Scoring) -> tuple[tuple[Bench, Sequence[Defence], bool], ...]:
    """Setting, its defences, and whether detectors are scored there."""
    makers = attacker_makers(study.beyond, stealthy=study.stealthy, hidden=study.hidden)
    flow = theory_makers(
        study.theory.length,
        ordinary_count=study.theory_ordinary,
        extra_count=study.theory_extra,
        stealthy=study.stealthy,
    )
    other = dataclasses.replace(study.beyond, teacher=study.control_teacher)
    kept = {name: makers[name] for name in ("clean", "published", "stealthy", "hidden")}
    title = "beyond, teacher " + ", ".join(f"{a:g}" for a in study.control_teacher)
    controls = [each for each in study.defences if each.name in study.controls]
    return (
        (BeyondBench(study.beyond, makers), study.defences, True),
        (TheoryBench(study.theory, flow), study.flow_defences, True),
        (BeyondBench(other, kept, name=title), controls, False),
    )


def _detector_rows(
    bench: Bench, plain: Sequence[Trained], usual: float, study: Scoring
) -> Iterator[DetectorRow]:
    scores = [suspicions(each, study.detectors) for each in plain]
    attack = plain[0].case.condition
    rate = 1 - len(bench.cases("clean")[0].data.x) / len(plain[0].case.data.x)
    for name in scores[0]:
        kept = [
            Case(
                condition=attack,
                seed=each.case.seed,
                data=filtered(each.case.data, found[name], rate=rate)[0],
            )
            for each, found in zip(plain, scores, strict=True)
        ]
        errors = np.array([each.error for each in bench.train(kept, Defence())])
        yield DetectorRow(
            setting=bench.name,
            attack=attack,
            detector=name,
            **_rates([found[name] for found in scores], plain, study.threshold, name),
            **_spread("error", errors, bench.name, attack, name),
            ratio=float(np.median(errors)) / usual,
        )


def _rates(
    scores: Sequence[np.ndarray], plain: Sequence[Trained], threshold: float, name: str
) -> dict[str, Any]:
    poison = [each.case.data.is_special for each in plain]
    flagged = [robust_z(found) > threshold for found in scores]
    pairs = list(zip(scores, poison, strict=True))
    clean = float(np.mean([flag[~p].mean() for flag, p in zip(flagged, poison, strict=True)]))
    if not poison[0].any():
        empty = dict.fromkeys(("auroc", "auroc_low", "auroc_high", "fpr_at_95", "flagged_poison"))
        return {**empty, "flagged_clean": clean}
    areas = np.array([auroc(found, p) for found, p in pairs])
    curve = np.mean([roc(found, p) for found, p in pairs], axis=0)
    return {
        **_spread("auroc", areas, "auroc", name),
        "fpr_at_95": float(np.median([false_positives_at(found, p) for found, p in pairs])),
        "flagged_clean": clean,
        "flagged_poison": float(
            np.mean([flag[p].mean() for flag, p in zip(flagged, poison, strict=True)])
        ),
        "roc": tuple((float(f), float(t)) for f, t in zip(GRID, curve, strict=True)),
    }


def _spread(label: str, values: np.ndarray, *path: str) -> dict[str, Any]:
    """Median over seeds, and the ends of its interval."""
    low, high = bootstrap(values, noise=Noise(0).fork("scoring", *path))
    return {label: float(np.median(values)), f"{label}_low": low, f"{label}_high": high}


def _defence_row(
    bench: Bench, defence: Defence, trained: Sequence[Trained], usual: float
) -> DefenceRow:
    errors = np.array([each.error for each in trained])
    attack = trained[0].case.condition
    return DefenceRow(
        setting=bench.name,
        attack=attack,
        defence=defence.name,
        seeds=len(trained),
        **_spread("error", errors, bench.name, attack, defence.name),
        errors=tuple(errors.tolist()),
        ratio=float(np.median(errors)) / usual,
        max_modulus=float(np.median([np.abs(each.final.a).max() for each in trained])),
        converged=float(np.mean([each.converged for each in trained])),
        asks_teacher=defence.asks_teacher,
    )


def _alarm_rows(bench: Bench, plain: Mapping[str, Sequence[Trained]]) -> Iterator[AlarmRow]:
    readings: Mapping[str, Callable[[Trained], float]] = {
        "effective rank": lambda each: float(rank_alarm(each.final, length=bench.length)),
        "max |a|": lambda each: float(np.abs(each.final.a).max()),
        "growth to 2 lengths": lambda each: _growth(each, bench.length, 2),
        "growth to 4 lengths": lambda each: _growth(each, bench.length, 4),
    }
    for attack in plain:
        if attack in CLEAN:
            continue
        for name, read in readings.items():
            clean = np.array([read(each) for each in plain["clean"]])
            poisoned = np.array([read(each) for each in plain[attack]])
            scores = np.concatenate([clean, poisoned])
            is_poisoned = np.arange(len(scores)) >= len(clean)
            yield AlarmRow(
                setting=bench.name,
                attack=attack,
                alarm=name,
                auroc=auroc(scores, is_poisoned),
                fpr_at_95=false_positives_at(scores, is_poisoned),
                clean=float(np.median(clean)),
                poisoned=float(np.median(poisoned)),
            )


def _growth(trained: Trained, length: int, times: int) -> float:
    return float(stability_alarm(trained.final, length=length, times=times))


def _verdicts(detectors: Sequence[DetectorRow], defences: Sequence[DefenceRow]) -> Iterator[str]:
    """One sentence for each setting and attack."""
    for plain in defences:
        if plain.defence != "none" or plain.attack in CLEAN:
            continue
        place = (plain.setting, plain.attack)
        rows = [(r.defence, r) for r in defences if (r.setting, r.attack) == place]
        rows += [
            (f"filter by {r.detector}", r) for r in detectors if (r.setting, r.attack) == place
        ]
        held = sorted((r.ratio, name) for name, r in rows if r.ratio < 2 and name != "none")
        names = ", ".join(f"{name} ({ratio:.2f})" for ratio, name in held) or "none of ours"
        yield (
            f"{plain.setting}, {plain.attack}: without a defence the median error is "
            f"{plain.error:.3g}, {plain.ratio:.2f} times that of clean training; under twice "
            f"keep it: {names}."
        )


def _remarks(study: Scoring) -> tuple[str, ...]:
    count, extra = study.beyond.ordinary_count, study.beyond.extra_count
    return (
        f"Beyond the theorem poison is {extra} of {count + extra} sequences, as published: where "
        "that is more than half, no rule that takes the majority for clean can flag it, and only "
        "the ranking counts.",
        "Filters remove as many sequences as were added, a number that a defender does not know.",
        "Ordinary sequences have exact zeros at late positions. Any late entry stands out against "
        "these; noise of its size on every entry hides it, and does harm of its own: compare the "
        "condition 'noise', which has no poison.",
        "The teacher responds 1 at every lag, so |a| <= 1 is a bound that touches the truth; the "
        "control with another teacher shows what the bound does where it does not.",
        "State passing and random truncation ask the teacher for labels that the training set does "
        "not have.",
        "Clipping the norm of a gradient changes only the clock of a flow: in the theorem's "
        "setting it is no defence.",
    )
