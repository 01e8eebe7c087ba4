"""What training measured: the lines of metrics.jsonl."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One line of metrics.jsonl: what was measured after `step` optimiser steps."""

    kind: str
    """"step" for a training step, "epoch" for the figures at the end of an epoch, "out_of_memory"
    where batches were processed in more pieces from then on: `micro_batches`."""
    epoch: int
    step: int
    values: Mapping[str, float] = field(default_factory=dict)

    def to_line(self) -> str:
        """One line of JSON, without the newline."""
        head = {"kind": self.kind, "epoch": self.epoch, "step": self.step}
        assert not head.keys() & self.values.keys(), "a value is called as the record's own fields"
        return json.dumps(head | dict(self.values))

    @classmethod
    def from_line(cls, line: str) -> "StepRecord":
        """The inverse of `to_line`."""
        data = json.loads(line)
        return cls(
            kind=data.pop("kind"), epoch=data.pop("epoch"), step=data.pop("step"), values=data
        )


def read_records(path: Path) -> Iterator[StepRecord]:
    """Reads metrics.jsonl; a last line cut off by a kill is left out.

    Raises:
        ValueError: If any other line is not JSON; names the file and line.
    """
    # What follows the last newline is empty, or a line inside which the writer was killed.
    *complete, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(complete, 1):
        try:
            record = StepRecord.from_line(line.decode())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number} must be a record; it is damaged ({error}). "
                "Remove the line, or the file, and run again."
            ) from None
        yield record
