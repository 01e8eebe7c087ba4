"""A layer of ours and somebody else's with the same weights, for `benchmarks.layers`."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import peers, plain
from benchmarks.report import Report
from robustssm.core.rng import Noise, global_stream
from robustssm.layers.dss import DSS, DSSConfig
from robustssm.layers.mamba import MambaConfig
from robustssm.layers.moving_average import MovingAverage
from robustssm.layers.s4 import S4, S4Config
from robustssm.layers.s4d import S4D, S4DConfig
from robustssm.layers.s5 import S5, S5Config

Parts = tuple[nn.Module, Mapping[str, Tensor]]
"""A module, and those of its parameters that mean the same in both, by our names."""


@dataclass(frozen=True)
class Made:
    """Ours, the peer, its name, and how far float32 may lead them apart."""

    ours: Parts
    peer: Parts
    peer_name: str
    tolerance: float


class _Activated(nn.Module):
    """A layer and the silu that the official module ends with."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.layer(x))


class _TimeFirst(nn.Module):
    """A module that takes (length, batch, channels)."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.transpose(0, 1)).transpose(0, 1)


class _Function(nn.Module):
    """A function of the input and of parameters."""

    def __init__(
        self, function: Callable[[Tensor, Mapping[str, Tensor]], Tensor], layer: nn.Module
    ):
        super().__init__()
        self.function = function
        copies = {name: nn.Parameter(p.detach().clone()) for name, p in layer.named_parameters()}
        self.copies = nn.ParameterDict(copies)
        self.named: Mapping[str, Tensor] = dict(copies)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.named)


def _s5(parsed: argparse.Namespace, report: Report) -> Made:
    del report
    code, channels = peers.s5_pytorch(), parsed.channels
    config = S5Config(d_state=channels, conjugate_symmetric=False, initial="s5_pytorch")
    layer = config.build(d_model=channels, length=parsed.length, noise=Noise(0))
    with global_stream(Noise(1)):
        peer = code.S5(channels, channels)
    theirs = {"A": "Lambda", "B": "B", "C": "C", "D": "D", "log_dt": "log_step"}
    named = {ours: getattr(peer.seq, name) for ours, name in theirs.items()}
    return _copied(layer, dict(layer.named_parameters()), peer, named, "s5-pytorch", 1e-4)


def _s5_pairs(parsed: argparse.Namespace, report: Report) -> Made:
    """Ours keeps one state of each conjugate pair; the port, which cannot, is given both."""
    del report
    code, channels = peers.s5_pytorch(), parsed.channels
    config = S5Config(d_state=channels, conjugate_symmetric=True)
    layer = config.build(d_model=channels, length=parsed.length, noise=Noise(0))
    assert isinstance(layer, S5)
    with global_stream(Noise(1)):
        peer = code.S5(channels, channels)
    A, B, C = (torch.view_as_complex(v.detach()) for v in (layer.A, layer.B, layer.C))
    with torch.no_grad():
        peer.seq.Lambda.copy_(torch.cat([A, A.conj()]))
        peer.seq.B.copy_(torch.view_as_real(torch.cat([B, B.conj()]).resolve_conj()))
        peer.seq.C.copy_(torch.cat([C, C.conj()], 1))
        peer.seq.D.copy_(layer.D)
        peer.seq.log_step.copy_(layer.log_dt.repeat(2).reshape(peer.seq.log_step.shape))
    return Made((layer, {"D": layer.D}), (peer, {"D": peer.seq.D}), "s5-pytorch", 1e-4)


def _mamba(parsed: argparse.Namespace, report: Report) -> Made:
    del report
    code = peers.mambapy()
    layer = MambaConfig().build(d_model=parsed.channels, length=parsed.length, noise=Noise(0))
    with global_stream(Noise(1)):
        peer = code.MambaBlock(code.MambaConfig(d_model=parsed.channels, n_layers=1))
    named = dict(peer.named_parameters())
    return _copied(layer, dict(layer.named_parameters()), peer, named, "mambapy block", 1e-4)


def _mega(parsed: argparse.Namespace, report: Report) -> Made:
    channels = parsed.channels
    layer = MovingAverage(d_model=channels, d_state=16, directions=2, noise=Noise(0))
    ours, mine = _Activated(layer), dict(layer.named_parameters())
    try:
        code = peers.official_mega(parsed.mega)
    except peers.NotHere as why:
        report.not_here(f"{why}; its formula stands in for it")
        made = _Function(lambda x, v: F.silu(plain.moving_average(x, **v)), layer)
        return Made((ours, mine), (made, made.named), "formula of Mega", 2e-4)
    with global_stream(Noise(1)):
        peer = code.MultiHeadEMA(channels, ndim=16, bidirectional=True)
    named = {name: getattr(peer, name) for name in mine}
    return _copied(ours, mine, _TimeFirst(peer), named, "official MultiHeadEMA", 2e-4)


def _s4(parsed: argparse.Namespace, report: Report) -> Made:
    """The plain layer trains C (I - A^L): of the parameters only the skip is the same."""
    del report
    layer = S4Config(d_state=_state(parsed)).build(
        d_model=parsed.channels, length=parsed.length, noise=Noise(0)
    )
    assert isinstance(layer, S4)
    peer = plain.Layer(layer, parsed.length)
    return Made((layer, {"D": layer.D}), (peer, {"D": peer.D}), "plain S4 in torch", 1e-3)


def _dss(parsed: argparse.Namespace, report: Report) -> Made:
    del report
    layer = DSSConfig(d_state=_state(parsed)).build(
        d_model=parsed.channels, length=parsed.length, noise=Noise(0)
    )
    assert isinstance(layer, DSS)
    peer = plain.Layer(layer, parsed.length)
    named = dict(peer.named_parameters())
    return Made((layer, dict(layer.named_parameters())), (peer, named), "plain DSS in torch", 0.03)


def _s4d(parsed: argparse.Namespace, report: Report) -> Made:
    del report
    layer = S4DConfig(d_state=_state(parsed)).build(
        d_model=parsed.channels, length=parsed.length, noise=Noise(0)
    )
    assert isinstance(layer, S4D)

    def function(x: Tensor, v: Mapping[str, Tensor]) -> Tensor:
        a = torch.complex(-v["log_decay"].exp(), v["frequency"])
        C = torch.view_as_complex(v["C"])
        kernel = plain.s4d_kernel(a, C, v["log_dt"].exp(), x.shape[1])
        return plain.convolution(x, kernel) + v["D"] * x

    made = _Function(function, layer)
    named = dict(layer.named_parameters())
    return Made((layer, named), (made, made.named), "plain S4D in torch", 3e-3)


def _state(parsed: argparse.Namespace) -> int:
    return 4 if parsed.tiny else 64


def _copied(
    layer: nn.Module,
    mine: Mapping[str, Tensor],
    peer: nn.Module,
    theirs: Mapping[str, Tensor],
    name: str,
    tolerance: float,
) -> Made:
    """Gives the peer our parameters."""
    with torch.no_grad():
        for key, value in mine.items():
            real(theirs[key]).copy_(value.reshape(real(theirs[key]).shape))
    return Made((layer, mine), (peer, theirs), name, tolerance)


def as_ours(key: str, value: Tensor, mine: Mapping[str, Tensor]) -> Tensor:
    """A gradient in the shape of our parameter."""
    parameter = mine.get(key.removeprefix("d "))
    return value if parameter is None else real(value).reshape(parameter.shape)


def real(value: Tensor) -> Tensor:
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


MAKERS: Mapping[str, Callable[[argparse.Namespace, Report], Made]] = {
    "s5": _s5,
    "s5 in pairs": _s5_pairs,
    "mamba": _mamba,
    "mega": _mega,
    "s4": _s4,
    "dss": _dss,
    "s4d": _s4d,
}
