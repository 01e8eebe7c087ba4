"""The settings of an experiment, and its data and model made from them."""

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from robustssm.attacks.base import Attack
from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.config import settings
from robustssm.core.placement import Precision
from robustssm.core.rng import Streams
from robustssm.core.types import SplitClassifier
from robustssm.data.augment import Augmentation
from robustssm.data.base import Dataset, Splits
from robustssm.data.batches import batches
from robustssm.models.classifier import ModelConfig
from robustssm.training.averaging import StochasticWeightAveraging
from robustssm.training.monitor import Monitor
from robustssm.training.objective import Objective
from robustssm.training.optim import AdamW, Optimizer
from robustssm.training.schedule import Schedule
from robustssm.training.selection import EarlyStopping, Rule


@settings
class Experiment:
    """Everything that decides a run's numbers: a recipe is a function that returns one."""

    dataset: Dataset
    model: ModelConfig
    objective: Objective
    threat: Threat
    """What the attacks of monitor and evaluation may do; the objective has its own."""
    attacks: tuple[Attack, ...] = (PGD(steps=10), PGD(steps=50, restarts=5))
    """The attacks of the final evaluation."""
    optimizer: Optimizer = AdamW()
    schedule: Schedule = Schedule()
    augmentation: Augmentation = Augmentation()
    monitor: Monitor = Monitor()
    selection: Rule = "validation_adversarial_accuracy"
    epochs: Annotated[int, Field(ge=1)] = 30
    batch_size: Annotated[int, Field(ge=1)] = 128
    micro_batches: Annotated[int, Field(ge=1)] = 1
    """Pieces in which a process takes its rows of a batch, to save memory; with the same outcome up
    to rounding. Doubled, for the rest of the run, when memory is not enough."""
    evaluation_batch_size: Annotated[int, Field(ge=1)] = 256
    evaluation_examples: Annotated[int, Field(ge=1)] | None = None
    """Evaluate on the first so many test examples only; None for all."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    average: Annotated[float, Field(gt=0, lt=1)] | StochasticWeightAveraging | None = None
    """Decay of an exponential moving average of the weights, or the settings of a uniform one; the
    average is then what is evaluated."""
    early_stopping: EarlyStopping | None = None
    """When to stop before the last epoch; None: never."""
    precision: Precision = "32-true"
    log_every: Annotated[int, Field(ge=1)] = 10
    """Steps between lines of metrics.jsonl."""
    keep_every: Annotated[int, Field(ge=1)] | None = None
    """Keep a checkpoint of every so many epochs besides "last" and "best"."""
    seed: int = 0

    def __post_init__(self) -> None:
        labels = [attack.label for attack in self.attacks]
        if len(set(labels)) < len(labels) or not labels:
            raise ValueError(
                "`Experiment(attacks=...)` must be one or more attacks with different labels; got "
                f"{labels}. Results are filed by label."
            )
        if self.early_stopping is not None:
            self.early_stopping.check(self.selection)
        split = self.selection.partition("_")[0]
        if self.selection != "last" and getattr(self.monitor, split) == 0:
            raise ValueError(
                f"`Experiment(selection='{self.selection}')` must find {split} figures; got "
                f"monitor.{split}=0. Set monitor.{split} to a number of examples, or choose "
                "another selection."
            )


def build_model(experiment: Experiment, splits: Splits) -> nn.Module:
    """Makes the experiment's model for the data it will see, in float32 on the CPU."""
    return experiment.model.build(
        shape=splits.shape,
        num_classes=splits.num_classes,
        noise=Streams(experiment.seed).noise("model"),
    )


def read_data(experiment: Experiment, data_dir: Path | None) -> Splits:
    """Reads the experiment's data; checks that the threat speaks the data's units.

    Args:
        experiment: Names the data set.
        data_dir: Where files are looked for.

    Raises:
        ValueError: If the threat's bounds are not the data's.
    """
    noise = Streams(experiment.seed).noise("split")
    splits = experiment.dataset.read(data_dir=data_dir, noise=noise)
    bounds = tuple(float(b) for b in splits.bounds)
    if tuple(experiment.threat.bounds) != bounds:
        raise ValueError(
            f"`threat.bounds` must be the range of the data, {list(bounds)}; got "
            f"{list(experiment.threat.bounds)}. Use --set threat.bounds={list(bounds)}, "
            "and the same for objective.threat.bounds."
        )
    return splits


SHARED_FROM = 400_000
"""Entries of a batch of tokens from which two threads are faster than one (measured, see below)."""


def sensible_threads(experiment: Experiment, splits: Splits) -> int:
    """CPU threads that suit the experiment: one, if its batches are too small to be shared.

    With torch's two threads on two cores, forward and input gradient of a two-layer S4 took 1.3
    times as long as with one thread at 262,144 entries (batch x length x d_model), 0.9 times at
    401,408 and 0.7 times at 1,605,632.
    """
    model = build_model(experiment, splits)
    example = next(batches(splits.train, batch_size=1)).x
    with torch.no_grad():
        tokens = model.embed(example) if isinstance(model, SplitClassifier) else example
    entries = tokens.numel() * experiment.batch_size
    return 1 if entries < SHARED_FROM else torch.get_num_threads()
