"""Source ``mmearth``: MMEarth v001, one HDF5 file with three JSON files beside it, all twelve modalities.

    <name>/<name>.h5, <name>_splits.json, <name>_tile_info.json        --src is the folder <name>

Images: Sentinel-2 (L1C or L2A per tile, as the tile says; harmonised, so without offset), Sentinel-1 of both passes,
elevation and slope. Maps, vectors and classes are labels: land cover, canopy height, Sentinel-2's scene and cloud maps,
weather (ERA5), position and month as sines and cosines, biome and ecoregion. Nodata is what the file stores, also where
a type cannot hold what its makers meant: 127 for 255 in int8, -32768 for minus infinity in int16.

Source of layout and codes: vishalned/MMEarth-data (README, config_data.yaml), arXiv 2405.02771.

Example: python data_prep/main.py mmearth --src data_100k_v001 --out data/mmearth --keep-bands sentinel2_l2a dem
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import h5py
import numpy as np
from rasterio.warp import transform

from data_prep import refine
from data_prep.common import Plan, Refused, Skip, slug
from data_prep.footprints import lonlat
from data_prep.mmearth_modalities import DYNAMIC_WORLD, GSD, IMAGES, LABELS, MAPS, WORLDCOVER_CODES, coded
from data_prep.rasters import Bounds
from data_prep.store import Store
from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.shards.members import MAX_BYTES

LICENCE = "CC-BY-4.0"
CANOPY_NODATA = (127, 255)  # 255 as int8 is 127


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source."""
    refine.add_arguments(parser)
    parser.add_argument("--split", help="train, val or test of the splits file; all of them by default")


@lru_cache(maxsize=1)  # of this process: an HDF5 handle must not cross a fork
def opened(store: Store, name: str) -> h5py.File:
    """The open file."""
    return h5py.File(store.open(name, cache="readahead"), "r")


@dataclass(frozen=True)
class Tile:
    """A row of the file and what the JSON files say about it."""

    row: int
    name: str
    level: str  # l1c or l2a
    date: str | None
    split: str | None
    footprint: Bounds
    crs: str


@dataclass(frozen=True)
class Tiles:
    """Reads tiles."""

    store: Store
    file: str
    sensors: frozenset[str] | None  # wanted ones
    radar: tuple[int, ...]  # channels of sentinel1 that any tile has

    def __call__(self, tile: Tile) -> Sample | Skip:
        """One tile, all modalities that it has."""
        file = opened(self.store, self.file)
        if file["metadata"][tile.row][0].decode() != tile.name:
            raise Refused(f"{self.file}: row {tile.row} is not the tile {tile.name} that its JSON files say")
        images, specs = {}, {}
        for key in (tile.level, "sentinel1", "aster", "slope"):
            spec, channels = IMAGES[key]
            if key == "sentinel1":
                spec, channels = replace(spec, bands=tuple(spec.bands[i] for i in self.radar)), self.radar
            if channels and (self.sensors is None or spec.sensor in self.sensors):
                images[spec.key], specs[spec.key] = self._image(key, tile.row, spec, channels), spec
        if not images:
            return Skip("without a band of --keep-bands")
        times = {key: [tile.date] if tile.date and key.startswith("sentinel2") else [] for key in images}
        labels = {n: v for n in LABELS if (v := self._label(n, tile.row)) is not None}
        meta = {"tile": tile.name, "split": tile.split}
        return Sample(slug(tile.name), images, specs, times, tile.footprint, tile.crs, labels, meta)

    def _read(self, key: str, row: int) -> np.ndarray:
        """One row of a data set of the file."""
        file = opened(self.store, self.file)
        if key not in file:
            raise ValueError(f"{self.store.path(self.file)} has no data set {key!r}: not an MMEarth v001 file")
        data = file[key]
        if data.dtype.itemsize * math.prod(data.shape[1:]) > MAX_BYTES:
            raise Refused(
                f"{self.file}: {key} declares tiles of {data.shape[1:]} {data.dtype} (limit {MAX_BYTES} bytes)"
            )
        try:
            return data[row]
        except OSError as error:
            raise Refused(f"{self.file}: {key} of row {row} is damaged: {error}") from error

    def _image(self, key: str, row: int, spec: ImageSpec, channels: tuple[int, ...]) -> np.ndarray:
        """``[C, H, W]``; ValueError where the file holds something else."""
        name = {"l1c": "sentinel2", "l2a": "sentinel2", "slope": "aster"}.get(key, key)
        stored = self._read(name, row)
        count = {"sentinel2": 13, "sentinel1": 8, "aster": 2}[name]
        if stored.shape[0] != count or stored.dtype != spec.dtype:
            raise ValueError(
                f"{self.store.path(self.file)}: {name} has tiles of {stored.shape} {stored.dtype}, not {count} "
                f"channels of {spec.dtype}"
            )
        stored = stored[list(channels)]
        if key == "sentinel1":
            stored = np.where(np.isneginf(stored), np.float32(np.nan), stored)
        return stored

    def _label(self, name: str, row: int) -> Any:
        """A label as it is stored in samples; None where the tile has none."""
        if name in ("canopy_height", "canopy_height_std"):
            height = self._read("canopy_height_eth", row)[int(name.endswith("std"))]
            return np.where(np.isfinite(height) & ~np.isin(height, CANOPY_NODATA), height, np.nan).astype(np.float32)
        stored = self._read(name, row)
        if name == "esa_worldcover":
            return coded(stored[0], WORLDCOVER_CODES)
        if name == "dynamic_world":
            return coded(stored[0], range(1, 1 + len(DYNAMIC_WORLD)))
        if name in MAPS:
            ignore = LABELS[name]["ignore"]
            return None if (stored == ignore).all() else stored[0]
        if LABELS[name]["kind"] == "class":
            return int(stored.argmax()) if stored.any() else -1
        return np.where(np.isfinite(stored), stored, np.nan).astype(np.float32)


def tile_of(row: int, name: str, about: Mapping[str, Any], split: str | None, pixels: int) -> Tile:
    """A tile from its entry of ``tile_info.json``, which tells the centre: the footprint is right to a pixel or so."""
    level = about["S2_type"].lower()
    if level not in IMAGES:
        raise ValueError(f"tile {name} is of Sentinel-2 level {level!r}; l1c and l2a are known")
    (x,), (y,) = transform("EPSG:4326", about["CRS"], [float(about["lon"])], [float(about["lat"])])
    half = pixels * GSD / 2
    return Tile(row, name, level, about["S2_DATE"], split, (x - half, y - half, x + half, y + half), about["CRS"])


def radar_channels(tiles: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Channels of ``sentinel1`` that at least one of these tiles has, by its entry of ``tile_info.json``."""
    bands = IMAGES["sentinel1"][0].bands
    passes = {"ascending": "sentinel1_asc", "descending": "sentinel1_desc"}
    has = {f"{band}_{orbit}" for tile in tiles for orbit, key in passes.items() for band in tile["BANDS"][key] or ()}
    return tuple(i for i, band in enumerate(bands) if band in has)


def plan(args: argparse.Namespace) -> Plan:
    """Every tile that passes the filters, in the order of the file."""
    store, filters = Store.at(args.src), refine.Filters.of(args)
    stem = store.root.rsplit("/", 1)[-1]
    names = [f"{stem}.h5", f"{stem}_splits.json", f"{stem}_tile_info.json"]
    if lacking := [name for name in names if not store.exists(name)]:
        raise ValueError(f"{store.path(lacking[0])} is missing: --src is the folder of {', '.join(names)}")
    splits, about = (json.loads(store.read(name)) for name in names[1:])
    if args.split and args.split not in splits:
        raise ValueError(f"--split {args.split}: {names[1]} has {', '.join(splits)}")
    split_of = {row: split for split, rows in splits.items() for row in rows}
    file = opened(store, names[0])
    pixels = file["sentinel2"].shape[-1]
    items = []
    for row, record in enumerate(file["metadata"][:]):
        name = record[0].decode()
        if name not in about:
            raise ValueError(f"{store.path(names[2])} does not tell of the tile {name} of row {row}")
        tile = tile_of(row, name, about[name], split_of.get(row), pixels)
        if args.split and tile.split != args.split:
            filters.refused["of another split"] += 1
        elif filters.passes(box=lonlat(tile.crs, tile.footprint), date=tile.date):
            items.append(tile)
    items, kept = items[: filters.limit], refine.kept_bands(args)
    provenance = {"source": "mmearth", "files": store.fingerprint(names), "split": args.split, **filters.provenance()}
    radar = radar_channels([about[tile.name] for tile in items])
    make = Tiles(store, names[0], frozenset(kept) if kept else None, radar)
    return Plan(items, make, LABELS, provenance, LICENCE, filters.refused)
