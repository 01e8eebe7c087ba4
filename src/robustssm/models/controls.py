"""Models that take apart what the comparisons of qi2024exploring leave mixed, and two baselines.

Adaptive scaling (AdS) adds parameters, an elementwise nonlinearity and a product at once; Mega adds
attention, averages, both directions, gates and feed-forward maps. Each control changes one of these
and keeps the block, the sizes and the training of the model that it is compared with.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, TypeAlias

from robustssm.core.errors import unknown, violation
from robustssm.layers.adaptive_scaling import AdaptiveScalingConfig
from robustssm.layers.attention import AttentionConfig
from robustssm.layers.base import LayerConfig
from robustssm.layers.bidirectional import BidirectionalConfig
from robustssm.layers.dss import DSSConfig
from robustssm.layers.ema import EMAConfig
from robustssm.layers.s4 import S4Config
from robustssm.models.classifier import ModelConfig, SequenceClassifierConfig
from robustssm.models.cnn import CNNConfig
from robustssm.models.transformer import TransformerConfig

Plain: TypeAlias = Callable[[Literal["s4", "dss"]], SequenceClassifierConfig]
"""Makes the model of a structure without adaptive scaling, as its tier has it."""

WIDE: Mapping[tuple[int, int], int] = {
    (32, 2): 42,
    (64, 2): 87,
    (128, 2): 175,
    (128, 4): 172,
}
"""(d_model, num_layers) to the d_model at which S4 and DSS without AdS have as many parameters as
with it at that d_model: within 0.3 % for the sizes of our recipes (tests/recipes/test_controls)."""

_TRANSFORMERS = {
    (32, 2): TransformerConfig(d_model=18, heads=3, num_layers=2),
    (64, 2): TransformerConfig(d_model=32, num_layers=2),
    (128, 2): TransformerConfig(d_model=64, num_layers=2),
    (128, 4): TransformerConfig(d_model=64, num_layers=4),
}
_CNNS = {
    (32, 2): CNNConfig(width=16, num_layers=2),
    (64, 2): CNNConfig(width=14, num_layers=3),
    (128, 2): CNNConfig(width=28, num_layers=3),
    (128, 4): CNNConfig(width=20, num_layers=4),
}
"""Near the number of parameters of S4 with AdS in that size, 15 % off at most."""


def control(name: str, plain: Plain) -> ModelConfig:
    """The model of a control.

    Args:
        name: "s4_wide", "attention", "cnn", ...: see `recipes.CONTROLS`.
        plain: Makes the models that the control is compared with.

    Raises:
        ValueError: If there is no such control, or no constants for models of that size.
    """
    if name not in _CONTROLS:
        raise ValueError(unknown("control", name, _CONTROLS))
    return _CONTROLS[name](plain)


def _wide(structure: Literal["s4", "dss"]) -> Callable[[Plain], ModelConfig]:
    def make(plain: Plain) -> ModelConfig:
        model = plain(structure)
        return replace(model, d_model=WIDE[_size(model)])

    return make


def _body(*, gelu: bool = False, glu: bool = False, ads: bool = False) -> Callable:
    """S4 whose block has no other nonlinearity than the given one: SSM, [it,] Linear."""

    def make(plain: Plain) -> ModelConfig:
        model = plain("s4")
        block = replace(
            model.block,
            activation="gelu" if gelu else "none",
            mixing="glu" if glu else "linear",
            mixing_activation="none",
        )
        scaling = AdaptiveScalingConfig() if ads else None
        return replace(model, block=block, layer=_scaled(model.layer, scaling))

    return make


def _ads(scaling: AdaptiveScalingConfig) -> Callable[[Plain], ModelConfig]:
    def make(plain: Plain) -> ModelConfig:
        model = plain("s4")
        return replace(model, layer=_scaled(model.layer, scaling))

    return make


def _layer(made: LayerConfig) -> Callable[[Plain], ModelConfig]:
    return lambda plain: replace(plain("s4"), layer=made)


def _attention(plain: Plain) -> ModelConfig:
    """With sines: S4 sees where a token is, and the small relative bias is learned too slowly."""
    return replace(plain("s4"), layer=AttentionConfig(heads=4), positions="sines")


def _both_ways(plain: Plain) -> ModelConfig:
    model = plain("s4")
    return replace(model, layer=BidirectionalConfig(layer=model.layer))


def _scaled(layer: LayerConfig, scaling: AdaptiveScalingConfig | None) -> LayerConfig:
    assert isinstance(layer, S4Config | DSSConfig)
    return replace(layer, scaling=scaling)


def _size(model: SequenceClassifierConfig) -> tuple[int, int]:
    size = (model.d_model, model.num_layers)
    if size not in WIDE:
        known = ", ".join(str(each) for each in WIDE)
        raise ValueError(
            violation(
                "A control that is matched by its number of parameters",
                f"start from a (d_model, num_layers) among {known}",
                size,
                "Find the matching sizes first and add them to `models.controls`.",
            )
        )
    return size


_CONTROLS: Mapping[str, Callable[[Plain], ModelConfig]] = {
    "s4_wide": _wide("s4"),
    "dss_wide": _wide("dss"),
    "s4_affine": _body(),
    "s4_affine_ads": _body(ads=True),
    "s4_gelu": _body(gelu=True),
    "s4_glu": _body(glu=True),
    "s4_ads_shift": _ads(AdaptiveScalingConfig(form="shift")),
    "s4_ads_both": _ads(AdaptiveScalingConfig(form="scale_shift")),
    "s4_ads_frozen": _ads(AdaptiveScalingConfig(trainable=False)),
    "s4_ads_identity": _ads(AdaptiveScalingConfig(bias=True, initial="identity")),
    "s4_bidirectional": _both_ways,
    "attention": _attention,
    "ema": _layer(EMAConfig()),
    "transformer": lambda plain: _TRANSFORMERS[_size(plain("s4"))],
    "cnn": lambda plain: _CNNS[_size(plain("s4"))],
}
