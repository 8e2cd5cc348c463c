"""Weights that a run starts from: an exported encoder, a run folder, or a released file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from dinov2.models.export import load_export
from dinov2.models.vit import VisionTransformer
from dinov2.models.zoo import load_released

FINAL = "model_final.safetensors"


def load_weights(source: str) -> tuple[VisionTransformer, dict[str, Tensor]]:
    """The encoder that ``source`` names, in evaluation mode, and what was released beside it (``mask_token [1, D]``).

    ``source``: an exported encoder, a run folder (its ``model_final.safetensors``), or released weights ``NAME@FILE``
    with a name of ``dinov2.models.zoo``. What cannot be read, and models of other kinds, raise ValueError.
    """
    name, released, file = source.partition("@")
    if released and "/" not in name:
        encoder, beside = load_released(name, file)
    else:
        path = Path(source) / FINAL if Path(source).is_dir() else Path(source)
        (encoder, _), beside = load_export(path), {}
    if not isinstance(encoder, VisionTransformer):
        raise ValueError(f"{source}: this encoder is evaluated only; pretraining starts from dinov2_* or panopticon_*")
    return encoder, beside
