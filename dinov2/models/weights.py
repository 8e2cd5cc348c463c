"""Weights that a run starts from: an exported encoder, a run folder, or a released file."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor, nn

from dinov2.models import build_encoder
from dinov2.models.export import load_export
from dinov2.models.state import build_loaded
from dinov2.models.timeseries import SeriesEncoder
from dinov2.models.vit import VisionTransformer
from dinov2.models.zoo import load_released
from dinov2.models.zoo.tessera import load_series

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
        encoder, beside = exported(source), {}
    if not isinstance(encoder, VisionTransformer):
        raise ValueError(f"{source}: this encoder is evaluated only; pretraining starts from dinov2_* or panopticon_*")
    return encoder, beside


def load_series_weights(source: str) -> SeriesEncoder:
    """The encoder of pixel series that ``source`` (as for :func:`load_weights`; ``btfm_v1@FILE``) names.

    ValueError for encoders of images, and for one that its own ``config`` does not describe: it could not be exported.
    """
    name, released, file = source.partition("@")
    encoder = load_series(name, file) if released and "/" not in name else exported(source)
    if not isinstance(encoder, SeriesEncoder):
        raise ValueError(f"{source} is an encoder of images; model.arch timeseries starts from one of pixel series")
    build_loaded(partial(build_encoder, **encoder.config), encoder.state_dict(), source)
    return encoder


def exported(source: str) -> nn.Module:
    """The encoder of an export or a run folder."""
    return load_export(Path(source) / FINAL if Path(source).is_dir() else Path(source))[0]
