"""Source ``terramesh``: co-registered GeoTIFFs in one folder per modality, paired by file name.

    --src/{S2L1C,S2L2A,S1RTC,DEM,LULC}/<cell>.tif     (modalities may be absent; all files of one name are one scene)

Sentinel-2 offsets are not consistent in this set: neither the date nor the product tells whether a file carries the
+1000 of processing baseline 04.00. In the five scenes that we looked at the lowest value of a file does: L1C cirrus
(B10, black over clear sky) starts at 1004-1036 in three scenes and at 8 and 54 in two, one of them of 2023; L2A starts
at 969 in one scene (of 2020) and at 1-257 in the others, two of which have the offset in L1C. ``detect`` decides so for
each file; ``remove`` and ``none`` decide for all of them.

Example: python data_prep/main.py terramesh --src terramesh --out data/terramesh --chip 32 --baseline-offset detect
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import rasterio

from data_prep.common import Plan, Skip, fingerprint, label_info, scene_class, slug
from data_prep.rasters import STORED_NODATA, Chip, chips, date_of, place, without_offset
from dinov2.data.sample import ImageSpec, Sample
from dinov2.sensors import SENSORS

GSD = 10  # every modality is resampled to the Sentinel-2 grid
LANDCOVER = (
    "water",
    "trees",
    "flooded vegetation",
    "crops",
    "built area",
    "bare ground",
    "snow/ice",
    "clouds",
    "rangeland",
)
IGNORE = 255  # file code 0; code c is class c - 1
BASELINE_OFFSET = 1000
DETECTED_ABOVE = 900  # smallest stored number of a file that carries the offset


def _spec(sensor: str, bands: tuple[str, ...], dtype: str, unit: str, scale: float, nodata: float | None) -> ImageSpec:
    return ImageSpec(sensor, GSD, bands, dtype, unit, scale, 0.0, nodata)


SPECS = {
    **{
        folder: _spec(name, SENSORS[name].band_names, "int16", "reflectance", 1e-4, STORED_NODATA)
        for folder, name in (("S2L1C", "sentinel2_l1c"), ("S2L2A", "sentinel2_l2a"))
    },
    "S1RTC": _spec("sentinel1_rtc", ("VV", "VH"), "float32", "db", 1.0, float("nan")),
    "DEM": _spec("dem", ("elevation",), "int16", "metre", 1.0, -32768),
}
LABELS = label_info("landcover", LANDCOVER, IGNORE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source."""
    parser.add_argument("--src", type=Path, required=True, help="folder with the modalities' folders")
    parser.add_argument("--chip", type=int, help="pixels per side; the whole scene by default")
    parser.add_argument(
        "--baseline-offset",
        choices=["detect", "remove", "none"],
        required=True,
        help="whether Sentinel-2 files carry +1000: look at each file's lowest value, all do, none does",
    )
    parser.add_argument("--exclude", help="scenes to leave out, file names without .tif, with commas")


def carried_offset(path: Path, choice: str) -> int:
    """What a Sentinel-2 file carries added to its numbers: 1000 or 0 (``detect``: by the lowest valid number)."""
    if choice != "detect":
        return BASELINE_OFFSET if choice == "remove" else 0
    with rasterio.open(path) as raster:
        stored = raster.read()
    valid = stored[stored != 0]
    return BASELINE_OFFSET if valid.size and valid.min() >= DETECTED_ABOVE else 0


def _read(path: Path, chip: Chip, count: int, shape: tuple[int, int], corner: tuple[float, float]) -> np.ndarray:
    """The chip's pixels ``[C, h, w]``; ValueError if the file is not on the scene's grid."""
    with rasterio.open(path) as raster:
        if raster.count != count:
            raise ValueError(f"{path} has {raster.count} bands, {count} are expected")
        moved = np.abs(np.subtract(corner, (raster.transform.c, raster.transform.f))).max()
        if raster.shape != shape or moved > 0.1 * GSD:
            raise ValueError(f"{path} does not lie on the grid of the other files of its scene")
        return raster.read(window=chip.window(raster))


def _landcover(codes: np.ndarray, path: Path) -> dict[str, np.ndarray | int]:
    """Labels of a chip from its codes ``[h, w]``."""
    if codes.max() > len(LANDCOVER):
        raise ValueError(f"{path} has the land-cover code {codes.max()}; known codes are 0 to {len(LANDCOVER)}")
    mask = np.where(codes == 0, IGNORE, codes - 1).astype(np.uint8)
    return {"landcover": mask, "scene": scene_class(mask, len(LANDCOVER), IGNORE)}


def make(chip: Chip, *, src: Path, folders: tuple[str, ...], offsets: dict[str, dict[str, int]]) -> Sample | Skip:
    """One chip of one scene; ``offsets[folder][file name]`` are taken off the Sentinel-2 numbers."""
    images, specs, times = {}, {}, {}
    with rasterio.open(chip.path) as raster:
        if chip.is_cut(raster):
            return Skip(f"at the scene's edge, smaller than --chip {chip.size}")
        shape, corner = raster.shape, (raster.transform.c, raster.transform.f)
        footprint, crs = place(raster, chip.window(raster))
    labels: dict[str, np.ndarray | int] = {}
    for folder in folders:
        path = src / folder / chip.path.name
        count = len(SPECS[folder].bands) if folder in SPECS else 1
        stored = _read(path, chip, count, shape, corner)
        if folder == "LULC":
            labels = _landcover(stored[0], path)
            continue
        spec = SPECS[folder]
        if folder in offsets:
            stored = without_offset(stored, offsets[folder][path.name], SENSORS[spec.sensor].nodata)
        images[spec.key], specs[spec.key] = stored.astype(spec.dtype), spec
        # Sentinel-2 files carry no date, the land cover made from them does
        with rasterio.open(src / "LULC" / path.name if folder in offsets and "LULC" in folders else path) as dated:
            times[spec.key] = [date] if (date := date_of(dated)) else []
    if all(specs[key].invalid(image).all() for key, image in images.items()):
        return Skip("no valid pixel")
    cell = chip.path.stem
    meta = {"scene": cell, "cell": cell, "removed_offset": {f: offsets[f][chip.path.name] for f in offsets}}
    return Sample(slug(cell) + chip.suffix, images, specs, times, footprint, crs, labels, meta)


def without(scenes: list[str], excluded: str | None, src: Path) -> list[str]:
    """The file names that are not ``excluded``; ValueError where an excluded scene does not exist."""
    left_out = {f"{name}.tif" for name in excluded.split(",")} if excluded else set()
    if unknown := sorted(left_out - set(scenes)):
        raise ValueError(f"--exclude {unknown[0].removesuffix('.tif')}: {src} has no such scene")
    return [name for name in scenes if name not in left_out]


def plan(args: argparse.Namespace) -> Plan:
    """The chips of every scene that all modalities of the folder have."""
    folders = tuple(f for f in (*SPECS, "LULC") if (args.src / f).is_dir())
    if not set(folders) & set(SPECS):
        raise ValueError(f"{args.src} has none of the folders {', '.join(SPECS)}")
    if args.chip is not None and args.chip < 1:
        raise ValueError(f"--chip {args.chip} must be at least 1")
    names = {f: {p.name for p in (args.src / f).glob("*.tif") if not p.name.startswith("._")} for f in folders}
    for folder in folders:
        if lacking := sorted(set.union(*names.values()) - names[folder]):
            raise ValueError(f"{args.src / folder / lacking[0]} is missing: scenes need all of {', '.join(folders)}")
    scenes = without(sorted(names[folders[0]]), args.exclude, args.src)
    offsets = {
        folder: {name: carried_offset(args.src / folder / name, args.baseline_offset) for name in scenes}
        for folder in folders
        if folder.startswith("S2")
    }
    items: list[Chip] = []
    for name in scenes:
        with rasterio.open(args.src / folders[0] / name) as raster:
            items += chips(args.src / folders[0] / name, args.chip, raster.shape)
    provenance = {
        "source": "terramesh",
        "folders": folders,
        "scenes": scenes,
        "files": fingerprint(args.src, (args.src / folder / name for folder in folders for name in scenes)),
        "chip": args.chip,
        "offsets": offsets,
    }
    labels = LABELS if "LULC" in folders else {}
    return Plan(items, partial(make, src=args.src, folders=folders, offsets=offsets), labels, provenance)
