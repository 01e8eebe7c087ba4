"""Probes of a finished run: which of its states are looked at, on which examples, and the files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from robustssm.attacks.base import Attack
from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.config import from_dict, lookup, names, override, settings
from robustssm.core.errors import Inapplicable
from robustssm.core.placement import Placement, cpu_threads
from robustssm.core.provenance import collect
from robustssm.core.rng import Streams
from robustssm.data.base import Splits
from robustssm.data.batches import batches
from robustssm.diagnostics.base import Probe, Subject
from robustssm.experiment.loading import load_model
from robustssm.experiment.rundir import RunDirectory, read_recipe
from robustssm.experiment.settings import Experiment, build_model, read_data, sensible_threads
from robustssm.records import ProbeResult, join, write_json


@settings
class Probing:
    """How a run is probed: everything that decides the numbers besides the run itself."""

    attack: Attack = PGD(steps=10)
    """Makes the adversarial examples, in eval mode."""
    threat: Threat | None = None
    """What it may do; None for the threat of the run's evaluation."""
    examples: Annotated[int, Field(ge=1)] = 256
    """The first so many of each split, without augmentation."""


def probe_run(
    directory: Path,
    *,
    probes: Sequence[str] | None = None,
    overrides: Mapping[str, str] | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, ProbeResult], dict[str, str]]:
    """Probes a trained run and writes probes/NAME.json in its directory, one file after the other.

    Args:
        directory: Of the run.
        probes: Registered names; None for all.
        overrides: Changes of `Probing`, and with the name of a probe in front of that probe's own
            settings: {"examples": "64", "attack.steps": "50", "spectrum.frequencies": "128"}.
        data_dir: Where data files are looked for.
        device: "auto", "cpu", "cuda", ...
        threads: CPU threads per operation; None for what suits the size of a batch.
        progress: Is told what is done now.

    Returns:
        What every probe found, and for those that do not cover the model the reason.

    Raises:
        FileNotFoundError: If there is no run, or no checkpoint in it.
        CorruptFile: If a file of the run is damaged.
        ValueError: If a name or an override is wrong, or does not fit the data.
    """
    place = RunDirectory(directory)
    experiment = from_dict(Experiment, read_recipe(directory)["experiment"])
    probing, chosen = _configure(probes, overrides or {})
    placement = Placement(device=device, precision=experiment.precision)
    splits = read_data(experiment, data_dir)
    found: dict[str, ProbeResult] = {}
    refused: dict[str, str] = {}
    with place.locked(), cpu_threads(threads or sensible_threads(experiment, splits)):
        provenance = asdict(collect(seed=experiment.seed, device=placement.describe()))
        visit = _Visit(experiment, place, splits, placement, probing)
        for probe in chosen:
            progress(probe.name)
            try:
                result = visit.measure(probe)
            except Inapplicable as reason:
                refused[probe.name] = str(reason)
                continue
            result = replace(result, provenance=provenance)
            write_json(directory / "probes" / f"{probe.name}.json", result.to_dict())
            found[probe.name] = result
    return found, refused


def _configure(
    asked: Sequence[str] | None, overrides: Mapping[str, str]
) -> tuple[Probing, list[Probe]]:
    """Settings of the visit and of the probes, with the overrides that belong to each."""
    classes = {name: lookup("probe", name) for name in asked or names("probe")}
    own = {key: value for key, value in overrides.items() if key.split(".")[0] not in classes}
    chosen = []
    for name, cls in classes.items():
        mine = {
            key.removeprefix(f"{name}."): value
            for key, value in overrides.items()
            if key.startswith(f"{name}.")
        }
        chosen.append(override(cls(), mine))
    return override(Probing(), own), chosen


class _Visit:
    """One run's states and examples; adversarial examples are made once for all probes."""

    def __init__(
        self,
        experiment: Experiment,
        run: RunDirectory,
        splits: Splits,
        placement: Placement,
        probing: Probing,
    ):
        self._experiment, self._run, self._splits = experiment, run, splits
        self._placement, self._probing = placement, probing
        self._models: dict[str, nn.Module] = {}
        self._subjects: dict[tuple[str, str], Subject] = {}

    def measure(self, probe: Probe) -> ProbeResult:
        """All states and splits that the probe compares, joined where there are several."""
        by_state = {}
        for state in probe.checkpoints:
            by_split = {split: probe.measure(self._subject(state, split)) for split in probe.splits}
            one = next(iter(by_split.values()))
            by_state[state] = join(by_split, "split") if len(by_split) > 1 else one
        one = next(iter(by_state.values()))
        joined = join(by_state, "checkpoint") if len(by_state) > 1 else one
        looked = {"states": list(probe.checkpoints), "splits": list(probe.splits)}
        return replace(joined, settings={**joined.settings, **looked})

    def _subject(self, state: str, split: str) -> Subject:
        key = (state, split)
        if key not in self._subjects:
            examples = getattr(self._splits, split)
            count = min(self._probing.examples, len(examples))
            device = self._placement.device
            batch = next(batches(examples, order=None, batch_size=count, device=device))
            noise = Streams(self._experiment.seed).examples(
                "probe", state, split, indices=torch.arange(count)
            )
            self._subjects[key] = Subject(
                self._model(state),
                batch.x,
                batch.y,
                threat=self._probing.threat or self._experiment.threat,
                attack=self._probing.attack,
                noise=noise,
            )
        return self._subjects[key]

    def _model(self, state: str) -> nn.Module:
        if state not in self._models:
            device = self._placement.device
            if state == "initial":
                model = build_model(self._experiment, self._splits).to(device)
            else:
                model = load_model(self._experiment, self._run, self._splits, state, device)
            self._models[state] = model.eval()
        return self._models[state]
