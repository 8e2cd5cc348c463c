"""Source ``pixels``: tile folders of pixel time series, as shards of small chips for pretraining.

A sample is a chip of ``--chip`` pixels a side, whose looks that are not clear are nodata, as are all of pixels outside
of the region; pretraining draws one pixel of it. Neighbours tell little that is new: ``--every 4`` keeps
one chip of sixteen.

Example: python data_prep/main.py pixels --src tiles/ --every 4 --out data/pixels
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from data_prep.common import Plan, Skip
from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.series_tiles import MASKS, OPTICAL, Tile, fingerprint, open_tile, tile_folders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source."""
    add = parser.add_argument
    add("--src", type=Path, required=True, help="folder of tile folders")
    add("--chip", type=int, default=2, help="pixels per side (%(default)s)")
    add("--every", type=int, default=1, help="keep every so many-th chip in both directions (%(default)s)")


@lru_cache(maxsize=8)
def opened(folder: Path) -> tuple[Tile, np.ndarray]:
    """A tile and its pixels of the region, bool ``[H, W]``, opened once per process."""
    tile = open_tile(folder)
    return tile, tile.inside()


def make(item: tuple[Path, int, int], *, chip: int) -> Sample | Skip:
    """The chip whose first pixel is (row, column) of a tile."""
    folder, row, column = item
    tile, inside = opened(folder)
    place = np.s_[:, row : row + chip, column : column + chip]
    images, specs, times = {}, {}, {}
    if OPTICAL in tile.layers:
        layer = tile.layers[OPTICAL]
        clear = tile.array(MASKS)[place] == 1
        stored = np.where(clear[..., None], tile.array(OPTICAL)[place], np.uint16(0))  # [T, h, w, C]
        images[layer.spec.key], specs[layer.spec.key] = np.moveaxis(stored, 3, 1), layer.spec
        times[layer.spec.key] = list(layer.dates)
    orbits = [name for name in tile.layers if name != OPTICAL]
    if orbits:
        spec = orbit_spec([tile.layers[name].spec for name in orbits])
        images[spec.key], times[spec.key] = joined(tile, orbits, place, spec)
        specs[spec.key] = spec
    for name, image in images.items():  # [T, C, h, w]
        image[..., ~inside[place[1:]]] = specs[name].nodata
    if all(specs[name].invalid(image).all() for name, image in images.items()):
        return Skip("never observed")
    left, top, *_ = tile.corners
    key = f"r{top + row:06d}c{left + column:06d}"
    a, _, c, _, e, f = tile.transform
    x, y = c + a * column, f + e * row
    footprint = (x, y + e * chip, x + a * chip, y)
    return Sample(key, images, specs, times, footprint, tile.crs, {}, {"tile": folder.name})


def orbit_spec(specs: list[ImageSpec]) -> ImageSpec:
    """The description of the looks of all orbits as one image."""
    bands = tuple(band for spec in specs for band in spec.bands)
    return ImageSpec(**{**specs[0].to_dict(), "bands": bands})


def joined(tile: Tile, names: list[str], place: tuple, spec: ImageSpec) -> tuple[np.ndarray, list[str]]:
    """All radar looks ``[T, C of all orbits, h, w]`` with nodata for the orbits that did not look, and their dates."""
    looks = [(date, band, i, name) for band, name in enumerate(names) for i, date in enumerate(tile.layers[name].dates)]
    looks.sort(key=lambda look: look[:2])
    arrays = {name: tile.array(name)[place] for name in names}  # [T, h, w, 2] each
    bands = len(tile.layers[names[0]].spec.bands)
    out = np.full((len(looks), len(spec.bands), *arrays[names[0]].shape[1:3]), spec.nodata, spec.dtype)
    for number, (_, orbit, i, name) in enumerate(looks):
        out[number, orbit * bands : (orbit + 1) * bands] = np.moveaxis(arrays[name][i], 2, 0)
    return out, [date for date, *_ in looks]


def places(folders: list[Path], chip: int, every: int) -> Iterator[tuple[Path, int, int]]:
    """The chips of all tiles; those that a tile's edge would cut are left out."""
    for folder in folders:
        height, width = open_tile(folder).shape
        for row in range(0, height - chip + 1, chip * every):
            for column in range(0, width - chip + 1, chip * every):
                yield folder, row, column


def plan(args: argparse.Namespace) -> Plan:
    """The chips of all tiles of a region, which must agree in bands and units (the shard writer checks that)."""
    if args.chip < 1 or args.every < 1:
        raise ValueError("--chip and --every must be at least 1")
    folders = tile_folders(args.src)
    provenance = {"source": "pixels", "chip": args.chip, "every": args.every}
    provenance["tiles"] = {folder.name: fingerprint(folder) for folder in folders}
    provenance["made"] = dict(open_tile(folders[0]).provenance)
    return Plan(list(places(folders, args.chip, args.every)), partial(make, chip=args.chip), {}, provenance)
