"""Progress in a terminal: one bar, and a line per measured epoch; nothing where nobody watches."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from robustssm.experiment.display import Display, Status


@contextmanager
def display(console: Console, *, quiet: bool) -> Iterator[Display]:
    """A display that draws on `console`, or a silent one if `quiet` or if it is no terminal."""
    if quiet or not console.is_terminal:
        yield Display()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield Bars(progress)


class Bars(Display):
    """Draws progress with rich."""

    def __init__(self, progress: Progress):
        """Draws on `progress`, which the caller starts and stops."""
        self._progress = progress
        self._epochs = 0
        self._task = progress.add_task("reading data", total=None, figures="")

    def training(self, *, epochs: int, batches: int, epoch: int, batch: int) -> None:
        """Shows one bar over all batches."""
        self._epochs, self._batches = epochs, batches
        self._progress.reset(
            self._task,
            description="training",
            total=epochs * batches,
            completed=epoch * batches + batch,
            figures="",
        )

    def step(self, *, epoch: int, batch: int, values: Mapping[str, float], speed: float) -> None:
        """Moves the bar."""
        self._progress.update(
            self._task,
            description=f"epoch {epoch}/{self._epochs}",
            completed=(epoch - 1) * self._batches + batch,
            figures=f"loss {values['loss']:.3f}  {speed:.0f} images/s",
        )

    def epoch(self, *, epoch: int, values: Mapping[str, float]) -> None:
        """Prints the figures of a measured epoch."""
        if "validation_accuracy" not in values:
            return
        self._progress.console.print(
            f"epoch {epoch:>4}  loss {values.get('train_seen_loss', float('nan')):.4f}  "
            f"clean {100 * values['validation_accuracy']:5.1f} %  "
            f"robust {100 * values['validation_adversarial_accuracy']:5.1f} % (validation)  "
            f"{values['images_per_second']:.0f} images/s",
            highlight=False,
        )

    def out_of_memory(self, *, epoch: int, batch: int, micro_batches: int) -> None:
        """Says that training goes on in smaller pieces."""
        self._progress.console.print(
            f"epoch {epoch:>4}  batch {batch}: out of memory; batches go in {micro_batches} "
            "pieces from here on",
            highlight=False,
        )

    def evaluating(self, *, checkpoint: str, examples: int) -> None:
        """Shows a new bar for the attacks."""
        self._progress.update(self._task, visible=False)
        self._checkpoint = checkpoint
        self._announced = False
        self._task = self._progress.add_task(
            f"evaluating {checkpoint}", total=1.0, figures=f"{examples} examples"
        )

    def attacked(self, status: Status) -> None:
        """Moves the one bar of an evaluation; says before the start how long it may take."""
        left = status.seconds_left
        if not self._announced and left is not None:
            self._announced = True
            if left > 60:
                self._progress.console.print(
                    f"{self._checkpoint}: at most about {_duration(left)}, less as examples fall",
                    highlight=False,
                )
        robust = f"{status.right}/{status.seen} hold  " if status.seen else ""
        at_most = f"at most {_duration(left)}" if left is not None else ""
        self._progress.update(
            self._task, completed=status.share, figures=f"{status.attack}  {robust}{at_most}"
        )

    def shared(self, pieces: int) -> None:
        """Shows how many pieces are done, as no single process knows the time left."""
        self._progress.update(self._task, figures=f"{pieces} pieces finished")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
