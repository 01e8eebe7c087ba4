"""What poisoning trained classifiers did: every group of poisons, every arm, paired differences."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class BrewedRecord:
    """How well the poisons of one group match."""

    group: int
    """Its number, from 0."""
    targets: int
    poisons: int
    high_loss: bool
    similarity_before: float
    """Cosine of the base examples' gradient with the wanted one."""
    similarity: float
    """Of the poisons', without augmentation."""
    penalty: float
    objectives: tuple[float, ...]
    """1 - similarity + penalty, of every restart."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "BrewedRecord":
        """The inverse of `to_dict`.

        Raises:
            TypeError: If a field is missing or unknown.
        """
        return cls(**{**data, "objectives": tuple(data["objectives"])})


@dataclass(frozen=True, kw_only=True)
class ArmRecord:
    """One model trained on one version of the data."""

    seed: int
    arm: str
    """"clean", "poisoned", "noise", "duplicated" or "unregularised"."""
    examples: int
    """Training examples."""
    epochs: int
    steps: int
    train_loss: float
    """Over its own training examples, in eval mode, without augmentation."""
    shared_loss: float
    """Over the clean subset and the unperturbed base examples, whatever it was trained on."""
    matched: bool
    """Whether its training loss came down to that of the clean arm, within the tolerance."""
    accuracy: float
    """On test examples that are no targets: the headline."""
    target_accuracy: float
    high_loss_accuracy: float | None
    """On the targets of high loss; None if there are none."""
    test_accuracy: float
    """On all test examples, as published."""
    test_loss: float
    """On test examples that are no targets."""
    largest: float = 0.0
    """Largest |delta| of a perturbation."""
    tail_energy: float | None = None
    """Mean of |delta at the end of the sequence| / |delta|; None without perturbations."""
    correct: str = ""
    """"1" or "0" for each test example that is no target, in the order of the test split."""
    correct_targets: str = ""


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """The poisoned arm minus a control, seed by seed: below 0 where the poison does harm."""

    arm: str
    control: str
    measure: str
    """"accuracy", "target_accuracy", "test_loss" or "train_loss"."""
    differences: tuple[float, ...]
    """Per seed."""
    matched_seeds: int
    """Seeds in which both came down to the clean arm's training loss; only there is a difference
    one of the data and not of how far training got."""
    mean: float
    """Over all seeds."""
    low: float | None
    """Ends of Student's 95 % interval over seeds; None with fewer than two."""
    high: float | None
    lost: int
    """Examples, over all seeds, that the control gets right and the arm wrong."""
    gained: int
    """The other way round."""


@dataclass(frozen=True, kw_only=True)
class BrewingResult:
    """What one study of poisons for a classifier found."""

    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    arms: tuple[ArmRecord, ...]
    """Every seed's, in order."""
    brewed: Mapping[str, tuple[tuple[BrewedRecord, ...], ...]]
    """Arm to the groups of every seed."""
    differences: tuple[PairedDifference, ...]
    uniform_tail: float
    """Tail energy of a perturbation of equal size everywhere."""
    remarks: tuple[str, ...] = ()
    """What a reader must know before believing the numbers; whole sentences."""
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def difference(self, control: str, measure: str = "accuracy") -> PairedDifference:
        """The poisoned arm against one control.

        Raises:
            KeyError: If that was not compared.
        """
        for each in self.differences:
            if (each.arm, each.control, each.measure) == ("poisoned", control, measure):
                return each
        raise KeyError(f"This study does not compare 'poisoned' with '{control}' by '{measure}'.")

    def of(self, arm: str) -> tuple[ArmRecord, ...]:
        """One arm, in the order of the seeds."""
        return tuple(each for each in self.arms if each.arm == arm)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "BrewingResult":
        """The inverse of `to_dict`.

        Raises:
            TypeError: If a field is missing or unknown.
        """
        plain = dict(data)
        plain["seeds"], plain["remarks"] = tuple(data["seeds"]), tuple(data["remarks"])
        plain["arms"] = tuple(ArmRecord(**arm) for arm in data["arms"])
        plain["brewed"] = {
            arm: tuple(tuple(BrewedRecord.from_dict(g) for g in groups) for groups in seeds)
            for arm, seeds in data["brewed"].items()
        }
        plain["differences"] = tuple(
            PairedDifference(**{**each, "differences": tuple(each["differences"])})
            for each in data["differences"]
        )
        return cls(**plain)
