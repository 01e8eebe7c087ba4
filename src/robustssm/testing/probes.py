"""What every probe must satisfy, yours included: `check_probe`."""

import json

import torch
from torch import nn

from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.config import from_dict
from robustssm.core.errors import Inapplicable
from robustssm.core.rng import Noise, global_stream
from robustssm.diagnostics.base import Probe, Subject
from robustssm.layers.base import LayerConfig
from robustssm.layers.mamba import MambaConfig
from robustssm.layers.mega import MegaConfig
from robustssm.layers.s4 import S4Config
from robustssm.layers.s5 import S5Config
from robustssm.models.block import BlockConfig
from robustssm.models.classifier import SequenceClassifierConfig
from robustssm.records import ProbeResult, violations

_LENGTH, _CLASSES, _BATCH = 12, 3, 4
_LAYERS: tuple[LayerConfig, ...] = (
    S4Config(d_state=4),
    S5Config(d_state=4),
    MegaConfig(d_state=2),
    MambaConfig(d_state=2),
)


def check_probe(probe: Probe) -> None:
    """Holds a probe to what reports and studies rely on, on small models of several structures.

    Settings and results survive JSON; the same model gives the same values twice; every quantity
    has the same axes for other examples and for another draw of the parameters (so that splits,
    states and runs can be joined); every bound bounds what it says; and parameters, buffers,
    gradients, `requires_grad`, modes, hooks and global random states are as they were. A model
    without sequence layers is refused in words (`Inapplicable`). Some structure must be covered.

    Args:
        probe: The probe, with settings that are quick.

    Raises:
        AssertionError: Says which of these fails.
    """
    assert from_dict(Probe, json.loads(json.dumps(probe.to_dict()))) == probe, (
        "the settings must survive to_dict, JSON and from_dict"
    )
    covered = 0
    for config in _LAYERS:
        try:
            _check_on(probe, config)
            covered += 1
        except Inapplicable as reason:
            assert str(reason), "a refusal must say why"
    assert covered, "the probe must cover one of S4, S5, Mega and Mamba"
    try:
        probe.measure(_subject(_Plain(), seed=0))
    except Inapplicable as reason:
        assert "_Plain" in str(reason) or "Linear" in str(reason), (
            "the refusal of a model without sequence layers must name what was found"
        )
    else:
        raise AssertionError("a model without sequence layers must be refused")


class _Plain(nn.Module):
    """A model without sequence layers."""

    def __init__(self):
        super().__init__()
        with global_stream(Noise(0)):
            self.head = nn.Linear(2, _CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean(1))


def _model(config: LayerConfig, seed: int) -> nn.Module:
    made = SequenceClassifierConfig(
        layer=config, d_model=4, num_layers=2, block=BlockConfig(activation="gelu")
    )
    return made.build(shape=(_LENGTH, 2), num_classes=_CLASSES, noise=Noise(seed))


def _subject(model: nn.Module, *, seed: int) -> Subject:
    noise = Noise(10 + seed)
    return Subject(
        model,
        noise.fork("x").uniform(_BATCH, _LENGTH, 2),
        noise.fork("y").integers(_BATCH, high=_CLASSES),
        threat=Threat(eps=0.05),
        attack=PGD(steps=2),
        noise=Noise(4, torch.arange(_BATCH)),
    )


def _check_on(probe: Probe, config: LayerConfig) -> None:
    model = _model(config, seed=1)
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    before = _state(model)
    result = probe.measure(_subject(model, seed=0))
    assert _state(model) == before, (
        "parameters, buffers, gradients, modes, hooks and random states must be left alone"
    )
    again = probe.measure(_subject(model, seed=0))
    text = json.dumps(result.to_dict(), sort_keys=True)
    assert json.dumps(again.to_dict(), sort_keys=True) == text, (
        "the same model and examples must give the same values"
    )
    read = ProbeResult.from_dict(json.loads(text))
    assert json.dumps(read.to_dict(), sort_keys=True) == text, "results must survive JSON"
    assert result.probe == probe.name, "a result must carry the registered name of its probe"
    broken = violations(result, tolerance=1e-5)
    assert not broken, "; ".join(broken[:3])
    for other in (_subject(model, seed=5), _subject(_model(config, seed=2), seed=0)):
        found = [(q.name, q.axes) for q in probe.measure(other).quantities]
        assert found == [(q.name, q.axes) for q in result.quantities], (
            "quantities and axes must not depend on examples or on values of parameters"
        )


def _state(model: nn.Module) -> list[object]:
    """All that a probe could disturb, comparable."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [
        *((name, t.detach().numpy().tobytes()) for name, t in tensors),
        *((n, p.requires_grad, p.grad is not None) for n, p in model.named_parameters()),
        *(None if p.grad is None else p.grad.numpy().tobytes() for p in model.parameters()),
        *(module.training for module in model.modules()),
        *(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        *(len(m._backward_hooks) + len(m._backward_pre_hooks) for m in model.modules()),
        torch.get_rng_state().numpy().tobytes(),
    ]
