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

    def evaluating(self, *, checkpoint: str, examples: int) -> None:
        """Evaluation of a checkpoint on so many examples begins."""

    def attacked(self, status: Status) -> None:
        """An evaluation has come so far; before the first attack, `seconds_left` is an estimate."""

    def shared(self, pieces: int) -> None:
        """Several processes have finished so many pieces of an evaluation."""
