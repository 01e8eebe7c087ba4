"""Our classifier and a peer's with the same weights: the paper's, or our own plain one."""

import argparse
import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import peers, plain
from benchmarks.report import Report
from robustssm.core.rng import Noise, global_stream
from robustssm.layers.dss import DSSConfig
from robustssm.layers.s4 import S4Config
from robustssm.models.classifier import SequenceClassifier, SequenceClassifierConfig
from robustssm.models.presets import Structure, released_code
from robustssm.models.tokens import Shape

EPS, STEP = 8 / 255, 2 / 255

TOLERANCE = 3e-4
"""Of our float32 models to float64: worst where the gradients of a batch nearly cancel."""
PEER_TOLERANCE = 5e-4
"""Of the peers': their Cauchy quotients lose digits near the last frequency."""
PEER_LOOSE = {"layer.log_dt": 3e-2, "layer.w": 3e-3}
"""Their exponents dt w l reach 1e5 in float32, so that phases are known to 1e-2 only."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two models with the same weights, and a batch for both."""

    structure: str
    ours: SequenceClassifier
    peer: nn.Module
    peer_name: str
    shared: dict[str, Tensor]
    """The peer's parameters that mean the same in both, by our names."""
    attack: Callable[[Tensor, Tensor, int], Tensor]
    """The peer's PGD: x, y and the number of steps to perturbed inputs."""
    x: Tensor
    y: Tensor

    @property
    def shape(self) -> str:
        """All sizes in words."""
        config = self.ours.config
        length = config.tokens.length(self.ours.shape)
        return (
            f"{config.num_layers} layers, L {length}, d {config.d_model}, "
            f"N {_layer(config).d_state}, B {len(self.x)}"
        )

    def our_results(self, *, rows: int | None = None, parameters: bool = True) -> dict[str, Tensor]:
        """Our logits and gradients, of the first examples or all."""
        mine = dict(self.ours.named_parameters())
        named = {name: mine[name] for name in self.shared} if parameters else {}
        return results(self.ours, self.x[:rows], self.y[:rows], named)

    def exact_results(
        self, *, rows: int | None = None, parameters: bool = True
    ) -> dict[str, Tensor]:
        """Those of the plain path with our present weights, in float64."""
        exact = plain.Classifier(copy.deepcopy(self.ours).double())
        theirs = exact.parameters_as_ours()
        named = {name: theirs[name] for name in self.shared} if parameters else {}
        return results(exact, self.x[:rows].double(), self.y[:rows], named)

    def peer_results(
        self, *, rows: int | None = None, parameters: bool = True
    ) -> dict[str, Tensor]:
        """The peer's, shaped as ours."""
        named = self.shared if parameters else {}
        found = results(self.peer, self.x[:rows], self.y[:rows], named)
        mine = {f"d {name}": p.shape for name, p in self.ours.named_parameters()}
        return {key: g.reshape(mine[key]) if key in mine else g for key, g in found.items()}


def results(
    model: nn.Module, x: Tensor, y: Tensor, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Logits, gradient of the cross-entropy with respect to the inputs, and to `parameters`."""
    points = x.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the paper's DSS drops an imaginary part on purpose
        logits = model(points)
    loss = F.cross_entropy(logits, y)
    found = torch.autograd.grad(loss, [points, *parameters.values()])
    named = {f"d {name}": g for name, g in zip(["x", *parameters], found, strict=True)}
    return {"logits": logits.detach(), **named}


def make(
    structure: Structure,
    report: Report,
    parsed: argparse.Namespace,
    *,
    batch: int,
    num_layers: int | None = None,
) -> Pair:
    """The CIFAR-10 model of the released code, and its peer.

    Args:
        structure: "s4" or "dss".
        report: Told if the paper's code is not here.
        parsed: Options; `tiny` shrinks everything.
        batch: Examples.
        num_layers: Layers; None for the published 4.
    """
    config = released_code(structure, "cifar10")
    shape: Shape = (3, 32, 32)
    if parsed.tiny:
        layer = replace(_layer(config), d_state=4)
        config = replace(config, layer=layer, d_model=8, num_layers=2)
        shape, batch = (3, 4, 4), 2
    elif num_layers is not None:
        config = replace(config, num_layers=num_layers)
    noise = Noise(0)
    ours = config.build(shape=shape, num_classes=10, noise=noise.fork("model"))
    x = noise.fork("x").uniform(batch, *shape)
    y = noise.fork("y").integers(batch, high=10)
    try:
        code = peers.paper(parsed.paper)
    except peers.NotHere as why:
        report.not_here(f"{why}; our own plain path stands in for it")
        return _with_plain(structure, ours, x, y, noise)
    return _with_paper(structure, ours, code, x, y, noise)


def _with_plain(
    structure: Structure, ours: SequenceClassifier, x: Tensor, y: Tensor, noise: Noise
) -> Pair:
    peer = plain.Classifier(ours)
    starts = noise.fork("start")

    def attack(x: Tensor, y: Tensor, steps: int) -> Tensor:
        start = (x + starts.uniform(like=x, low=-EPS, high=EPS)).clamp(0, 1)
        return plain.pgd(peer, x, y, start=start, eps=EPS, step=STEP, steps=steps)

    # S4's C stands for C (I - A^L) there, and so the system's parameters act through it too.
    own = ("C", "log_dt", "frequency", "P", "B") if structure == "s4" else ()
    shared = _without(peer.parameters_as_ours(), own)
    return Pair(
        structure=structure,
        ours=ours,
        peer=peer,
        peer_name=f"plain {structure.upper()} in torch",
        shared=shared,
        attack=attack,
        x=x,
        y=y,
    )


def _with_paper(
    structure: Structure,
    ours: SequenceClassifier,
    code: SimpleNamespace,
    x: Tensor,
    y: Tensor,
    noise: Noise,
) -> Pair:
    config = ours.config
    with global_stream(noise.fork("paper")):
        peer = code.SSM(
            d_input=ours.shape[0],
            d_model=config.d_model,
            d_output=ours.num_classes,
            n_layers=config.num_layers,
            d_state=_layer(config).d_state,
            mode="nplr" if structure == "s4" else "diag",
        )
    tensors = _paper_tensors(peer, config.num_layers)
    with torch.no_grad():  # before its first forward pass, which turns its C into C (I - A^L)
        for name, tensor in ours.state_dict().items():
            tensor.copy_(tensors[name].reshape(tensor.shape))
    seeds = noise.fork("paper attack")

    def attack(x: Tensor, y: Tensor, steps: int) -> Tensor:
        made = code.PGD(peer, EPS, STEP, steps, normalize=False)
        with global_stream(seeds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return made(x, y)

    own = ("C", "log_dt", "frequency", "P", "B", "log_decay") if structure == "s4" else ()
    return Pair(
        structure=structure,
        ours=ours,
        peer=peer,
        peer_name="code of qi2024exploring",
        shared=_without(tensors, own),
        attack=attack,
        x=x,
        y=y,
    )


_PAPER_KERNEL = {"log_w_real": "log_decay", "w_imag": "frequency"}


def _paper_tensors(peer: nn.Module, num_layers: int) -> dict[str, Tensor]:
    """The paper's parameters and S4's fixed real parts, by the names of ours."""
    prefixes = {"input": "input", "post_norm": "input_norm", "output": "head"}
    for number in range(num_layers):
        block, layer = f"blocks.{number}", f"mapping_layers.{number}"
        prefixes |= {
            f"{layer}.kernel.kernel": f"{block}.layer",
            f"{layer}.output_linear": f"{block}.mixing",
            f"norms.{number}": f"{block}.norm",
            layer: f"{block}.layer",
        }
    found = {}
    values = dict(peer.named_parameters()) | dict(peer.named_buffers())
    for name, tensor in values.items():
        prefix, _, last = name.rpartition(".")
        if last in ("L", "omega", "z"):  # of its kernel's present length
            continue
        found[f"{prefixes[prefix]}.{_PAPER_KERNEL.get(last, last)}"] = tensor
    return found


def _layer(config: SequenceClassifierConfig) -> S4Config | DSSConfig:
    assert isinstance(config.layer, S4Config | DSSConfig)
    return config.layer


def _without(tensors: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    kept = {n: t for n, t in tensors.items() if n.rpartition(".")[2] not in set(own)}
    return {name: tensor for name, tensor in kept.items() if tensor.requires_grad}
