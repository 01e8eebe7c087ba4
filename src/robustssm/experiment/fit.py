"""Training inside a run directory: epochs, figures, checkpoints, and resuming a killed run."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from robustssm.core.placement import Placement
from robustssm.core.rng import Streams
from robustssm.data.base import Splits
from robustssm.data.batches import Batch, batches, epoch_order
from robustssm.experiment.display import Display
from robustssm.experiment.rundir import RunDirectory
from robustssm.experiment.settings import Experiment, build_model
from robustssm.records import StepRecord
from robustssm.training import checkpoint
from robustssm.training.averaging import WeightAverage
from robustssm.training.loop import Learner, train_epoch
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

        Raises:
            NonFiniteLoss: If the loss stops being finite; the last good checkpoint is kept.
        """
        self._streams = Streams(self.experiment.seed)
        self._train = self.splits.train
        if self.placement.device.type == "cuda":  # then batches are gathered there, uncopied
            self._train = self._train.to(self.placement.device)
        self._learner = self._make_learner()
        self._best: tuple[float, float] | None = None
        self._best_epoch = 0
        self._resume()
        self.display.training(
            epochs=self.experiment.epochs,
            batches=self._per_epoch,
            epoch=self._learner.epoch,
            batch=self._learner.batch,
        )
        self._saved = time.monotonic()
        while self._learner.epoch < self.experiment.epochs:
            self._epoch()
        return self._learner.model

    @property
    def _per_epoch(self) -> int:
        return math.ceil(len(self.splits.train) / self.experiment.batch_size)

    def _make_learner(self) -> Learner:
        experiment, device = self.experiment, self.placement.device
        model = self.placement.setup(build_model(experiment, self.splits))
        optimizer = experiment.optimizer.build(model, fused=not self.placement.scales_losses)
        first = next(batches(self.splits.train, order=None, batch_size=1, device=device))
        return Learner(
            model=model,
            optimizer=self.placement.setup_optimizer(optimizer),
            memory=experiment.objective.memory(first.x, batch_size=experiment.batch_size),
            average=None
            if experiment.average is None
            else WeightAverage(model, experiment.average),
        )

    def _resume(self) -> None:
        last = self.run.checkpoint("last")
        if checkpoint.exists(last):
            extra = checkpoint.read(last, self._learner)["extra"]
            self._best = None if extra["best"] is None else (extra["best"][0], extra["best"][1])
            self._best_epoch = extra["best_epoch"]
            self.placement.load_state(extra["precision"])
        self.run.rewind(epoch=self._learner.epoch, step=self._learner.step)

    def _epoch(self) -> None:
        learner = self._learner
        began, before = time.monotonic(), learner.examples
        for scalars in self._steps():
            elapsed = time.monotonic() - began
            # The generator counts an epoch as finished only once its last batch was handled here.
            speed = (learner.examples - before) / max(elapsed, 1e-9)
            if learner.step % self.experiment.log_every == 0:
                values = scalars | {"images_per_second": speed}
                self._log("step", learner.epoch + 1, values)
            self.display.step(
                epoch=learner.epoch + 1, batch=learner.batch, values=scalars, speed=speed
            )
            if time.monotonic() - self._saved > self.save_seconds:
                self._save("last")
        values = {f"train_seen_{name}": mean for name, mean in learner.means().items()}
        values["images_per_second"] = (learner.examples - before) / (time.monotonic() - began)
        learner.sums, learner.examples = {}, 0
        if self.experiment.monitor.due(learner.epoch, self.experiment.epochs):
            values |= self._figures()
            self._keep_if_best(values)
        values["seconds"] = time.monotonic() - began
        self._log("epoch", learner.epoch, values)
        self.display.epoch(epoch=learner.epoch, values=values)
        self._save("last")
        if self.experiment.keep_every and learner.epoch % self.experiment.keep_every == 0:
            self._save(f"epoch_{learner.epoch}")

    def _steps(self) -> Iterator[dict[str, float]]:
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
        watched = {"train": monitor.train, "validation": monitor.validation, "test": monitor.test}
        with learner.evaluated_weights():
            for name, count in watched.items():
                split = getattr(self.splits, name)
                if count == 0 or len(split) == 0:
                    continue
                rows = min(count, len(split))
                batch = next(
                    batches(split, order=None, batch_size=rows, device=self.placement.device)
                )
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
        self.run.flush()
        extra = {
            "best": self._best,
            "best_epoch": self._best_epoch,
            "precision": self.placement.state(),
        }
        checkpoint.write(self.run.checkpoint(name), self._learner, extra=extra)
        self._saved = time.monotonic()

    def _log(self, kind: str, epoch: int, values: dict[str, float]) -> None:
        self.run.append(StepRecord(kind=kind, epoch=epoch, step=self._learner.step, values=values))
