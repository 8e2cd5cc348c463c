"""Decoders: from the feature maps of any encoder to logits; and necks, from the maps of several images to those of one.

``decoder(neck(features, dates, padding), size)`` is a whole head for a time series or a pair of images; without either
it is ``decoder(features, size)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from dinov2.models.dense import Decoder
from dinov2.models.upernet import UPerNet
from dinov2.names import check_options, suggest
from eval.decoders.change import ConcatNeck, DifferenceNeck
from eval.decoders.conv_transpose import ConvTranspose
from eval.decoders.fcn import FCN
from eval.decoders.linear import LinearClassifier, PixelMLP
from eval.decoders.muster import Muster
from eval.decoders.segformer import SegFormer
from eval.decoders.temporal import LTAE, LinearNeck, LTAENeck, StackNeck
from eval.decoders.unet import UNet

DECODERS: dict[str, Callable[..., Decoder]] = {
    "linear": PixelMLP,
    "mlp": partial(PixelMLP, hidden=(1024,)),
    "fcn": FCN,
    "conv_transpose": ConvTranspose,
    "segformer": SegFormer,
    "upernet": UPerNet,
    "muster": Muster,
    "unet": UNet,
    "linear_classifier": LinearClassifier,
}
PYRAMIDAL = ("segformer", "upernet", "muster", "unet")  # those that work on a pyramid and can be given one
PER_IMAGE = ("linear_classifier",)  # those whose logits are per image; all others make maps
OF_FRAMES = ("linear", "stack")  # necks made for a number of dates
NECKS: dict[str, Callable[..., nn.Module]] = {
    "ltae": LTAENeck,
    "linear": LinearNeck,
    "stack": StackNeck,
    "difference": DifferenceNeck,
    "concat": ConcatNeck,
}


def build_decoder(name: str, in_channels: Sequence[int], outputs: int, **options: Any) -> Decoder:
    """Decoder ``name`` for feature maps of ``in_channels`` widths; ``outputs``: classes, or 1 for a value.

    ``options`` are the decoder's own arguments. Raises ValueError for an unknown name or option, or widths that the
    decoder cannot take.
    """
    return build(DECODERS, "decoder", name, in_channels, outputs, **options)


def build_neck(name: str, in_channels: Sequence[int], **options: Any) -> nn.Module:
    """Neck ``name``: ``[B, T, D_i, h, w]`` per level -> ``[B, D, h, w]`` per level, the widths in ``out_channels``."""
    return build(NECKS, "neck", name, in_channels, **options)


def build(table: Mapping[str, Callable[..., Any]], what: str, name: str, *arguments: Any, **options: Any) -> Any:
    """``table[name](*arguments, **options)`` with a sentence for what the table or the class does not know."""
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(table)}{suggest(name, list(table))}")
    check_options(f"{what} {name!r}", options, LTAE if name == "ltae" else table[name])  # its neck passes them on
    try:
        return table[name](*arguments, **options)
    except TypeError as error:  # an option that the class needs
        raise ValueError(f"{what} {name!r}: {error}") from error
