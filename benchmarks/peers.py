"""Other people's code, from where it lies: loaded for a comparison, never part of the project.

Checkouts are named on the command line; packages belong to the extra `bench`. What these need only
in order to be imported is replaced by empty modules while they are.
"""

import contextlib
import importlib
import importlib.util
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch


class NotHere(Exception):
    """A peer that cannot be compared with."""


def paper(checkout: Path | None) -> SimpleNamespace:
    """The released code of qi2024exploring: its `SSM` and its `PGD`.

    Raises:
        NotHere: If there is no checkout there.
    """
    root = _checkout(checkout, "models/SSM.py", "--paper", "the code of qi2024exploring")
    sequence = "models.src.models.sequence.ss.fairseq.models.lra.mega_lra_block"
    stubs: dict[str, Mapping[str, object]] = {
        "s5": {"S5": None},
        "mamba_ssm": {},
        "mamba_ssm.modules": {},
        "mamba_ssm.modules.mamba_simple": {"Mamba": None},
        sequence: {"MegaLRAEncoder": None},
        "omegaconf": {"DictConfig": dict},
        "opt_einsum": _contractions(),
    }
    cuda_path = os.environ.get("CUDA_PATH")
    with _on_path(root), _stubs(stubs), _silence():
        model = importlib.import_module("models.SSM")
        attacks = importlib.import_module("utils.used_attacks")
    os.environ.pop("CUDA_PATH", None)  # it sets one of its authors' machine
    if cuda_path is not None:
        os.environ["CUDA_PATH"] = cuda_path
    return SimpleNamespace(SSM=model.SSM, PGD=attacks.PGD)


def official_s4(checkout: Path | None) -> SimpleNamespace:
    """The official S4's kernels: `SSMKernelDPLR`, `SSMKernelDiag`, `cauchy_naive`.

    Raises:
        NotHere: If there is no checkout there.
    """
    root = _checkout(checkout, "models/s4/s4.py", "--s4", "the official S4")
    stubs: dict[str, Mapping[str, object]] = {
        "pytorch_lightning": {},
        "pytorch_lightning.utilities": {"rank_zero_only": lambda function: function},
        "opt_einsum": _contractions(),
    }
    with _stubs(stubs), _silence():
        module = _load("official_s4", root / "models/s4/s4.py")
    names = ("SSMKernelDPLR", "SSMKernelDiag", "cauchy_naive", "log_vandermonde_naive")
    return SimpleNamespace(**{name: getattr(module, name) for name in names})


def official_mega(checkout: Path | None) -> SimpleNamespace:
    """The official Mega's moving average: `MultiHeadEMA`.

    Raises:
        NotHere: If there is no checkout there.
    """
    file = "fairseq/modules/exponential_moving_average.py"
    root = _checkout(checkout, file, "--mega", "the official Mega")
    stubs: dict[str, Mapping[str, object]] = {
        "fairseq": {},
        "fairseq.incremental_decoding_utils": {"with_incremental_state": lambda made: made},
    }
    with _stubs(stubs), _silence():
        module = _load("official_mega", root / file)
    return SimpleNamespace(MultiHeadEMA=module.MultiHeadEMA)


def s5_pytorch() -> SimpleNamespace:
    """The package s5-pytorch: `S5`.

    Raises:
        NotHere: If it is not installed.
    """
    return SimpleNamespace(S5=_package("s5", "s5-pytorch").S5)


def mambapy() -> SimpleNamespace:
    """The package mambapy: `MambaBlock`, `MambaConfig`, `pscan`.

    Raises:
        NotHere: If it is not installed.
    """
    module = _package("mambapy.mamba", "mambapy")
    names = ("MambaBlock", "MambaConfig", "pscan")
    return SimpleNamespace(**{name: getattr(module, name) for name in names})


def _checkout(path: Path | None, file: str, flag: str, name: str) -> Path:
    if path is None:
        raise NotHere(f"{name}: no checkout given ({flag} PATH)")
    if not (path / file).is_file():
        raise NotHere(f"{name}: {path} has no {file}")
    return path.resolve()


def _package(module: str, package: str) -> ModuleType:
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise NotHere(f"{package}: not installed (pip install 'robustssm[bench]')")
    with _silence():
        return importlib.import_module(module)


def _load(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _contractions() -> dict[str, object]:
    """opt_einsum where it is installed; torch's own einsum is the same for two operands."""
    if importlib.util.find_spec("opt_einsum") is not None:
        return vars(importlib.import_module("opt_einsum"))
    return {"contract": torch.einsum, "contract_expression": None}


@contextlib.contextmanager
def _stubs(stubs: Mapping[str, Mapping[str, object]]) -> Iterator[None]:
    """Stand-ins in `sys.modules`, taken out again."""
    before = {name: sys.modules.get(name) for name in stubs}
    for name, contents in stubs.items():
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__dict__.update(contents)
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


@contextlib.contextmanager
def _on_path(root: Path) -> Iterator[None]:
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without what they print, log and warn of while they are imported."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
