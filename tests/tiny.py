"""A run small enough to be repeated many times: shards of two sensors, and configs of every objective."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.shards import write_shards
from dinov2.train import schema

FINE = ImageSpec("sentinel2_l2a", 10, ("B02", "B03", "B04", "B08"), "uint16", "reflectance", 1e-4, 0.0, 0)
COARSE = ImageSpec("sentinel2_l2a", 20, ("B05", "B11"), "uint16", "reflectance", 1e-4, 0.0, 0)
MAP = {"kind": "mask", "ignore": 255}
RADAR = ImageSpec("sentinel1_rtc", 10, ("VV", "VH"), "float32", "linear_power", nodata=-32768.0)


def samples(count: int):
    """Optical, radar, both, in turn: ranks and batches differ in what they hold."""
    rng = np.random.default_rng(0)
    for i in range(count):
        images = {}
        if i % 3 != 1:
            images[FINE.key] = (FINE, rng.integers(500, 4000, (4, 32, 32)).astype(np.uint16))
            images[COARSE.key] = (COARSE, rng.integers(500, 4000, (2, 16, 16)).astype(np.uint16))
        if i % 3 != 0:
            images[RADAR.key] = (RADAR, rng.gamma(2.0, 0.05 * (1 + i % 5), (2, 32, 32)).astype(np.float32))
        pixels, specs = {k: v[1] for k, v in images.items()}, {k: v[0] for k, v in images.items()}
        left = 3e5 + 320 * i
        footprint, labels = (left, 5e6, left + 320, 5e6 + 320), {"scene": i % 3, **maps(i)}
        yield Sample(f"s{i:03d}", pixels, specs, {}, footprint, "EPSG:32632", labels)


def maps(i: int) -> dict[str, np.ndarray]:
    """What geo-aware pretraining tells of sample ``i``: a land cover with holes, building density, clouds."""
    row, column = np.mgrid[:32, :32]
    cover = np.where((row + i) % 8 == 0, 0, 10 * (1 + (column + i) // 12)).astype(np.uint8)
    return {
        "landcover": cover,
        "buildings": ((row * (i % 5)) % 101).astype(np.uint8),
        "cloud_mask_s2l2a": ((row + column + i) // 20 % 4).astype(np.uint8),
    }


def shards(folder: Path, count: int = 36) -> Path:
    """A shard set in ``folder``."""
    labels = {"scene": {"kind": "class", "classes": ["optical", "radar", "both"]}, **dict.fromkeys(maps(0), MAP)}
    write_shards(samples(count), folder, samples_per_shard=12, labels=labels)
    return folder


OBJECTIVES = {
    **{
        name: {"size": 16, "bands": [2, 4], "hidden_dim": 24, "projection_dim": 12, "projector_layers": 2}
        for name in ("simclr", "moco", "byol", "barlow")
    },
    "mae": {"size": 16, "bands": [2, 4], "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "target_bands": 2},
    "geo_aware": {"size": 16, "bands": [2, 4], "decoder_dim": 8},
    "dino": {
        "global_size": 16,
        "local_size": 8,
        "local_crops": 2,
        "global_bands": [2, 4],
        "local_bands": [1, 2],
        "prototypes": 24,
        "hidden_dim": 16,
        "bottleneck_dim": 8,
    },
}


VARIANTS = {
    "queue": {"objective": {"queue": 8}},
    "accumulated": {"data": {"micro_batch": 2}},
    "exact": {"data": {"micro_batch": 1}, "train": {"exact_accumulation": True}},
}


def raw_config(name: str, shard_set: Path, **train) -> dict:
    """What a YAML file for a tiny run would hold; ``name`` is an objective with any variants, as in ``moco+queue``."""
    objective, *variants = name.split("+")
    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 2, "attn_dim": 24, "attn_heads": 2}
    raw = {
        "data": {"shards": [str(shard_set)], "batch_size": 6, "workers": 0},
        "model": {"arch": "vit_tiny", "patch_size": 4, "image_size": 16, "layer_scale": 0.1, **sizes},
        "objective": {"name": objective, **OBJECTIVES[objective]},
        "optim": {"base_lr": 1e-3, "scaling": "none", "warmup_steps": 2, "teacher_temp_warmup_steps": 3},
        "train": {"steps": 6, "log_every": 1, "save_every": 2, "health_every": 3, "collapse_std": 0.0, **train},
    }
    for variant in variants:
        raw = {part: values | VARIANTS[variant].get(part, {}) for part, values in raw.items()}
    return raw


def write_config(path: Path, raw: dict) -> Path:
    """``raw`` as a YAML file, complete at once: all ranks of a test write it."""
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(OmegaConf.to_yaml(OmegaConf.create(raw)))
    return partial.rename(path)


def config(folder: Path, objective: str, shard_set: Path, **train):
    """The resolved configuration of a tiny run."""
    return schema.load(write_config(folder / f"{objective}.yaml", raw_config(objective, shard_set, **train)))
