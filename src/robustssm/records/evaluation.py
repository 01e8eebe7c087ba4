"""What an evaluation found: flags per example, and everything that follows from them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import NormalDist

from robustssm.records.files import JSON

Flags = tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class Flagged:
    """A sign that the attack, not the model, is what failed."""

    name: str
    message: str
    severity: str = "warning"
    """"warning", or "invalid" where the number must not be believed."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a number came from."""

    version: str
    commit: str | None
    command: str
    seed: int
    device: str
    packages: Mapping[str, str]
    started: str
    seconds: float | None = None


def wilson(successes: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion (wilson1927probable).

    Args:
        successes: Count of successes, 0 to n.
        n: Number of trials, at least 1.
        level: Confidence, in (0, 1).

    Raises:
        ValueError: If there are no trials, or `level` is no confidence.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(
            f"A proportion needs 0 <= successes <= n and n >= 1; got {successes} of {n}."
        )
    if not 0 < level < 1:
        raise ValueError(f"A confidence `level` must lie inside (0, 1); got {level}. Try 0.95.")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (
        0.0 if successes == 0 else max(0.0, centre - half),
        1.0 if successes == n else min(1.0, centre + half),
    )


@dataclass(frozen=True, kw_only=True)
class SuiteRecord:
    """What became of the examples, stage by stage, under attacks that each see survivors only."""

    stages: Mapping[str, Flags]
    """Stage, in order, to: right on the clean input and fooled by no stage so far."""
    deviations: tuple[str, ...] = ()
    """How the suite differs from the published one, in words."""
    passes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Stage to "calls" of the model, and examples that went "forwards" and "backwards"."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Robust accuracy while one setting of an attack varies, on the same examples."""

    axis: str
    """"eps", "steps" or "restarts"."""
    attack: str
    """Label of the attack whose setting varies."""
    values: tuple[float, ...]
    """Ascending; eps in the units of the input."""
    survived: tuple[Flags, ...]
    """Per value: right on the clean input and not fooled."""

    def __post_init__(self) -> None:
        if not self.values or len(self.values) != len(self.survived):
            raise ValueError(
                f"A curve needs one row of flags per value; got {len(self.survived)} rows for "
                f"{len(self.values)} values."
            )

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Share of examples that hold, per value."""
        return tuple(sum(flags) / len(flags) for flags in self.survived)


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """One flag per example and attack; accuracies are properties, so they cannot disagree."""

    clean: Flags
    survived: Mapping[str, Flags]
    """Attack label to: right on the clean input and not fooled by that attack."""
    threat: Mapping[str, JSON]
    warnings: tuple[Flagged, ...] = ()
    provenance: Provenance | None = None
    suites: Mapping[str, SuiteRecord] = field(default_factory=dict)
    """Label of a suite among `survived` to what its stages did."""
    curves: tuple[Curve, ...] = ()
    diagnosed: bool = False
    """Whether the costly checks were run too, or only those that come with every evaluation."""
    planned: int | None = None
    """Examples asked for, where a time limit ended the evaluation before all were finished."""
    data_hash: str | None = None
    """SHA-256 of examples and labels: equal where results are about the same examples."""
    settings: Mapping[str, Mapping[str, JSON]] = field(default_factory=dict)
    """Label of an attack or suite to its settings as it was asked for; empty in older records."""

    def __post_init__(self) -> None:
        if not self.clean:
            raise ValueError("An evaluation needs at least one example; got none.")
        for name in ("clean", "robust"):
            if name in self.survived:
                raise ValueError(
                    f"No attack may be labelled '{name}', which names a row of every table. "
                    "Give it a label of its own."
                )
        for name, flags in self.survived.items():
            if len(flags) != len(self.clean):
                raise ValueError(
                    f"Attack '{name}' has {len(flags)} flags for {len(self.clean)} examples; "
                    "every attack must be run on the same examples."
                )

    @property
    def verdict(self) -> str:
        """Whether the numbers can be believed: "reliable", "suspicious" or "unreliable".

        Unreliable: a warning says that a number must not be believed. Suspicious: there are
        warnings, none that grave. Reliable: none of the checks that were run found anything.
        """
        severities = {warning.severity for warning in self.warnings}
        if "invalid" in severities:
            return "unreliable"
        return "suspicious" if severities else "reliable"

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.clean)

    @property
    def clean_accuracy(self) -> float:
        """Share of examples classified correctly without attack."""
        return sum(self.clean) / self.n

    @property
    def attacks(self) -> dict[str, float]:
        """Attack label to robust accuracy under that attack alone."""
        return {name: sum(flags) / self.n for name, flags in self.survived.items()}

    @property
    def robust(self) -> Flags:
        """Right on the clean input and under every attack: the example-wise worst case."""
        rows = zip(self.clean, *self.survived.values(), strict=True)
        return tuple(all(row) for row in rows)

    @property
    def robust_accuracy(self) -> float:
        """Share of examples that no attack fooled."""
        return sum(self.robust) / self.n

    def interval(self, attack: str | None = None, *, level: float = 0.95) -> tuple[float, float]:
        """Wilson interval over examples (not over training seeds).

        Args:
            attack: A label, "clean", or None for the worst case over all attacks.
            level: Confidence, in (0, 1).
        """
        flags = {"clean": self.clean, None: self.robust, **self.survived}[attack]
        return wilson(sum(flags), self.n, level=level)

    def to_dict(self) -> dict[str, JSON]:
        """JSON form: the flags, and the accuracies, counts and intervals they imply."""
        return {
            "n": self.n,
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "attacks": self.attacks,
            "counts": {
                "clean": sum(self.clean),
                "robust": sum(self.robust),
                **{name: sum(flags) for name, flags in self.survived.items()},
            },
            "intervals": {
                "clean": self.interval("clean"),
                "robust": self.interval(),
                **{name: self.interval(name) for name in self.survived},
            },
            "threat": dict(self.threat),
            "settings": {label: dict(values) for label, values in self.settings.items()},
            "verdict": self.verdict,
            "diagnosed": self.diagnosed,
            "planned": self.planned,
            "data_hash": self.data_hash,
            "warnings": [asdict(w) for w in self.warnings],
            "suites": {
                label: {
                    "stages": {name: [int(f) for f in row] for name, row in suite.stages.items()},
                    "survivors": {name: sum(row) for name, row in suite.stages.items()},
                    "deviations": list(suite.deviations),
                    "passes": {name: dict(row) for name, row in suite.passes.items()},
                }
                for label, suite in self.suites.items()
            },
            "curves": [
                {
                    "axis": curve.axis,
                    "attack": curve.attack,
                    "values": list(curve.values),
                    "accuracies": list(curve.accuracies),
                    "survived": [[int(f) for f in row] for row in curve.survived],
                }
                for curve in self.curves
            ],
            "provenance": asdict(self.provenance) if self.provenance else None,
            "flags": {
                "clean": [int(f) for f in self.clean],
                **{name: [int(f) for f in flags] for name, flags in self.survived.items()},
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, JSON]) -> "EvaluationResult":
        """The inverse of `to_dict`; derived numbers are recomputed from the flags."""
        flags = {name: _flags(row) for name, row in data["flags"].items()}
        suites = {
            label: SuiteRecord(
                stages={name: _flags(row) for name, row in suite["stages"].items()},
                deviations=tuple(suite["deviations"]),
                passes=suite["passes"],
            )
            for label, suite in data.get("suites", {}).items()
        }
        curves = tuple(
            Curve(
                axis=curve["axis"],
                attack=curve["attack"],
                values=tuple(curve["values"]),
                survived=tuple(_flags(row) for row in curve["survived"]),
            )
            for curve in data.get("curves", ())
        )
        provenance = data.get("provenance")
        return cls(
            clean=flags.pop("clean"),
            survived=flags,
            threat=data["threat"],
            warnings=tuple(Flagged(**w) for w in data.get("warnings", ())),
            provenance=Provenance(**provenance) if provenance else None,
            suites=suites,
            curves=curves,
            diagnosed=data.get("diagnosed", False),
            planned=data.get("planned"),
            data_hash=data.get("data_hash"),
            settings={k: dict(v) for k, v in data.get("settings", {}).items()},
        )


def _flags(row: Iterable[JSON]) -> Flags:
    return tuple(bool(f) for f in row)
