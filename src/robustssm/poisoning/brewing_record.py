"""Poisons on disk, group by group, so that a killed brewing goes on where it was."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from robustssm.core.config import to_dict
from robustssm.core.errors import CorruptFile
from robustssm.core.rng import Noise
from robustssm.data.base import Split
from robustssm.poisoning.brewing import Brewing
from robustssm.poisoning.gradient_matching import Brewed
from robustssm.poisoning.targets import Targets
from robustssm.records.brewing import BrewedRecord
from robustssm.records.files import write_bytes


@dataclass(frozen=True)
class BrewedGroups:
    """The groups of one brewing in a directory, one file each.

    `brew(..., done=groups.read(), finished=groups.write)` resumes.
    """

    directory: Path
    fingerprint: str
    """Of what the poisons depend on; see `fingerprint`."""

    def write(self, brewed: Brewed) -> None:
        """Keeps a group, whole or not at all.

        Raises:
            OSError: If the disk is full or not writable.
        """
        about = {"fingerprint": self.fingerprint, "record": json.dumps(brewed.record.to_dict())}
        content = save({"base": brewed.base, "x": brewed.x.contiguous()}, metadata=about)
        write_bytes(self.directory / f"group_{brewed.record.group:04d}.safetensors", content)

    def read(self) -> tuple[Brewed, ...]:
        """The groups that are there.

        Raises:
            CorruptFile: If a file is damaged; names it.
            ValueError: If it is of another brewing.
        """
        return tuple(
            self._read(path) for path in sorted(self.directory.glob("group_*.safetensors"))
        )

    def _read(self, path: Path) -> Brewed:
        try:
            with safe_open(path, "pt") as file:
                about: dict[str, Any] = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in ("base", "x")}
            its = about["fingerprint"]
            record = BrewedRecord.from_dict(json.loads(about["record"]))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise CorruptFile(
                f"{path} must be a group of poisons; it is damaged ({error}). Nothing was "
                "overwritten. Remove it, and it will be brewed again."
            ) from None
        if its != self.fingerprint:
            raise ValueError(
                f"{path} must be of this brewing; it has other settings, data, model or seed. "
                "Use another directory."
            )
        return Brewed(tensors["base"], tensors["x"], record)


def fingerprint(
    model: nn.Module, base: Split, targets: Targets, settings: Brewing, noise: Noise
) -> str:
    """SHA-256 of everything that decides the poisons."""
    digest = hashlib.sha256(json.dumps(to_dict(settings), sort_keys=True).encode())
    digest.update(str(noise.fork("fingerprint").seed()).encode())
    tensors = [base.x[: settings.poisons], base.y[: settings.poisons]]
    tensors += [targets.examples.x, targets.examples.y]
    for group in targets.groups:
        tensors += [group.targets, group.base]
    tensors += list(model.state_dict().values())
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().flatten()
        digest.update(raw.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
