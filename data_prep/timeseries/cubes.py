"""Scenes of a region -> tile folders: one date after the other, each kept as soon as it was read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox

from data_prep.timeseries.catalogue import Catalogue, Scene, read_optical, read_radar
from data_prep.timeseries.region import Region
from data_prep.timeseries.units import optical_spec, radar_spec
from dinov2.cli import USER_ERRORS, one_line
from dinov2.data.sample import ImageSpec
from dinov2.data.series_tiles import INFO, MASKS, OPTICAL, Corners, Dates, Layer, Tile, name_of, write_tile
from dinov2.files import atomic, write_atomic

LEAST = {OPTICAL: 0.05, "sar_ascending": 0.10, "sar_descending": 0.10}  # share of a tile that a date must cover
RECIPE = "recipe.json"


@dataclass(frozen=True)
class Recipe:
    """How scenes become numbers; part of a tile's provenance."""

    bands: tuple[str, ...]
    resolution: float
    offset: str  # auto | remove | none
    cloudy: tuple[int, ...]
    convention: str  # of radar


def claim(out: Path, provenance: Mapping[str, Any]) -> None:
    """Make the folder of these tiles; ValueError where it holds something of tiles made otherwise."""
    path, mine = out / RECIPE, json.loads(json.dumps(provenance))
    if path.is_file() and (other := json.loads(path.read_text())) != mine and any(out.glob("*/*")):
        differing = ", ".join(k for k in sorted(mine.keys() | other.keys()) if mine.get(k) != other.get(k))
        raise ValueError(f"{out} holds tiles made with another {differing}: choose another --out or remove it")
    write_atomic(path, json.dumps(mine))


class Builder:
    """Writes tiles of a region to ``out``; ``provenance`` says where the scenes come from."""

    def __init__(
        self,
        out: Path,
        region: Region,
        catalogue: Catalogue,
        recipe: Recipe,
        provenance: Mapping[str, Any],
        workers: int,
    ) -> None:
        self.out, self.region, self.catalogue, self.recipe = out, region, catalogue, recipe
        self.provenance, self.workers = {**provenance, **vars(recipe), **region.identity()}, workers

    def tile(self, corners: Corners, scenes: Sequence[Scene]) -> str | None:
        """Make one tile; None, or why it failed. What was read is kept, a complete tile is not touched."""
        folder = self.out / name_of(corners)
        if not (folder / INFO).is_file():
            try:
                self._write(folder, corners, scenes)
            except USER_ERRORS as error:
                return one_line(error)
        if (folder / "dates").is_dir():
            shutil.rmtree(folder / "dates")
        return None

    def _write(self, folder: Path, corners: Corners, scenes: Sequence[Scene]) -> None:
        left, top, right, bottom = corners
        transform = self.region.place(corners)
        grid = GeoBox((bottom - top, right - left), transform, self.region.crs)
        footprint = self.region.footprint(corners)
        own = [scene for scene in (s.over(footprint) for s in scenes) if scene.items]
        with ThreadPoolExecutor(self.workers) as pool:
            kept = list(pool.map(lambda scene: self._date(folder, scene, grid), own))
        layers, arrays = {}, {}
        for name in LEAST:
            found = [(s.date, path) for s, path in zip(own, kept, strict=True) if path and s.layer == name]
            if found:
                dates, paths = zip(*found, strict=True)
                layers[name] = Layer(self._spec(name), dates)
                arrays[name] = Dates(len(paths), partial(kept_date, paths, "values"))
                if name == OPTICAL:
                    arrays[MASKS] = Dates(len(paths), partial(kept_date, paths, "clear"))
        if OPTICAL not in layers or not any(plane.any() for plane in arrays[MASKS]):
            raise ValueError(f"{folder.name}: no clear date among {sum(s.layer == OPTICAL for s in own)} optical ones")
        write_roi(folder / "roi.tiff", self.region, corners)
        items = sorted(i.id for s in own for i in s.items)
        place = tuple(transform)[:6]
        write_tile(Tile(folder, corners, self.region.crs, place, layers, {**self.provenance, "items": items}), arrays)

    def _spec(self, name: str) -> ImageSpec:
        if name == OPTICAL:
            return optical_spec(self.recipe.bands, self.recipe.resolution)
        return radar_spec("sentinel1_rtc", self.recipe.resolution, name.removeprefix("sar_"), self.recipe.convention)

    def _date(self, folder: Path, scene: Scene, grid: GeoBox) -> Path | None:
        """Read one date unless it was read before; None where it covers too little of the tile."""
        path, recipe = folder / "dates" / f"{scene.layer}-{scene.date}.npz", self.recipe
        if not path.is_file():
            if scene.layer == OPTICAL:
                image, clear = read_optical(self.catalogue, scene, grid, recipe.bands, recipe.offset, recipe.cloudy)
                arrays: dict[str, Any] = {"values": image, "clear": clear}
            else:
                arrays = {"values": read_radar(self.catalogue, scene, grid, recipe.convention)}
            covered = (~self._spec(scene.layer).invalid(arrays["values"])).any(-1).mean()
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic(path) as file:
                np.savez(file, **(arrays if covered >= LEAST[scene.layer] else {}))
        with np.load(path) as kept:
            return path if kept.files else None


def kept_date(paths: Sequence[Path], name: str, number: int) -> np.ndarray:
    """One array of a date that was read."""
    with np.load(paths[number]) as file:
        return file[name]


def write_roi(path: Path, region: Region, corners: Corners) -> None:
    """The tile's ``roi.tiff``: 1 inside of the region."""
    inside = region.part(corners).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = dict(driver="GTiff", count=1, dtype="uint8", compress="deflate", crs=region.crs)
    height, width = inside.shape
    with rasterio.open(path, "w", height=height, width=width, transform=region.place(corners), **profile) as file:
        file.write(inside[None])


def each_tile(tiles: Sequence[Corners], make: Callable[[Corners], str | None]) -> list[str]:
    """Make all tiles, whatever becomes of one; the failures as ``tile: why``."""
    failed = []
    for number, corners in enumerate(tiles, 1):
        error = make(corners)
        print(f"[{number}/{len(tiles)}] {name_of(corners)}: {error or 'done'}", flush=True)
        if error:
            failed.append(f"{name_of(corners)}: {error}")
    return failed
