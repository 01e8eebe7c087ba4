"""The paper's models, those of its released code, and small modern ones, as settings.

qi2024exploring describes its models in the text (version 1, table 3); its released code differs:

| | text (`paper_v1`) | code (`released_code`) |
|---|---|---|
| S4, DSS | SSM, GELU, Linear, GELU | SSM, Linear: affine between two LayerNorms |
| Mega | LayerNorm before the first block | none |
| Mamba | zero-order hold of B (equation 6) | Euler |
| adaptive scaling | act(W y) * y | act(W y + b) * y + act(V y + c) |
| order of tokens | raster | a view that scrambles colour images |

Alike in both: sizes, post-norm residuals, S5 as the bare layer, mean pooling without a final norm.
S4D is not in the paper; it stands in S4's place, with one spectrum for all channels as S4 there.
LRU and Mamba-2 are in neither: they are `modern` models and, with S4D, the victims of poisoning.
"""

from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from robustssm.core.errors import unknown
from robustssm.layers.adaptive_scaling import Activation, AdaptiveScalingConfig
from robustssm.layers.base import LayerConfig
from robustssm.layers.dss import DSSConfig
from robustssm.layers.lru import LRUConfig
from robustssm.layers.mamba import MambaConfig
from robustssm.layers.mamba2 import Mamba2Config
from robustssm.layers.mega import MegaConfig
from robustssm.layers.s4 import S4Config
from robustssm.layers.s4d import S4DConfig
from robustssm.layers.s5 import S5Config
from robustssm.models.block import BlockConfig
from robustssm.models.classifier import SequenceClassifierConfig
from robustssm.models.tokens import LegacyRaster, Raster, Tokenizer

Structure = Literal["s4", "dss", "s5", "mega", "mamba", "s4d"]
Victim = Literal["s4d", "lru", "mamba2"]
Modern = Literal[Structure, Victim]
PaperDataset = Literal["mnist", "cifar10", "tiny_imagenet"]
ReleasedDataset = Literal["mnist", "cifar10", "tiny_imagenet"]

_BARE = BlockConfig(norm="none", residual=False, activation="none", mixing="none")
"""For Mega, whose layer has residuals, norms and a feed-forward map of its own."""


@dataclass(frozen=True)
class _Sizes:
    num_layers: int
    d_state: int
    """Of S4 and DSS, per channel."""
    mamba_d_state: int
    mega_hidden: int


_SIZES = {
    "mnist": _Sizes(num_layers=2, d_state=32, mamba_d_state=32, mega_hidden=32),
    "cifar10": _Sizes(num_layers=4, d_state=64, mamba_d_state=16, mega_hidden=256),
    "tiny_imagenet": _Sizes(num_layers=4, d_state=64, mamba_d_state=16, mega_hidden=256),
}


def structures() -> tuple[Structure, ...]:
    """The five structures of the paper, in its order, then those that it does not have."""
    return get_args(Structure)


def paper_v1(
    structure: Structure, dataset: PaperDataset, ads: Activation | None = None
) -> SequenceClassifierConfig:
    """The model as the text of qi2024exploring (version 1, table 3) describes it.

    Args:
        structure: One of `structures()`.
        dataset: Which sizes: 2 layers on "mnist", 4 on "cifar10" and "tiny_imagenet".
        ads: Activation of adaptive scaling after every SSM, or None for none. The paper scales S4
            and DSS only.

    Raises:
        ValueError: If there is no such structure or data set.
    """
    _known("structure", structure, Structure)
    sizes = _SIZES[_known("data set of the paper", dataset, PaperDataset)]
    scaling = None if ads is None else AdaptiveScalingConfig(activation=ads)
    convolutional = BlockConfig(norm="post", activation="gelu", mixing_activation="gelu")
    return SequenceClassifierConfig(
        layer=_published_layer(structure, sizes, scaling, mamba_discretization="zoh"),
        num_layers=sizes.num_layers,
        block=_published_block(structure, convolutional),
        input_norm=True,
        final_norm=False,
    )


def released_code(
    structure: Structure,
    dataset: ReleasedDataset,
    ads: Activation | None = None,
    legacy_token_order: bool = True,
) -> SequenceClassifierConfig:
    """The model as the released code of qi2024exploring builds it.

    Args:
        structure: One of `structures()`.
        dataset: Which sizes: 2 layers on "mnist", 4 on "cifar10" and "tiny_imagenet".
        ads: Activation of adaptive scaling (scale and shift) after every SSM, or None for none. The
            released code scales S4 and DSS only.
        legacy_token_order: Whether colour images are read in the scrambled order of that code
            (`LegacyRaster`), or pixel by pixel. With one channel both are the same.

    Raises:
        ValueError: If there is no such structure or data set.
    """
    _known("structure", structure, Structure)
    sizes = _SIZES[_known("data set of the released code", dataset, ReleasedDataset)]
    scaling = None
    if ads is not None:
        scaling = AdaptiveScalingConfig(activation=ads, form="scale_shift", bias=True)
    return SequenceClassifierConfig(
        layer=_published_layer(structure, sizes, scaling, mamba_discretization="euler"),
        num_layers=sizes.num_layers,
        tokens=LegacyRaster() if legacy_token_order else Raster(),
        block=_published_block(structure, BlockConfig(norm="post", activation="none")),
        input_norm=structure != "mega",
        final_norm=False,
    )


def modern(
    structure: Modern,
    *,
    d_model: int = 64,
    num_layers: int = 2,
    d_state: int | None = None,
    ads: Activation | None = None,
) -> SequenceClassifierConfig:
    """Pre-norm residual blocks h + Linear(gelu(SSM(norm(h)))), in any size; for CPUs and new work.

    The mixing is linear and not gated, so that adaptive scaling is the only gate around the SSM.
    Mamba, Mamba-2 and Mega, which have gates and maps of their own, are left as they are: Mega bare
    with the paper's ratio of widths, the others in a pre-norm residual. S5's eigenvalues are kept
    stable.

    Args:
        structure: One of `structures()`, "lru" or "mamba2".
        d_model: Channels between layers, at least 1.
        num_layers: Number of blocks, at least 1.
        d_state: States per channel (S4, S4D, DSS, Mamba, Mamba-2, Mega's moving average; 16 if
            None), or of the one system that all channels share (S5, LRU; `d_model`, for S5 made
            even, if None).
        ads: Activation of adaptive scaling after every SSM, or None for none.

    Raises:
        ValueError: If there is no such structure, or a size is out of range.
    """
    _known("structure", structure, Modern)
    scaling = None if ads is None else AdaptiveScalingConfig(activation=ads)
    return SequenceClassifierConfig(
        layer=_modern_layer(structure, d_model, d_state, scaling),
        d_model=d_model,
        num_layers=num_layers,
        block=_MODERN_BLOCKS.get(structure, BlockConfig(norm="pre", activation="gelu")),
        final_norm=structure != "mega",
    )


_MODERN_BLOCKS = {
    "mamba": BlockConfig(norm="pre", activation="none", mixing="none"),
    "mamba2": BlockConfig(norm="pre", activation="none", mixing="none"),
    "mega": _BARE,
}


def victim(
    structure: Victim,
    *,
    tokens: Tokenizer | None = None,
    d_model: int = 128,
    num_layers: int = 4,
    d_state: int | None = None,
    dropout: float = 0.1,
) -> SequenceClassifierConfig:
    """A model that slutzky2024implicit poisons: post-norm residual blocks with dropout.

    S4D has their 201,482 parameters on CIFAR-10, not their dropout before the gated map. LRU has a
    bias in that map, which theirs lacks: 267,018 parameters for 265,994. Mamba-2 has dropout before
    the norm and its last norm before pooling, theirs after both; and theirs (554,234) reads 8x8
    features of a convolutional stem (133,184), to which `Patches(side=4)` comes nearest.

    Args:
        structure: "s4d", "lru" or "mamba2".
        tokens: How inputs are read; None: `Raster()`. Theirs, but for Mamba-2's: `LegacyRaster()`.
        d_model: Channels between layers, at least 1.
        num_layers: Number of blocks, at least 1.
        d_state: States per channel; None: 64 (S4D, LRU) or 16 (Mamba-2), as published.
        dropout: Probability of zeroing an entry of what a block adds.

    Raises:
        ValueError: If there is no such victim, or a size is out of range.
    """
    _known("victim", structure, Victim)
    mamba2 = structure == "mamba2"
    states = (16 if mamba2 else 64) if d_state is None else d_state
    match structure:
        case "s4d":
            layer = S4DConfig(d_state=states)
        case "lru":
            layer = LRUConfig(d_state=states, form="channelwise")
        case "mamba2":
            layer = Mamba2Config(d_state=states, initial="normal")
    return SequenceClassifierConfig(
        layer=layer,
        d_model=d_model,
        num_layers=num_layers,
        tokens=tokens or Raster(),
        block=BlockConfig(
            norm="post",
            activation="gelu" if structure == "s4d" else "none",
            mixing="none" if mamba2 else "glu",
            dropout=dropout,
        ),
        final_norm=mamba2,
    )


def _published_block(structure: Structure, convolutional: BlockConfig) -> BlockConfig:
    """Table 3 and the code agree that S5 and Mamba are followed by the norm alone."""
    if structure == "mega":
        return _BARE
    if structure in ("s5", "mamba"):
        return BlockConfig(norm="post", activation="none", mixing="none")
    return convolutional


def _published_layer(
    structure: Structure,
    sizes: _Sizes,
    scaling: AdaptiveScalingConfig | None,
    *,
    mamba_discretization: Literal["zoh", "euler"],
) -> LayerConfig:
    match structure:
        case "s4":
            return S4Config(
                d_state=sizes.d_state, ssm_copies=1, trainable_real=False, scaling=scaling
            )
        case "s4d":
            return S4DConfig(d_state=sizes.d_state, ssm_copies=1, scaling=scaling)
        case "dss":
            return DSSConfig(d_state=sizes.d_state, scaling=scaling)
        case "s5":
            return S5Config(
                d_state=128, conjugate_symmetric=False, initial="s5_pytorch", scaling=scaling
            )
        case "mega":
            hidden = sizes.mega_hidden
            return MegaConfig(
                d_state=16, d_attention=64, d_hidden=hidden, d_ffn=hidden, scaling=scaling
            )
        case "mamba":
            return MambaConfig(
                d_state=sizes.mamba_d_state,
                expand=2,
                discretization=mamba_discretization,
                scaling=scaling,
            )


def _modern_layer(
    structure: Modern, d_model: int, d_state: int | None, scaling: AdaptiveScalingConfig | None
) -> LayerConfig:
    states = 16 if d_state is None else d_state
    match structure:
        case "s4":
            return S4Config(d_state=states, scaling=scaling)
        case "s4d":
            return S4DConfig(d_state=states, scaling=scaling)
        case "dss":
            return DSSConfig(d_state=states, scaling=scaling)
        case "s5":
            states = d_model + d_model % 2 if d_state is None else d_state
            return S5Config(d_state=states, real_part="negative", scaling=scaling)
        case "mega":
            return MegaConfig(d_state=states, scaling=scaling)
        case "mamba":
            return MambaConfig(d_state=states, expand=2, scaling=scaling)
        case "lru":
            return LRUConfig(d_state=d_model if d_state is None else d_state, scaling=scaling)
        case "mamba2":
            return Mamba2Config(d_state=states, expand=2, scaling=scaling)


Name = TypeVar("Name", bound=str)


def _known(kind: str, name: Name, allowed: object) -> Name:
    names = get_args(allowed)
    if name not in names:
        raise ValueError(unknown(kind, name, names))
    return name
