"""What every attack must satisfy, yours included: `check_attack`."""

import json

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustssm.attacks.base import Attack
from robustssm.attacks.threat import Threat
from robustssm.core.config import from_dict
from robustssm.core.errors import Inapplicable
from robustssm.core.modes import mode
from robustssm.core.rng import Noise, global_stream

SHAPES = ((6,), (5, 3), (2, 4, 4))
"""One example as a vector, a sequence (length, channels) and an image (channels, height, width)."""

CLASSES = 4
_BATCH = 5


class ContractClassifier(nn.Module):
    """A small classifier with all that attacks can disturb: batch normalisation, dropout, modes.

    Tokens are embedded one by one, so that `forward` is `classify(embed(x))`.
    """

    def __init__(self, shape: tuple[int, ...], *, noise: Noise, disturbable: bool = True):
        """Makes a model of float64.

        Args:
            shape: One example.
            noise: Draws the weights.
            disturbable: With batch normalisation and dropout. Without, a batch of one can be
                trained on, and no random state is used.
        """
        super().__init__()
        width = 8
        with global_stream(noise):
            self.encode = nn.Linear(shape[-1], width)
            self.norm = nn.BatchNorm1d(width) if disturbable else nn.Identity()
            self.drop = nn.Dropout(0.3 if disturbable else 0.0)
            self.head = nn.Linear(width, CLASSES)
        self.double()

    def embed(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch length d_model"]:
        """Inputs to tokens: all axes but the last become the length."""
        return self.encode(x.reshape(len(x), -1, x.shape[-1]))

    def classify(
        self, tokens: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch classes"]:
        """Tokens to logits; scaled so that predictions are neither all one class nor saturated."""
        features = self.norm(torch.tanh(3 * tokens).mean(1))
        return 4 * self.head(self.drop(features))

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """Inputs to logits."""
        return self.classify(self.embed(x))


def check_attack(attack: Attack) -> None:
    """Holds an attack to what training, evaluation and records rely on.

    Settings survive JSON. For vectors, sequences and images, linf and l2 (an attack may refuse a
    norm, in words): candidates have the inputs' shape and dtype, are finite, in bounds and within
    eps; equal noise gives equal candidates; an example's candidate does not depend on its batch;
    eps = 0 gives the input back; it runs for a single example, under `no_grad` and
    `inference_mode`; and it leaves modes, parameters, buffers, gradients, `requires_grad`, its
    arguments and the global random state alone. Inputs out of bounds are refused.

    Args:
        attack: The attack, with settings that are quick.

    Raises:
        AssertionError: Says which of these fails.
    """
    assert from_dict(Attack, json.loads(json.dumps(attack.to_dict()))) == attack, (
        "the settings must survive to_dict, JSON and from_dict"
    )
    assert attack.label.startswith(attack.name), "the label must begin with the registered name"
    threats = (Threat(eps=0.1), Threat(norm="l2", eps=0.3, bounds=(-0.5, 1.5)))
    accepted = [threat for threat in threats if _accepts(attack, threat)]
    assert accepted, "the attack must accept linf or l2"
    for threat in accepted:
        for shape in SHAPES:
            _check_shape(attack, threat, shape)
    _check_refusal(attack, accepted[0])


def _problem(shape: tuple[int, ...], threat: Threat) -> tuple[ContractClassifier, Tensor, Tensor]:
    model = ContractClassifier(shape, noise=Noise(1))
    low, high = threat.bounds
    x = Noise(2).uniform(_BATCH, *shape, low=low, high=high, dtype=torch.float64)
    x.view(-1)[::7] = high  # some coordinates on the boundary
    y = Noise(3).integers(_BATCH, high=CLASSES)
    return model, x, y


def _noise(count: int = _BATCH) -> Noise:
    return Noise(4, torch.arange(10, 10 + count))


def _accepts(attack: Attack, threat: Threat) -> bool:
    model, x, y = _problem(SHAPES[0], threat)
    try:
        attack(model.eval(), x, y, threat=threat, noise=_noise())
    except (ValueError, Inapplicable) as error:
        assert "norm" in str(error), f"a refusal must name the norm; it said: {error}"
        return False
    return True


def _check_shape(attack: Attack, threat: Threat, shape: tuple[int, ...]) -> None:
    _check_untouched(attack, threat, shape)
    model, x, y = _problem(shape, threat)
    with mode(model, training=False):
        found = attack(model, x, y, threat=threat, noise=_noise())
        _check_membership(found, x, threat)
        again = attack(model, x, y, threat=threat, noise=_noise())
        assert torch.equal(found, again), "equal noise must give equal candidates"
        _check_batches(attack, threat, model, x, y, found)
        _check_grad_modes(attack, threat, model, x, y, found)
        still = Threat(norm=threat.norm, eps=0.0, bounds=threat.bounds)
        same = attack(model, x, y, threat=still, noise=_noise())
        assert torch.equal(same, x), "eps = 0 must give the input back, bit for bit"


def _check_membership(found: Tensor, x: Tensor, threat: Threat) -> None:
    assert found.shape == x.shape and found.dtype == x.dtype, "candidates must look like inputs"
    assert not found.requires_grad, "candidates must be detached"
    assert found.isfinite().all(), "candidates must be finite"
    low, high = threat.bounds
    assert low <= found.min() and found.max() <= high, "candidates must lie in bounds"
    furthest = float(threat.distance(found, x).max())
    assert furthest <= threat.eps * (1 + 1e-6), f"a candidate is {furthest} away, over eps"


def _check_batches(
    attack: Attack, threat: Threat, model: nn.Module, x: Tensor, y: Tensor, found: Tensor
) -> None:
    for rows in (torch.arange(1), torch.arange(3, _BATCH)):
        part = attack(model, x[rows], y[rows], threat=threat, noise=_noise().select(rows))
        gap = float((part - found[rows]).abs().max())
        assert gap <= 1e-9, (
            f"with one stream per example, a candidate must not depend on its batch; it moved by "
            f"{gap} in a batch of {len(rows)}"
        )


def _check_grad_modes(
    attack: Attack, threat: Threat, model: nn.Module, x: Tensor, y: Tensor, found: Tensor
) -> None:
    with torch.no_grad():
        inside = attack(model, x, y, threat=threat, noise=_noise())
    assert torch.equal(inside, found), "no_grad around an attack must not change it"
    with torch.inference_mode():
        inside = attack(model, x.clone(), y.clone(), threat=threat, noise=_noise())
    assert torch.equal(inside, found), "inference_mode around an attack must not change it"


def _check_untouched(attack: Attack, threat: Threat, shape: tuple[int, ...]) -> None:
    """Run in eval mode but for dropout, so that a switch of the whole model would show."""
    model, x, y = _problem(shape, threat)
    model.eval()
    model.drop.training, model.drop.p = True, 0.0
    model.encode.bias.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [(module, module.training) for module in model.modules()]
    wants = [p.requires_grad for p in model.parameters()]
    inputs, labels, random = x.clone(), y.clone(), torch.random.get_rng_state()
    attack(model, x, y, threat=threat, noise=_noise())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), f"{name} must be left alone"
    for module, training in flags:
        assert module.training == training, f"the mode of {module} must be left alone"
    assert [p.requires_grad for p in model.parameters()] == wants, "requires_grad was changed"
    for name, parameter in model.named_parameters():
        if name == "head.weight":
            kept = parameter.grad is not None and bool((parameter.grad == 1).all())
        else:
            kept = parameter.grad is None
        assert kept, f"the gradient of {name} must be left alone"
    assert torch.equal(x, inputs) and torch.equal(y, labels), "the arguments were changed in place"
    assert not x.requires_grad and x.grad is None, "the input was made to require a gradient"
    assert torch.equal(torch.random.get_rng_state(), random), "the global random state was used"


def _check_refusal(attack: Attack, threat: Threat) -> None:
    model, x, y = _problem(SHAPES[0], threat)
    for bad in (x + 1.0, x.masked_fill(x == x[0, 0], torch.nan)):
        try:
            attack(model.eval(), bad, y, threat=threat, noise=_noise())
        except ValueError as error:
            assert type(attack).__name__ in str(error), "the refusal must name the attack"
        else:
            raise AssertionError("inputs out of bounds or not finite must be refused")
