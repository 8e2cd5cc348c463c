"""Pixel series small enough to be repeated many times: shards of chips with optics, radar or both, and a config."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.shards import write_shards
from dinov2.train import schema
from tests.tiny import write_config

BANDS = ("B02", "B04", "B08")
OPTICAL = ImageSpec("sentinel2_l2a", 10, BANDS, "uint16", "reflectance", 1e-4, 0.0, 0)
ORBITS = ("VV_ascending", "VH_ascending", "VV_descending", "VH_descending")
RADAR = ImageSpec("sentinel1_rtc", 10, ORBITS, "int16", "db", 0.01, 0.0, -32768)


def chip(number: int, rng: np.random.Generator, kind: int) -> Sample:
    """Four pixels over a year; ``kind`` 0: both sensors, 1: optics only, 2: radar only."""
    images, times, specs = {}, {}, {}
    if kind != 2:
        days = np.sort(rng.choice(365, 9, replace=False))
        season = 1500 + 900 * np.sin(2 * np.pi * (days + 40 * (number % 3)) / 365)  # [T]
        image = season[:, None, None, None] * (1 + np.arange(3)[:, None, None]) + rng.normal(0, 60, (9, 3, 2, 2))
        image *= rng.random((9, 1, 2, 2)) > 0.2  # clouds
        images[OPTICAL.key], specs[OPTICAL.key] = image.clip(0).astype(np.uint16), OPTICAL
        times[OPTICAL.key] = [str(np.datetime64("2020-01-01") + d) for d in days]
    if kind != 1:
        days = np.sort(rng.choice(365, 7, replace=False))
        image = (-1200 + 300 * rng.normal(0, 1, (7, 4, 2, 2))).astype(np.int16)
        image[:, 2:] = np.where(np.arange(7)[:, None, None, None] % 2, image[:, 2:], -32768)
        images[RADAR.key], specs[RADAR.key] = image, RADAR
        times[RADAR.key] = [str(np.datetime64("2020-01-01") + d) for d in days]
    return Sample(f"p{number:03d}", images, specs, times, labels={"crop": number % 3})


def samples(count: int) -> Iterator[Sample]:
    """Chips of all three kinds in turn."""
    rng = np.random.default_rng(0)
    return (chip(i, rng, i % 3) for i in range(count))


def shards(folder: Path, count: int = 36) -> Path:
    """A shard set in ``folder``."""
    labels = {"crop": {"kind": "class", "classes": ["early", "mid", "late"]}}
    write_shards(samples(count), folder, samples_per_shard=12, labels=labels)
    return folder


def raw_config(objective: str, shard_set: Path, **train: Any) -> dict[str, Any]:
    """What a YAML file for a tiny run would hold."""
    return {
        "data": {"shards": [str(shard_set)], "batch_size": 6, "workers": 0},
        "series": {"optical_bands": list(BANDS), "dates": 6},
        "model": {"arch": "timeseries", "embed_dim": 8, "width": 16, "depth": 1, "num_heads": 2},
        "objective": {"name": objective, "hidden_dim": 24, "projection_dim": 12, "projector_layers": 2},
        "optim": {"base_lr": 1e-3, "scaling": "none", "warmup_steps": 2},
        "train": {"steps": 6, "log_every": 1, "save_every": 2, "health_every": 3, "collapse_std": 0.0, **train},
    }


def config(folder: Path, objective: str, shard_set: Path, **train: Any):
    """The resolved configuration of a tiny run."""
    return schema.load(write_config(folder / f"{objective}.yaml", raw_config(objective, shard_set, **train)))
