"""Pixel series small enough to be repeated many times: shards of chips with optics, radar or both, and a config."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from affine import Affine

from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.series import Series
from dinov2.data.series_tiles import Layer, Tile, name_of, write_tile
from dinov2.data.shards import write_shards
from dinov2.data.stats import Normalisation
from dinov2.models.export import save_export
from dinov2.models.timeseries import SeriesEncoder
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


# ---- tiles of a region

CRS, LEFT, TOP = "EPSG:32631", 600000.0, 5600000.0
OPTICAL_DATES = tuple(str(np.datetime64("2021-11-20") + 9 * i) for i in range(12))  # over the end of a year
RADAR_DATES = {"ascending": tuple(OPTICAL_DATES[::3]), "descending": tuple(OPTICAL_DATES[1::4])}


def cube(side: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays of a square region: clouds, a corner without optics, and one pixel that was never observed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    season = np.sin(np.arange(12) / 2)[:, None, None, None] * np.stack([x, y, x * y], -1)
    arrays = {"bands": (1500 + 900 * season + rng.normal(0, 80, (12, side, side, 3))).clip(1).astype(np.uint16)}
    arrays["masks"] = (rng.random((12, side, side)) > 0.35).astype(np.uint8)
    arrays["masks"][:, : side // 5, : side // 5] = 0
    for orbit, dates in RADAR_DATES.items():
        sar = (-1200 + 200 * rng.normal(0, 1, (len(dates), side, side, 2))).astype(np.int16)
        sar[rng.random(sar.shape[:3]) < 0.2] = -32768
        sar[:, 0, 0] = -32768
        arrays[f"sar_{orbit}"] = sar
    return arrays


def write_region(folder: Path, arrays: dict[str, np.ndarray], tile: int) -> Path:
    """``arrays`` cut into tile folders of ``tile`` pixels."""
    side = arrays["bands"].shape[1]
    layers = {"bands": Layer(OPTICAL, OPTICAL_DATES)}
    for orbit, dates in RADAR_DATES.items():
        spec = ImageSpec("sentinel1_rtc", 10, (f"VV_{orbit}", f"VH_{orbit}"), "int16", "db", 0.01, 0.0, -32768)
        layers[f"sar_{orbit}"] = Layer(spec, dates)
    for top in range(0, side, tile):
        for left in range(0, side, tile):
            right, bottom = min(left + tile, side), min(top + tile, side)
            place = (10.0, 0.0, LEFT + 10 * left, 0.0, -10.0, TOP - 10 * top)
            corners = (left, top, right, bottom)
            one = Tile(folder / name_of(corners), corners, CRS, place, layers, {"source": "made"})
            write_tile(one, {name: array[:, top:bottom, left:right] for name, array in arrays.items()})
            profile = dict(driver="GTiff", count=1, dtype="uint8", crs=CRS, transform=Affine(*place))
            with rasterio.open(
                one.folder / "roi.tiff", "w", height=bottom - top, width=right - left, **profile
            ) as file:
                file.write(np.ones((1, bottom - top, right - left), np.uint8))
    return folder


def encoder(folder: Path, **options: Any) -> Path:
    """An exported encoder with random weights, in a run folder."""
    torch.manual_seed(0)
    inputs = Series(optical_bands=list(BANDS)).inputs
    sizes = {"inputs": inputs, "embed_dim": 6, "width": 16, "depth": 1, "num_heads": 2, **options}
    table = {"sentinel2_l2a": {band: (0.15, 0.05) for band in BANDS}}
    table["sentinel1_rtc"] = {band: (-12.0, 2.0) for band in ("VV", "VH", *ORBITS)}
    norm = Normalisation(table, {"sentinel2_l2a": "reflectance", "sentinel1_rtc": "db"})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model_final.safetensors"
    save_export(path, SeriesEncoder(**sizes), normalisation=norm.to_dict(), info={})
    return path
