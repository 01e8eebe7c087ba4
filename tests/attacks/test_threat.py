"""The threat: settings, messages, and that its methods are those of the balls."""

import math

import pytest
import torch

from robustssm.attacks.threat import Threat
from robustssm.core.config import from_dict, override, to_dict
from robustssm.core.rng import Noise


def test_settings_survive_json_and_read_fractions():
    threat = Threat(norm="l2", eps="8/255", bounds=(-1, 1))
    assert threat.eps == 8 / 255
    assert from_dict(Threat, to_dict(threat)) == threat
    restrictions = dict.fromkeys(("window", "channels", "channel_scales", "band"))
    assert to_dict(threat) == {"norm": "l2", "eps": 8 / 255, "bounds": [-1.0, 1.0], **restrictions}
    assert override(Threat(eps=0.1), {"eps": "2/255"}).eps == 2 / 255


@pytest.mark.parametrize(
    "values, says",
    [
        ({"eps": -0.1}, "eps"),
        ({"eps": math.inf}, "eps"),
        ({"eps": "8/0"}, "eps"),
        ({"eps": "1/2/3"}, "eps"),
        ({"eps": 0.1, "norm": "l7"}, "norm"),
        ({"eps": 0.1, "bounds": (1.0, 0.0)}, "low < high"),
        ({"eps": 0.1, "bounds": (0.0, math.inf)}, "finite"),
        ({}, "eps"),
    ],
)
def test_bad_settings_are_refused(values, says):
    with pytest.raises(ValueError, match=says):
        Threat(**values)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_samples_are_in_the_set_and_per_example(norm):
    threat = Threat(norm=norm, eps=0.4)
    x = Noise(0).uniform(6, 3, 4)
    noise = Noise(1, torch.arange(6))
    drawn = threat.sample(x, noise)
    assert (threat.distance(drawn, x) <= 0.4 * (1 + 1e-6)).all()
    assert drawn.min() >= 0 and drawn.max() <= 1
    rows = torch.tensor([4, 1])
    some = threat.sample(x[rows], Noise(1, torch.arange(6)).select(rows))
    assert torch.equal(some, drawn[rows])


def test_distance_is_the_norm_over_all_axes():
    x, z = torch.zeros(1, 2, 2), torch.tensor([[[3.0, 0.0], [0.0, -4.0]]])
    assert Threat(eps=1).distance(z, x).tolist() == [4.0]
    assert Threat(norm="l2", eps=1).distance(z, x).tolist() == [5.0]


def test_check_accepts_rounding_and_refuses_more():
    threat = Threat(eps=0.1)
    threat.check(torch.tensor([[1 + 9e-7, -9e-7]]), attack="PGD")
    threat.check(torch.zeros(0, 3), attack="PGD")
    with pytest.raises(ValueError, match=r"`PGD` needs inputs inside.*\[0, 1\], got \[-2.1, 2.6\]"):
        threat.check(torch.tensor([[-2.1, 2.6]]), attack="PGD")
    with pytest.raises(ValueError, match="got 2 values that are NaN or infinite"):
        threat.check(torch.tensor([[math.nan, math.inf, 0.5]]), attack="PGD")
    with pytest.raises(ValueError, match="float32 or float64"):
        threat.check(torch.zeros(1, 2, dtype=torch.float16), attack="PGD")
