"""What a run tells the person who watches it; the command line has a display that draws."""

from collections.abc import Mapping

from robustssm.evaluation.work import Status


class Display:
    """Receives progress; every method may be overridden, none has to be."""

    def training(self, *, epochs: int, batches: int, epoch: int, batch: int) -> None:
        """Training of `epochs` times `batches` begins, `epoch` and `batch` of them being done."""

    def step(self, *, epoch: int, batch: int, values: Mapping[str, float], speed: float) -> None:
        """A batch is done; `speed` in images per second."""

    def epoch(self, *, epoch: int, values: Mapping[str, float]) -> None:
        """An epoch is done."""

    def out_of_memory(self, *, epoch: int, batch: int, micro_batches: int) -> None:
        """Memory was not enough for a batch: it and the rest go in so many pieces."""

    def evaluating(self, *, checkpoint: str, examples: int) -> None:
        """Evaluation of a checkpoint on so many examples begins."""

    def attacked(self, status: Status) -> None:
        """An evaluation has come so far; before the first attack, `seconds_left` is an estimate."""

    def shared(self, pieces: int) -> None:
        """Several processes have finished so many pieces of an evaluation."""


class Several(Display):
    """Tells several displays everything, in their order."""

    def __init__(self, *displays: Display):
        """Tells these."""
        self._displays = displays

    def training(self, *, epochs: int, batches: int, epoch: int, batch: int) -> None:
        """Tells each."""
        for each in self._displays:
            each.training(epochs=epochs, batches=batches, epoch=epoch, batch=batch)

    def step(self, *, epoch: int, batch: int, values: Mapping[str, float], speed: float) -> None:
        """Tells each."""
        for each in self._displays:
            each.step(epoch=epoch, batch=batch, values=values, speed=speed)

    def epoch(self, *, epoch: int, values: Mapping[str, float]) -> None:
        """Tells each."""
        for each in self._displays:
            each.epoch(epoch=epoch, values=values)

    def out_of_memory(self, *, epoch: int, batch: int, micro_batches: int) -> None:
        """Tells each."""
        for each in self._displays:
            each.out_of_memory(epoch=epoch, batch=batch, micro_batches=micro_batches)

    def evaluating(self, *, checkpoint: str, examples: int) -> None:
        """Tells each."""
        for each in self._displays:
            each.evaluating(checkpoint=checkpoint, examples=examples)

    def attacked(self, status: Status) -> None:
        """Tells each."""
        for each in self._displays:
            each.attacked(status)

    def shared(self, pieces: int) -> None:
        """Tells each."""
        for each in self._displays:
            each.shared(pieces)
