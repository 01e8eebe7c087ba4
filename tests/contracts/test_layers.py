"""Every registered layer, in every sample of its settings, keeps the contract."""

import pytest

from robustssm.core.config import lookup, names
from robustssm.layers.base import LayerConfig
from robustssm.testing.layers import check_layer


def samples():
    for name in names("layer"):
        config = lookup("layer", name)
        assert issubclass(config, LayerConfig)
        for i, sample in enumerate(config.samples()):
            yield pytest.param(sample, id=f"{name}-{i}")


@pytest.mark.parametrize("config", list(samples()))
def test_layer_keeps_the_contract(config):
    check_layer(config, d_model=8)
