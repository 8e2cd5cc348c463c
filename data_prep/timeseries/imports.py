"""Tile folders from what is there already: d-pixel folders, folders of GeoTIFFs, WorldCereal cubes."""

from __future__ import annotations

import argparse
import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window

from data_prep.inspection import offset_to_remove
from data_prep.rasters import same_place
from data_prep.timeseries.cubes import claim, each_tile, write_roi
from data_prep.timeseries.region import Region
from data_prep.timeseries.units import decibels, optical_spec, radar_spec, to_stored, without_offset
from dinov2.cli import USER_ERRORS, one_line
from dinov2.data.sample import ImageSpec
from dinov2.data.series_tiles import (
    INFO,
    LAYERS,
    MASKS,
    OPTICAL,
    Corners,
    Dates,
    Layer,
    Tile,
    load,
    name_of,
    write_tile,
)
from dinov2.sensors import SENSORS

DATE = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})")
SENSOR = "sentinel2_l2a"
OPTIONS = ("bands", "resolution", "tile", "s2_offset", "s1_scale", "s1_unit", "first_date")  # that change the tiles


def run(args: argparse.Namespace) -> list[str]:
    """Import ``--src``; the tiles that failed, with the reason."""
    if not args.src.exists():
        raise ValueError(f"--src {args.src}: there is no such file or folder")
    if args.src.suffix == ".nc":
        from data_prep.worldcereal import cube

        return write_cube(cube(args.src, args.resolution), args)
    folders = sorted(p.parent for p in args.src.glob(f"*/{OPTICAL}.npy"))
    if folders:
        if args.first_date is None:
            raise ValueError("d-pixel tiles hold days of the year only: give --first-date of their first date")
        claim(args.out, recipe(args))
        return each_tile([corners_of(f) for f in folders], partial(d_pixel, src=args.src, args=args))
    return write_cube(stack(args), args)


def recipe(args: argparse.Namespace) -> dict[str, Any]:
    """What makes tiles other tiles, as JSON values."""
    return {"src": str(args.src.resolve()), **{name: getattr(args, name) for name in OPTIONS}}


# ---- d-pixel folders


def corners_of(folder: Path) -> Corners:
    """The corners that a d-pixel folder's name says."""
    parts = folder.name.split("_")
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        raise ValueError(f"{folder}: a tile is called <xmin>_<ymin>_<xmax>_<ymax>")
    left, top, right, bottom = map(int, parts)
    return left, top, right, bottom


def full_dates(days: np.ndarray, first: str, name: str) -> tuple[str, ...]:
    """ISO dates of days of the year in the order of time, from ``first`` on: a smaller day begins another year."""
    start = datetime.date.fromisoformat(first)
    year, last = start.year, start.timetuple().tm_yday
    dates = []
    for day in days.astype(int).tolist():
        year, last = year + (day < last), day
        date = datetime.date(year, 1, 1) + datetime.timedelta(days=day - 1)
        if day < 1 or date.year != year:
            raise ValueError(f"{name}: day {day} is none of {year}; is --first-date {first} right?")
        dates.append(date.isoformat())
    return tuple(dates)


def d_pixel(corners: Corners, src: Path, args: argparse.Namespace) -> str | None:
    """Import one d-pixel tile, cut to the extent of its name (edge tiles are padded); None, or why it failed."""
    try:
        _d_pixel(corners, src / name_of(corners), args)
    except USER_ERRORS as error:
        return one_line(error)
    return None


def _d_pixel(corners: Corners, source: Path, args: argparse.Namespace) -> None:
    left, top, right, bottom = corners
    height, width = bottom - top, right - left
    layers: dict[str, Layer] = {}
    arrays: dict[str, Sequence[np.ndarray]] = {}
    with rasterio.open(source / "roi.tiff") as raster:
        region = Region(raster.crs.to_string(), raster.transform, raster.read(1)[:height, :width] > 0)
    for name, days in LAYERS.items():
        if not (source / f"{name}.npy").is_file() and name != OPTICAL:
            continue
        array = load(source / f"{name}.npy")
        spec = _spec_of(name, array, args, source)
        if len(array) == 0:
            continue
        dates = full_dates(load(source / f"{days}.npy"), args.first_date, f"{source}/{days}.npy")
        layers[name] = Layer(spec, dates)
        arrays[name] = Dates(len(array), partial(_cut, array, (height, width), spec.dtype, source / f"{name}.npy"))
        if name == OPTICAL:
            masks, path = load(source / f"{MASKS}.npy"), source / f"{MASKS}.npy"
            arrays[MASKS] = Dates(len(masks), partial(_cut, masks, (height, width), "uint8", path))
    folder = args.out / name_of(corners)
    write_roi(folder / "roi.tiff", region, (0, 0, width, height))
    provenance = {"source": "d-pixel", "first_date": args.first_date}
    write_tile(Tile(folder, corners, region.crs, tuple(region.transform)[:6], layers, provenance), arrays)


def _spec_of(name: str, array: np.ndarray, args: argparse.Namespace, source: Path) -> ImageSpec:
    """What an array of a d-pixel tile holds; ValueError where its bands are not those that are named."""
    if name != OPTICAL:
        return radar_spec("sentinel1_rtc", args.resolution, name.removeprefix("sar_"), args.s1_scale or "doubled")
    bands = tuple(args.bands.split(","))
    if array.ndim != 4 or array.shape[3] != len(bands):
        raise ValueError(f"{source}/{name}.npy has shape {array.shape}; --bands names {len(bands)}: {', '.join(bands)}")
    return optical_spec(bands, args.resolution)


def _cut(array: np.ndarray, size: tuple[int, int], dtype: str, path: Path, number: int) -> np.ndarray:
    """A date of an array of ``path`` in another type, cut to ``size``."""
    return _as_integers(array[number, : size[0], : size[1]], dtype, path)


def _as_integers(values: np.ndarray, dtype: str, path: Path) -> np.ndarray:
    """Rounded; ValueError where a number is outside of the type, or none."""
    limits = np.iinfo(dtype)
    if not ((values >= limits.min) & (values <= limits.max)).all():
        raise ValueError(f"{path} holds numbers outside of {limits.min} to {limits.max}: clip them, or declare nodata")
    return np.rint(values).astype(dtype)


# ---- cubes that lie on one grid


@dataclass(frozen=True)
class Cube:
    """Layers of a whole region; ``read(layer, window, number)`` gives a date's ``[h, w, C]`` (masks: ``[h, w]``)."""

    region: Region
    layers: Mapping[str, Layer]
    read: Callable[[str, Window, int], np.ndarray]
    provenance: Mapping[str, Any]


def write_cube(cube: Cube, args: argparse.Namespace) -> list[str]:
    """Cut a cube into tiles."""
    claim(args.out, recipe(args) | cube.region.identity() | {"dates": {n: v.dates for n, v in cube.layers.items()}})

    def tile(corners: Corners) -> str | None:
        folder, (left, top, right, bottom) = args.out / name_of(corners), corners
        if (folder / INFO).is_file():
            return None
        window = Window(left, top, right - left, bottom - top)
        arrays = {n: Dates(len(v.dates), partial(cube.read, n, window)) for n, v in cube.layers.items()}
        arrays[MASKS] = Dates(len(cube.layers[OPTICAL].dates), partial(cube.read, MASKS, window))
        place = tuple(cube.region.place(corners))[:6]
        try:
            write_roi(folder / "roi.tiff", cube.region, corners)
            write_tile(Tile(folder, corners, cube.region.crs, place, cube.layers, cube.provenance), arrays)
        except USER_ERRORS as error:
            return one_line(error)
        return None

    return each_tile(list(cube.region.tiles(args.tile)), tile)


def stack(args: argparse.Namespace) -> Cube:
    """The GeoTIFFs ``bands/``, ``masks/`` (1 = clear) and where there are such ``ascending/``, ``descending/``.

    One file per date, named by it, all on one grid; masks have the names of the images. Optical numbers are integers
    (reflectance * 10000, nodata as the file declares it); radar is in dB, or what ``--s1-unit`` says. Raises ValueError
    naming what is missing.
    """
    files = {name: dated(args.src / name.removeprefix("sar_")) for name in LAYERS}
    if not files[OPTICAL]:
        raise ValueError(f"{args.src} holds neither tiles */{OPTICAL}.npy nor images {OPTICAL}/DATE.tif")
    first = next(iter(files[OPTICAL].values()))
    with rasterio.open(first) as reference:
        if reference.crs is None:
            raise ValueError(f"{first} has no reference system")
        inside = np.ones(reference.shape, bool)
        region = Region(reference.crs.to_string(), reference.transform, inside)
        masks = (args.src / MASKS / path.name for path in files[OPTICAL].values())
        for path in chain(*(found.values() for found in files.values()), masks):
            if not path.is_file():
                raise ValueError(f"{path} is missing: without it clouds would count as clear")
            with rasterio.open(path) as raster:
                if raster.shape != reference.shape or not same_place(raster, reference):
                    raise ValueError(f"{path} lies on another grid than {first}")
    bands = tuple(args.bands.split(","))
    layers = {OPTICAL: Layer(optical_spec(bands, args.resolution), tuple(files[OPTICAL]))}
    for name, found in files.items():
        if name != OPTICAL and found:
            spec = radar_spec("sentinel1_rtc", args.resolution, name.removeprefix("sar_"), args.s1_scale or "db")
            layers[name] = Layer(spec, tuple(found))
    paths = {name: list(found.values()) for name, found in files.items()}

    def read(name: str, window: Window, number: int) -> np.ndarray:
        if name == MASKS:
            return _mask(args.src / MASKS / paths[OPTICAL][number].name, window)
        path = paths[name][number]
        if name == OPTICAL:
            return _optical(path, bands, layers[name].dates[number], args.s2_offset, window)
        with rasterio.open(path) as raster:
            values = np.moveaxis(raster.read([1, 2], window=window, masked=True).filled(np.nan), 0, 2)
        return to_stored(decibels(values, args.s1_unit), args.s1_scale or "db")

    return Cube(region, layers, read, {"source": "GeoTIFFs"})


def dated(folder: Path) -> dict[str, Path]:
    """The GeoTIFFs of a folder by the ISO date in their names, in the order of time."""
    found: dict[str, Path] = {}
    for path in sorted([*folder.glob("*.tif"), *folder.glob("*.tiff")]):
        match = DATE.search(path.stem)
        if match is None:
            raise ValueError(f"{path}: its name holds no date YYYY-MM-DD or YYYYMMDD")
        date = datetime.date(*map(int, match.groups())).isoformat()
        if date in found:
            raise ValueError(f"{path} and {found[date]} have the same date")
        found[date] = path
    return dict(sorted(found.items()))


def _mask(path: Path, window: Window) -> np.ndarray:
    with rasterio.open(path) as raster:
        return (raster.read(1, window=window) == 1).astype(np.uint8)


def _optical(path: Path, bands: Sequence[str], date: str, offset: str, window: Window) -> np.ndarray:
    """A date's numbers; bands are found by the file's descriptions where it has them."""
    with rasterio.open(path) as raster:
        names = [name for name in raster.descriptions if name]
        missing = [band for band in bands if names and band not in names]
        if missing or (not names and raster.count != len(bands)):
            raise ValueError(f"{path} holds {', '.join(names) or raster.count}; --bands names {', '.join(bands)}")
        if np.dtype(raster.dtypes[0]).kind == "f":
            raise ValueError(f"{path} holds {raster.dtypes[0]} numbers; store reflectance * 10000 as integers")
        wanted = [names.index(band) + 1 for band in bands] if names else list(range(1, len(bands) + 1))
        found = raster.read(wanted, window=window, masked=True).filled(0)  # [C, h, w]
        values = _as_integers(np.moveaxis(found, 0, 2), "uint16", path)
    added = offset_to_remove(str(path), SENSORS[SENSOR], date, None if offset == "auto" else offset)
    return without_offset(values, int(added))
