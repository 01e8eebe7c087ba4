"""Checkpoints: safetensors and JSON, complete or absent, and bound to the model they belong to.

A checkpoint is a directory: model.safetensors (the weights that are evaluated),
training.safetensors (what resuming needs besides) and state.json, which holds the SHA-256 of both.
It is written beside its place and then renamed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from robustssm.core.errors import CorruptFile
from robustssm.training.loop import Learner

FORMAT = 1
_MODEL, _TRAINING, _STATE = "model.safetensors", "training.safetensors", "state.json"


def write(place: Path, learner: Learner, *, extra: Mapping[str, Any] | None = None) -> None:
    """Saves a learner at `place`, replacing what was there only once the new files are on the disk.

    Args:
        place: Directory of the checkpoint, "checkpoints/last".
        learner: What to save.
        extra: JSON-able values that come back from `read_state`.

    Raises:
        OSError: If the disk is full or not writable; the previous checkpoint is then as it was.
    """
    assert not learner.pending, "a step that was not looked at must not be kept: settle first"
    new, old = place.with_name(f".{place.name}.new"), place.with_name(f".{place.name}.old")
    place.parent.mkdir(parents=True, exist_ok=True)
    _recover(place)
    shutil.rmtree(new, ignore_errors=True)
    contents = _contents(learner)
    state = _state(learner, contents) | {"extra": dict(extra or {})}
    try:
        new.mkdir()
        for name, content in contents.items():
            _flush(new / name, content)
        _flush(new / _STATE, json.dumps(state, indent=1).encode())
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise OSError(
            error.errno,
            f"The checkpoint must fit on the disk; writing it failed: {error.strerror}. "
            "The previous checkpoint is untouched. Make room and continue with --resume",
            str(place),
        ) from error
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def exists(place: Path) -> bool:
    """Whether there is a checkpoint at `place`, damaged or not."""
    _recover(place)
    return place.exists()


def read_state(place: Path) -> dict[str, Any]:
    """What state.json says of a checkpoint: epoch, step, ..., extra.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        CorruptFile: If it is damaged; names the file.
    """
    _recover(place)
    path = place / _STATE
    if not path.exists():
        raise FileNotFoundError(
            f"A checkpoint must be at {place}; there is none. "
            "Train first, or name another checkpoint."
        )
    try:
        state = json.loads(path.read_bytes())
        assert state["format"] == FORMAT
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise CorruptFile(_damaged(path, f"not a checkpoint's state ({error!r})")) from None
    return state


def read_weights(place: Path, model: nn.Module) -> dict[str, Any]:
    """Loads the evaluated weights into `model`; returns the checkpoint's state.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        CorruptFile: If a file is damaged; names it.
        ValueError: If the checkpoint belongs to another model; names what differs.
    """
    state = read_state(place)
    weights = _read(place / _MODEL, state)
    _check_model(place, weights, model)
    model.load_state_dict(weights)
    return state


def read(place: Path, learner: Learner) -> dict[str, Any]:
    """Loads a whole learner in place, so that training goes on as if never stopped.

    Raises:
        As `read_weights`.
    """
    state = read_state(place)
    weights, training = _read(place / _MODEL, state), _read(place / _TRAINING, state)
    _check_model(place, weights, learner.model)
    groups = _split(training)
    if learner.average is not None:
        learner.average.load({k.removeprefix("."): v for k, v in groups["average"].items()})
        weights = groups["weights"]
    learner.model.load_state_dict(weights)
    _load_optimizer(learner, groups["optimizer"])
    for name, tensor in groups["memory"].items():
        learner.memory[name] = tensor.to(next(learner.model.parameters()).device)
    learner.epoch, learner.batch, learner.step = state["epoch"], state["batch"], state["step"]
    learner.sums, learner.examples = state["sums"], state["examples"]
    return state


def _contents(learner: Learner) -> dict[str, bytes]:
    weights = learner.model.state_dict()
    training: dict[str, Tensor] = {f"memory/{k}": v for k, v in learner.memory.items()}
    if learner.average is not None:
        training |= {f"weights/{k}": v for k, v in weights.items()}
        training |= {f"average/.{k}": v for k, v in learner.average.state().items()}
        weights = learner.average.values
    for name, slots in _optimizer_state(learner).items():
        training |= {f"optimizer/{name}/{slot}": value for slot, value in slots.items()}
    return {_MODEL: save(_plain(weights)), _TRAINING: save(_plain(training))}


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU, no two sharing memory, as safetensors demands."""
    return {
        k: v.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for k, v in tensors.items()
    }


def _state(learner: Learner, contents: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "epoch": learner.epoch,
        "batch": learner.batch,
        "step": learner.step,
        "examples": learner.examples,
        "sums": learner.sums,
        "sha256": {name: hashlib.sha256(c).hexdigest() for name, c in contents.items()},
    }


def _optimizer_state(learner: Learner) -> dict[str, dict[str, Tensor]]:
    name_of: dict[Tensor, str] = {p: name for name, p in learner.model.named_parameters()}
    return {
        name_of[parameter]: {k: v for k, v in slots.items() if isinstance(v, Tensor)}
        for parameter, slots in learner.optimizer.state.items()
    }


def _load_optimizer(learner: Learner, saved: Mapping[str, Tensor]) -> None:
    parameters = dict(learner.model.named_parameters())
    slots: dict[str, dict[str, Tensor]] = {}
    for key, tensor in saved.items():
        name, _, slot = key.rpartition("/")
        slots.setdefault(name, {})[slot] = tensor
    for name, values in slots.items():
        parameter = parameters[name]
        learner.optimizer.state[parameter] = {
            slot: value.to(parameter.device).clone() for slot, value in values.items()
        }


def _read(path: Path, state: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CorruptFile(_damaged(path, "missing")) from None
    if hashlib.sha256(content).hexdigest() != state["sha256"].get(path.name):
        raise CorruptFile(_damaged(path, "its SHA-256 is not the one that was written"))
    try:
        return load(content)
    except SafetensorError as error:
        raise CorruptFile(_damaged(path, str(error))) from None


def _damaged(path: Path, why: str) -> str:
    return (
        f"{path} must be a whole checkpoint file; it is damaged: {why}. Nothing was overwritten. "
        "Use another checkpoint of the run, or train again in a new directory."
    )


def _check_model(place: Path, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    own = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    its = {name: tuple(t.shape) for name, t in weights.items()}
    if own == its:
        return
    wrong = sorted(set(own.items()) ^ set(its.items()))
    name = wrong[0][0]
    raise ValueError(
        f"{place} must be a checkpoint of this model; it is one of another model: '{name}' is "
        f"{its.get(name, 'absent')} there and {own.get(name, 'absent')} here "
        f"({len({n for n, _ in wrong})} differences). Use the recipe it was trained with."
    )


def _split(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {
        "weights": {},
        "average": {},
        "optimizer": {},
        "memory": {},
    }
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        groups[group][name] = tensor
    return groups


def _recover(place: Path) -> None:
    """Finishes a replacement that was killed between its two renames."""
    old = place.with_name(f".{place.name}.old")
    if old.exists():
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(place)


def _flush(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
