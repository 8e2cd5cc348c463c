"""The encoder that a configuration's ``model`` section describes: an image's, PhilEO's, or one of pixel series."""

from __future__ import annotations

from typing import cast

from omegaconf import DictConfig
from torch import Tensor

from dinov2 import config
from dinov2.data.series import Series
from dinov2.env import expand
from dinov2.models import PHILEO, build_encoder, timeseries
from dinov2.models.phileo import PhilEOCNN
from dinov2.models.phileo_vit import PhilEOViT
from dinov2.models.state import load_strict
from dinov2.models.vit import VisionTransformer
from dinov2.models.weights import load_series_weights, load_weights


def encoder_of(
    model: DictConfig, options: Series
) -> tuple[VisionTransformer | timeseries.SeriesEncoder | PhilEOCNN, dict[str, Tensor]]:
    """The encoder, and what was released beside the weights it starts from; ``options``: the ``series`` section."""
    if model.arch == timeseries.NAME:
        return build_series_model(model, options), {}
    return (build_phileo_model(model), {}) if model.arch in PHILEO else build_model(model)


def build_model(model: DictConfig) -> tuple[VisionTransformer, dict[str, Tensor]]:
    """The encoder that the ``model`` section describes, and what was released beside the weights it starts from."""
    if model.image_size % model.patch_size:
        raise ValueError(f"model.patch_size {model.patch_size} does not divide model.image_size {model.image_size}")
    if model.fresh and not model.weights:
        raise ValueError("model.fresh says what does not come from model.weights: set both")
    source, beside = load_weights(expand(model.weights)) if model.weights else (None, {})
    positions = {k: v for k, v in source.config.items() if k.startswith("interpolate_")} if source else {}
    spectral = {"attn_dim": model.attn_dim, "attn_heads": model.attn_heads, "terrain": model.terrain}
    embedding = spectral if model.embed == "spectral" else {"in_chans": model.in_chans}
    encoder = build_encoder(
        model.arch,
        patch_size=model.patch_size,
        img_size=model.image_size,
        embed=model.embed,
        embed_dim=model.embed_dim,
        depth=model.depth,
        num_heads=model.num_heads,
        registers=model.registers,
        layer_scale=model.layer_scale,
        ffn=model.ffn,
        drop_path=model.drop_path,
        **{option: value for option, value in embedding.items() if value is not None},
        **positions,
    )
    if source:
        own, fresh = encoder.state_dict(), tuple(model.fresh)
        for prefix in fresh:
            if not any(key.startswith(prefix) for key in own):
                raise ValueError(f"model.fresh: no parameter of the encoder starts with {prefix!r}")
        kept = {key: value for key, value in own.items() if key.startswith(fresh)}
        loaded = {key: value for key, value in source.state_dict().items() if not key.startswith(fresh)}
        load_strict(encoder, loaded | kept, model.weights)
    return cast(VisionTransformer, encoder), beside


def build_phileo_model(model: DictConfig) -> PhilEOCNN | PhilEOViT:
    """PhilEO's U-Net or vision transformer that the ``model`` section describes."""
    if model.weights:
        raise ValueError(f"model.weights {model.weights}: {model.arch} starts from random weights")
    names = {"phileo_cnn": ("dims", "depths"), "phileo_vit": ("depth", "num_heads")}[model.arch]
    given = {name: config.plain(model[name]) for name in ("in_chans", "embed_dim", *names)}
    return cast(PhilEOCNN | PhilEOViT, build_encoder(model.arch, model.patch_size, model.image_size, **given))


def build_series_model(model: DictConfig, options: Series) -> timeseries.SeriesEncoder:
    """The series encoder that the ``model`` section describes, for the sensors and bands of the ``series`` section."""
    names = ("embed_dim", "width", "depth", "num_heads", "pooling", "fusion", "days")
    given = {"inputs": options.inputs} | {name: model[name] for name in names if model[name] is not None}
    if not model.weights:
        return cast(timeseries.SeriesEncoder, build_encoder(timeseries.NAME, **given))
    source = load_series_weights(expand(model.weights))
    differing = [
        f"{key} {value!r}, not {given[key]!r}" for key, value in source.config.items() if given.get(key, value) != value
    ]
    if differing:
        raise ValueError(f"model.weights {model.weights} has {'; '.join(differing)}: set model.* and series.* to it")
    return source.train()
