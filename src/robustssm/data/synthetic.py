"""Sequences made by rule, of any length: no file, no download, and a true rule to compare with."""

from abc import abstractmethod
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from robustssm.core.config import settings
from robustssm.core.rng import Noise, Streams
from robustssm.data import archive
from robustssm.data.base import Dataset, Split, Splits
from robustssm.data.splitting import split_off_validation


@settings
class Synthetic(Dataset):
    """Sequences (length, channels) drawn from constant streams, one stream per example.

    Settings alone determine the examples: a larger `train` or `test` begins with the examples of a
    smaller one, and a run's seed only chooses which of the training data are for validation.
    """

    train: Annotated[int, Field(ge=1)] = 2000
    validation: Annotated[int, Field(ge=1)] = 300
    test: Annotated[int, Field(ge=1)] = 500

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the inputs."""
        return (0.0, 1.0)

    @abstractmethod
    def draw(
        self, noise: Noise, count: int
    ) -> tuple[Float[Tensor, "n length channels"], Int[Tensor, " n"]]:
        """Draws sequences and their classes.

        Args:
            noise: Of one stream per example.
            count: How many examples that is.
        """

    @abstractmethod
    def rule(self, x: Float[Tensor, "n length channels"]) -> Int[Tensor, " n"]:
        """The classes of sequences by the rule that made them: what a model should learn."""

    def read(self, *, data_dir: Path | None, noise: Noise) -> Splits:
        """See `Dataset.read`; `data_dir` is not looked at."""
        del data_dir
        training = self._part("train", self.train + self.validation)
        test = self._part("test", self.test)
        drawn = b"".join(split.x.numpy().tobytes() for split in (training, test))
        return split_off_validation(
            type(self).__name__,
            training,
            test,
            validation=self.validation,
            train_limit=None,
            noise=noise,
            num_classes=self.num_classes,
            bounds=self.bounds,
            origin={
                "source": f"{self.name} (drawn by rule from a constant stream)",
                "licence": "none needed",
                "files": {"drawn": archive.checksum(drawn)},
                "verified": False,
                "remarks": ["The data are synthetic."],
            },
        )

    def _part(self, part: str, count: int) -> Split:
        noise = Streams(0).examples(self.name, part, indices=torch.arange(count))
        return Split(*self.draw(noise, count))
