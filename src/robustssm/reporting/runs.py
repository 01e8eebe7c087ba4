"""What a report knows of runs, as values: everything that `load` found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from robustssm.records import EvaluationResult, Flagged, ProbeResult, Provenance, StepRecord
from robustssm.records.studies import StudyResult
from robustssm.reporting import names
from robustssm.reporting.verdicts import Verdict, verdict, worst


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One evaluated state of a model: "best" or "last"."""

    epoch: int | None
    result: EvaluationResult


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A run directory, or a file of one, that the report cannot use."""

    name: str
    state: Literal["unfinished", "damaged"]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run, as its files describe it."""

    name: str
    recipe: str
    overrides: Mapping[str, Any]
    experiment: Mapping[str, Any]
    provenance: Provenance
    further: Mapping[str, Any] = field(default_factory=dict)
    """What provenance.json holds besides."""
    epochs: tuple[StepRecord, ...] = ()
    """The figures at the end of each epoch, in order; the later one where an epoch was repeated."""
    checkpoints: Mapping[str, Checkpoint]
    selection: str
    """How "best" was chosen, in words."""
    test_size: int | None = None
    """Examples of the whole test set, where that is on record."""
    examples: str = ""
    """Equal for runs that were evaluated on the same examples in the same order, except that one
    may have taken fewer of them."""
    probes: Mapping[str, ProbeResult] = field(default_factory=dict)
    """Name of a file in probes/, without its ending, to what it holds; sorted."""
    damaged: tuple[LeftOut, ...] = ()
    """Files of probes that cannot be read."""

    @property
    def dataset(self) -> str:
        """Display name of the data set."""
        return names.dataset(self.experiment["dataset"])

    @property
    def structure(self) -> str:
        """Display name of the layer, with its adaptive scaling and what tells controls apart.

        Not in the tiers of the paper's text and of its released code, whose blocks differ: there
        the same structure is to stand under the same name.
        """
        model = self.experiment["model"]
        if self.recipe.partition(".")[0].endswith(("_paper", "_released")):
            return names.structure(model["layer"] if "layer" in model else model)
        return names.model(model)

    @property
    def method(self) -> str:
        """Display name of the training method."""
        name = self.experiment["objective"]["name"]
        return str(names.METHODS.get(name, name))

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return self.experiment.get("seed", self.provenance.seed)

    @property
    def threat(self) -> Mapping[str, Any]:
        """What the attacker may do in the evaluation."""
        return next(iter(self.checkpoints.values())).result.threat

    @property
    def verdict(self) -> Verdict:
        """The worst verdict on its checkpoints."""
        return worst([self.verdict_on(name) for name in self.checkpoints])

    def verdict_on(self, checkpoint: str) -> Verdict:
        """The verdict on "best" or "last"."""
        return verdict(self.checkpoints[checkpoint].result)

    @property
    def warnings(self) -> tuple[tuple[str, Flagged], ...]:
        """Name of a checkpoint and a sign that its numbers cannot be relied upon, one per sign."""
        found = [(n, w) for n, c in self.checkpoints.items() for w in c.result.warnings]
        if str(self.experiment.get("selection", "")).startswith("test"):
            found.insert(0, ("best", CHOSEN_ON_TEST))
        return tuple(found)


CHOSEN_ON_TEST = Flagged(
    name="chosen_on_test",
    message="the best checkpoint was chosen on the test set itself; its numbers are optimistic.",
)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A file of the poisoning laboratory, and what it holds."""

    name: str
    result: StudyResult


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Everything found: finished runs, and the others with their reasons. All sorted by name."""

    finished: tuple[Run, ...]
    left_out: tuple[LeftOut, ...] = ()
    studies: tuple[Study, ...] = ()
    """Results of the poisoning laboratory."""
    damaged: tuple[LeftOut, ...] = ()
    """Files that should be such results and cannot be read."""
