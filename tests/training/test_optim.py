"""Optimisers: groups by role, and rates that the schedule multiplies."""

import pytest
from torch import nn

from robustssm.core.config import from_dict, to_dict
from robustssm.core.rng import Noise, global_stream
from robustssm.training.optim import SGD, AdamW, Optimizer, Rate, roles, set_rate


class WithRoles(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def roles(self):
        return {"inner.weight": "dynamics"}


def two_layers() -> nn.Module:
    with global_stream(Noise(0)):
        return nn.Sequential(WithRoles(), nn.Linear(2, 2))


def test_roles_come_from_the_layers_that_say_them():
    assert roles(two_layers()) == {
        "0.inner.weight": "dynamics",
        "0.inner.bias": "weight",
        "1.weight": "weight",
        "1.bias": "weight",
    }


@pytest.mark.parametrize("cls", [AdamW, SGD])
def test_a_role_with_its_own_rate_has_its_own_group(cls):
    settings = cls(lr=1e-2, weight_decay=0.1, rates={"dynamics": Rate(lr=1e-4, weight_decay=0.0)})
    optimizer = settings.build(two_layers())
    found = {(g["lr"], g["weight_decay"]): len(g["params"]) for g in optimizer.param_groups}
    assert found == {(1e-4, 0.0): 1, (1e-2, 0.1): 3}
    set_rate(optimizer, 0.5)
    assert {g["lr"] for g in optimizer.param_groups} == {5e-5, 5e-3}


def test_an_unknown_role_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"No role .* is called 'dynamic'"):
        AdamW(rates={"dynamic": Rate()})


def test_settings_survive_json():
    settings = AdamW(rates={"gain": Rate(lr=0.1)})
    assert from_dict(Optimizer, to_dict(settings)) == settings
