"""What an audit of a file of sequences found, and what detectors and defences are worth."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from robustssm.records.poisoning import decoded, encoded


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One suspicious sequence of a file."""

    index: int
    """Row of the file, from 0; of a CSV, without its header."""
    score: float
    """The largest of its z."""
    tail_z: float
    """Robust z of its share of energy at the end."""
    lag_z: float
    """Robust z of its most unusual entry, among the same lag of the other sequences."""
    lags: tuple[int, ...]
    """The lags that make it suspicious, the most unusual first; 0 is the last position."""
    share: float
    """Share of the calibrating sequences that are as suspicious or more: an empirical p value."""


@dataclass(frozen=True, kw_only=True)
class LagFinding:
    """How the sequences of a file excite one lag."""

    lag: int
    energy: float
    """Mean square."""
    nonzero: float
    """Share of sequences with something there."""
    carried_by: float
    """How many sequences carry the energy: n if all alike, 1 if a single one, 0 for none."""
    flagged: bool
    """Whether few sequences excite it, while others are excited by many."""


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """What an audit of a user's own sequences found."""

    source: str
    settings: Mapping[str, Any]
    sequences: int
    length: int
    channels: int
    flagged: int
    """How many sequences are suspicious; `findings` keeps the most suspicious of them."""
    findings: tuple[Finding, ...] = ()
    lags: tuple[LagFinding, ...] = ()
    greedy: bool = False
    """Whether no sequence excites lag 1: a small student then learns states one after another."""
    calibrated_on: int = 0
    """Sequences that medians and spreads were taken from."""
    remarks: tuple[str, ...] = ()
    wall_seconds: float = 0.0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values; numbers that are not finite become text."""
        return encoded(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "AuditResult":
        """The inverse of `to_dict`.

        Raises:
            TypeError: If a field is missing or unknown.
        """
        return _built(cls, data, {"findings": Finding, "lags": LagFinding})


@dataclass(frozen=True, kw_only=True)
class DetectorRow:
    """One detector against one attacker in one setting, over seeds."""

    setting: str
    """"beyond" or "theory"."""
    attack: str
    detector: str
    auroc: float | None
    """Median over seeds; None where there is no poison to find."""
    auroc_low: float | None
    auroc_high: float | None
    fpr_at_95: float | None
    """Median over seeds of the share of clean sequences flagged where 95 % of the poison is."""
    flagged_clean: float
    """Mean share of clean sequences beyond the fixed robust z."""
    flagged_poison: float | None
    """Mean share of poison beyond it."""
    error: float
    """Median generalisation error after filtering."""
    error_low: float
    error_high: float
    ratio: float
    """Of that error to the median one of plain training on clean sequences."""
    roc: tuple[tuple[float, float], ...] = ()
    """(false, true) positive rates, the true ones averaged over seeds."""


@dataclass(frozen=True, kw_only=True)
class DefenceRow:
    """One defence against one attacker in one setting, over seeds."""

    setting: str
    """"beyond", "beyond, teacher 0.9" or "theory"."""
    attack: str
    defence: str
    seeds: int
    error: float
    """Median generalisation error."""
    error_low: float
    error_high: float
    errors: tuple[float, ...]
    ratio: float
    """Of the median to that of plain training on clean sequences."""
    max_modulus: float
    """Median."""
    converged: float
    """Share of the seeds that reached the training loss of the stop rule."""
    asks_teacher: bool
    """Whether it needs labels beyond those of the training set."""


@dataclass(frozen=True, kw_only=True)
class AlarmRow:
    """One alarm on trained students: poisoned ones against clean ones, over seeds."""

    setting: str
    attack: str
    alarm: str
    auroc: float
    fpr_at_95: float
    clean: float
    """Median on clean students."""
    poisoned: float
    """Median on poisoned students."""


@dataclass(frozen=True, kw_only=True)
class DefenceResult:
    """What detectors and defences are worth."""

    settings: Mapping[str, Any]
    interval: str
    detectors: tuple[DetectorRow, ...] = ()
    defences: tuple[DefenceRow, ...] = ()
    alarms: tuple[AlarmRow, ...] = ()
    verdicts: tuple[str, ...] = ()
    """Whether a defence holds, attacker by attacker, with the numbers; whole sentences."""
    remarks: tuple[str, ...] = ()
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def detector(self, setting: str, attack: str, name: str) -> DetectorRow:
        """The row of one detector.

        Raises:
            KeyError: If there is none.
        """
        for row in self.detectors:
            if (row.setting, row.attack, row.detector) == (setting, attack, name):
                return row
        raise KeyError(f"No detector '{name}' was scored against '{attack}' in '{setting}'.")

    def defence(self, setting: str, attack: str, name: str) -> DefenceRow:
        """The row of one defence.

        Raises:
            KeyError: If there is none.
        """
        for row in self.defences:
            if (row.setting, row.attack, row.defence) == (setting, attack, name):
                return row
        raise KeyError(f"No defence '{name}' was scored against '{attack}' in '{setting}'.")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values; numbers that are not finite become text."""
        return encoded(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "DefenceResult":
        """The inverse of `to_dict`.

        Raises:
            TypeError: If a field is missing or unknown.
        """
        kinds = {"detectors": DetectorRow, "defences": DefenceRow, "alarms": AlarmRow}
        return _built(cls, data, kinds)


def _built(cls: type, data: Mapping[str, Any], rows: Mapping[str, type]) -> Any:
    plain = dict(decoded(data, skip=("settings", "provenance")))
    for name, kind in rows.items():
        plain[name] = tuple(kind(**each) for each in plain.get(name, ()))
    return cls(**plain)
