"""PhilEO, pretrained on Major-TOM with geographic targets (ESA-PhiLab/PhilEO-MajorTOM): a U-Net and a ViT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dinov2.models.phileo import PhilEOCNN
from dinov2.models.phileo_vit import PhilEOViT
from dinov2.models.state import State
from dinov2.models.zoo.release import Bands, Converted, Expects, Release, encoder_state, named

# What lies beside the encoder: the expanding half, its last block and the heads of the geographic targets
BESIDE = ("decoder.", "head.", "encoder.head_")


def converted(content: Any, names: Mapping[str, str]) -> Converted:
    """A training file's content, with or without ``module.`` -> (encoder, what lies beside it).

    ``names``: beginnings of published names -> of ours, the first that fits counts.
    """
    state, ours, beside = encoder_state(content, prefixes=("module.",)), {}, {}
    for name, tensor in state.items():
        if name.startswith(BESIDE):
            beside[name] = tensor
            continue
        prefix = next((p for p in names if name.startswith(p)), "")
        ours[names.get(prefix, "") + name.removeprefix(prefix)] = tensor
    return ours, beside


def convert_cnn(content: Any) -> Converted:
    """See :func:`converted`."""
    return converted(content, {"encoder.": ""})


def convert_vit(content: Any) -> Converted:
    """See :func:`converted`."""
    return converted(content, {"encoder.vit_encoder.": "", "stem.": "patch_embed.stem.", "encoder.": ""})


def marks_cnn(flat: State) -> bool:
    """Whether these tensors are the U-Net's."""
    return named(flat, "encoder.blocks_down.0.0.conv1.weight") is not None


def marks_vit(flat: State) -> bool:
    """Whether these tensors are the vision transformer's."""
    return named(flat, "encoder.vit_encoder.cls_token") is not None


S2_BANDS = (
    Bands("sentinel2_l2a", ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12"), "reflectance"),
)


def expects(**own: Any) -> Expects:
    """Reflectance as it is."""
    return Expects(bands=S2_BANDS, scaling="standardise", mean=(0.0,) * 10, std=(1.0,) * 10, size=128, **own)


CNN = expects(patch=16, layers=(0, 1, 2, 3, 4), dim=128, embedding="latent vector")
VIT = expects(patch=4, layers=(7, 15, 23, 31), dim=512, embedding="linear map of the class token")
RELEASES = {
    "phileo_cnn": Release(PhilEOCNN, convert_cnn, None, "PhilEO U-Net", marks_cnn, CNN),
    "phileo_vit": Release(PhilEOViT, convert_vit, None, "PhilEO ViT", marks_vit, VIT),
}
