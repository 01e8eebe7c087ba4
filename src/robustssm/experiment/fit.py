"""Training inside a run directory: epochs, figures, checkpoints, and resuming a killed run."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import nn

from robustssm.core.placement import Placement
from robustssm.core.rng import Streams
from robustssm.data.base import Split, Splits
from robustssm.data.batches import Batch, batches, epoch_order
from robustssm.experiment.display import Display
from robustssm.experiment.rundir import RunDirectory
from robustssm.experiment.settings import Experiment, build_model
from robustssm.records import StepRecord
from robustssm.training import checkpoint
from robustssm.training.averaging import StochasticWeightAveraging, WeightAverage
from robustssm.training.division import require_divisible
from robustssm.training.loop import Learner, train_epoch
from robustssm.training.readings import Report
from robustssm.training.selection import score


@dataclass
class Fit:
    """One training, from its first epoch or its last checkpoint to its end."""

    experiment: Experiment
    run: RunDirectory
    splits: Splits
    placement: Placement
    display: Display
    save_seconds: float = 120.0
    """Longest time between checkpoints within an epoch."""

    def __call__(self) -> nn.Module:
        """Trains; returns the model as it is after the last epoch.

        Of several processes that share every batch, all come here; the first one writes, measures
        and shows, and the others are told what follows from it.

        Raises:
            NonFiniteLoss: If the loss stops being finite; the last good checkpoint is kept.
            OutOfMemory: If a batch does not fit into memory, even in pieces.
            Inapplicable: If batches cannot be divided as is asked for.
        """
        self._streams = Streams(self.experiment.seed)
        self._train = self._resident(self.splits.train)
        self._watched = self._find_watched()
        self._learner = self._make_learner()
        self._check_division()
        self._best: tuple[float, float] | None = None
        self._best_epoch = 0
        self._pieces = self._learner.micro_batches
        self._resume()
        self.display.training(
            epochs=self.experiment.epochs,
            batches=self._per_epoch,
            epoch=self._learner.epoch,
            batch=self._learner.batch,
        )
        self._saved = time.monotonic()
        try:
            while self._learner.epoch < self.experiment.epochs and not self._stopped_early():
                self._epoch()
        finally:
            self.run.write()  # what was measured before an error or a Ctrl-C
        return self._learner.model

    @property
    def _per_epoch(self) -> int:
        return math.ceil(len(self.splits.train) / self.experiment.batch_size)

    def _resident(self, split: Split) -> Split:
        """The split on a GPU, where batches are then gathered uncopied; on a CPU as it is."""
        return split.to(self.placement.device) if self.placement.device.type == "cuda" else split

    def _find_watched(self) -> dict[str, Split]:
        """The examples that the monitor looks at, by the name of their split."""
        monitor = self.experiment.monitor
        counts = {"train": monitor.train, "validation": monitor.validation, "test": monitor.test}
        return {
            name: self._resident(getattr(self.splits, name).take(slice(count)))
            for name, count in counts.items()
            if count and len(getattr(self.splits, name))
        }

    def _make_learner(self) -> Learner:
        experiment, device = self.experiment, self.placement.device
        model = self.placement.setup(build_model(experiment, self.splits))
        optimizer = experiment.optimizer.build(model, fused=not self.placement.scales_losses)
        first = next(batches(self.splits.train, order=None, batch_size=1, device=device))
        return Learner(
            model=model,
            optimizer=self.placement.setup_optimizer(optimizer),
            memory=experiment.objective.memory(first.x, batch_size=experiment.batch_size),
            average=_average(experiment, model),
            micro_batches=experiment.micro_batches,
        )

    @property
    def _writes(self) -> bool:
        """Whether this process is the one that touches the directory."""
        return self.placement.rank == 0

    def _check_division(self) -> None:
        """Refuses at once what would be refused at the first batch, or at a later one."""
        count, learner = self.experiment.micro_batches, self._learner
        if count > 1 or self.placement.processes > 1:
            require_divisible(self.experiment.objective, learner.model, count=count)

    def _resume(self) -> None:
        last = self.run.checkpoint("last")
        found = self.placement.told(self._writes and checkpoint.exists(last))
        if found:
            extra = checkpoint.read(last, self._learner)["extra"]
            self._best = None if extra["best"] is None else (extra["best"][0], extra["best"][1])
            self._best_epoch = extra["best_epoch"]
            self.placement.load_state(extra["precision"])
        if self._writes:
            self.run.rewind(epoch=self._learner.epoch, step=self._learner.step)

    def _stopped_early(self) -> bool:
        """Whether the latest measurement says that it is enough."""
        stopping, epoch = self.experiment.early_stopping, self._learner.epoch
        return (
            stopping is not None
            and self._learner.batch == 0
            and self.experiment.monitor.due(epoch, self.experiment.epochs)
            and stopping.due(
                epoch=epoch, epochs=self.experiment.epochs, best_epoch=self._best_epoch
            )
        )

    def _epoch(self) -> None:
        learner = self._learner
        self._began, self._before = time.monotonic(), learner.examples
        for report in self._reports():
            self._note(report)
            if time.monotonic() - self._saved > self.save_seconds:
                self._save("last")
        values = {f"train_seen_{name}": mean for name, mean in learner.means().items()}
        values["images_per_second"] = self._speed()
        learner.sums, learner.examples = {}, 0
        if self.experiment.monitor.due(learner.epoch, self.experiment.epochs):
            if self._writes:
                values |= self._figures()
                self._keep_if_best(values)
            self._best, self._best_epoch = self.placement.told((self._best, self._best_epoch))
        values["seconds"] = time.monotonic() - self._began
        self._log("epoch", epoch=learner.epoch, step=learner.step, values=values)
        self.display.epoch(epoch=learner.epoch, values=values)
        self._save("last")
        if self.experiment.keep_every and learner.epoch % self.experiment.keep_every == 0:
            self._save(f"epoch_{learner.epoch}")

    def _note(self, report: Report) -> None:
        """Logs and shows a batch."""
        speed = self._speed()
        if report.micro_batches > self._pieces:
            self._pieces = report.micro_batches
            values = {"micro_batches": self._pieces}
            self._log("out_of_memory", epoch=report.epoch, step=report.step, values=values)
            self.display.out_of_memory(
                epoch=report.epoch, batch=report.batch, micro_batches=self._pieces
            )
        if report.step % self.experiment.log_every == 0:
            values = {**report.values, "images_per_second": speed}
            self._log("step", epoch=report.epoch, step=report.step, values=values)
        self.display.step(epoch=report.epoch, batch=report.batch, values=report.values, speed=speed)

    def _speed(self) -> float:
        """Images per second since the epoch began, or was gone on with."""
        elapsed = time.monotonic() - self._began
        return (self._learner.examples - self._before) / max(elapsed, 1e-9)

    def _reports(self) -> Iterator[Report]:
        experiment, learner = self.experiment, self._learner
        return train_epoch(
            learner,
            experiment.objective,
            self._batches(),
            batches_per_epoch=self._per_epoch,
            epochs=experiment.epochs,
            schedule=experiment.schedule,
            max_norm=math.inf if experiment.clip_norm is None else experiment.clip_norm,
            placement=self.placement,
            streams=self._streams,
        )

    def _batches(self) -> Iterator[Batch]:
        learner, size = self._learner, self.experiment.batch_size
        order = epoch_order(len(self.splits.train), self._streams.noise("order", learner.epoch))
        rest = order[learner.batch * size :]
        if not len(rest):  # stopped between the last batch of an epoch and its figures
            return
        for batch in batches(
            self._train, order=rest, batch_size=size, device=self.placement.device
        ):
            noise = self._streams.examples("augment", learner.epoch, indices=batch.indices)
            yield replace(batch, x=self.experiment.augmentation(batch.x, noise))

    def _figures(self) -> dict[str, float]:
        """The monitor's figures on every split it watches, with the evaluated weights."""
        monitor, learner = self.experiment.monitor, self._learner
        values: dict[str, float] = {}
        with learner.evaluated_weights():
            for name, split in self._watched.items():
                (batch,) = batches(split, batch_size=len(split), device=self.placement.device)
                figures = monitor.measure(
                    learner.model,
                    batch.x,
                    batch.y,
                    threat=self.experiment.threat,
                    noise=self._streams.examples("monitor", name, indices=batch.indices),
                    batch_size=self.experiment.evaluation_batch_size,
                    placement=self.placement,
                )
                values |= {f"{name}_{key}": value for key, value in figures.items()}
        return values

    def _keep_if_best(self, values: dict[str, float]) -> None:
        now = score(self.experiment.selection, values, epoch=self._learner.epoch)
        if self._best is None or now > self._best:
            self._best, self._best_epoch = now, self._learner.epoch
            self._save("best")

    def _save(self, name: str) -> None:
        if not self._writes:
            return
        # First what is still pending: a loss that is not finite must not get into a checkpoint, and
        # a checkpoint's lines must be on the disk before it.
        for report in self._learner.settle():
            self._note(report)
        self.run.flush()
        extra = {
            "best": self._best,
            "best_epoch": self._best_epoch,
            "precision": self.placement.state(),
        }
        checkpoint.write(self.run.checkpoint(name), self._learner, extra=extra)
        self._saved = time.monotonic()

    def _log(self, kind: str, *, epoch: int, step: int, values: Mapping[str, float]) -> None:
        if self._writes:
            self.run.append(StepRecord(kind=kind, epoch=epoch, step=step, values=values))


def _average(experiment: Experiment, model: nn.Module) -> WeightAverage | None:
    average = experiment.average
    if average is None:
        return None
    if isinstance(average, StochasticWeightAveraging):
        return average.build(model)
    return WeightAverage(model, average)
