"""The 8 x 8 digits that come with scikit-learn (alpaydin1998optical): no file, no download."""

import hashlib
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from robustssm.core.config import register, settings
from robustssm.core.errors import violation
from robustssm.core.rng import Noise, Streams
from robustssm.data.base import Dataset, Split, Splits
from robustssm.data.splitting import split_off_validation, stratified

TOTAL = 1797


@register("digits")
@settings
class Digits(Dataset):
    """1797 handwritten digits as (1, 8, 8) floats: grey values 0 to 16, divided by 16, exact.

    The set has no official split. Its test examples are a stratified choice by a constant stream:
    `test` alone determines them, whatever the seed of a run. Validation is chosen by the run.

    Source: alpaydin1998optical, the test part of the UCI set, as in sklearn.datasets.load_digits.
    """

    test: Annotated[int, Field(ge=1)] = 500
    validation: Annotated[int, Field(ge=1)] = 200
    train_limit: Annotated[int, Field(ge=1)] | None = None

    def __post_init__(self) -> None:
        if self.test + self.validation >= TOTAL:
            raise ValueError(
                violation(
                    "`Digits(test=..., validation=...)`",
                    f"add up to less than {TOTAL}, so that examples are left to train on",
                    f"{self.test} + {self.validation}",
                )
            )

    def read(self, *, data_dir: Path | None, noise: Noise) -> Splits:
        """See `Dataset.read`; `data_dir` is not looked at."""
        del data_dir
        from sklearn.datasets import load_digits  # here, as importing it takes a second

        bunch = load_digits()
        pixels = bunch.images.astype(np.uint8)  # pyright: ignore[reportAttributeAccessIssue]
        labels = bunch.target.astype(np.int64)  # pyright: ignore[reportAttributeAccessIssue]
        digest = hashlib.sha256(pixels.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest()
        every = Split(
            torch.from_numpy(pixels).float().div(16).unsqueeze(1), torch.from_numpy(labels)
        )
        test, rest = stratified(every.y, self.test, Streams(0).noise("digits", "test"))
        return split_off_validation(
            "Digits",
            every.take(rest.sort().values),
            every.take(test.sort().values),
            validation=self.validation,
            train_limit=self.train_limit,
            noise=noise,
            num_classes=10,
            bounds=(0.0, 1.0),
            origin={
                "source": "digits (scikit-learn's copy of the UCI optical digits, test part)",
                "licence": "CC BY 4.0",
                "files": {"sklearn.datasets.load_digits": f"sha256:{digest}"},
                "verified": digest == _SHA256,
                "remarks": [] if digest == _SHA256 else ["scikit-learn's digits have changed."],
            },
        )


_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
"""Of the pixels, then the labels, one byte each, in scikit-learn's order."""
