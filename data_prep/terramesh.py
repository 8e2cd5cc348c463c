"""Source ``terramesh``: co-registered GeoTIFFs in one folder per modality, paired by file name.

    --src/{S2L1C,S2L2A,S1RTC,DEM,LULC}/<cell>.tif     (modalities may be absent; all files of one name are one scene)

or, as published, a tar of zipped zarr files per shard and modality (:mod:`data_prep.terramesh_tars`).

Sentinel-2 offsets are not consistent in this set: neither the date nor the product tells whether a file carries the
+1000 of processing baseline 04.00. In the five scenes that we looked at the lowest value of a file does: L1C cirrus
(B10, black over clear sky) starts at 1004-1036 in three scenes and at 8 and 54 in two, one of them of 2023; L2A starts
at 969 in one scene (of 2020) and at 1-257 in the others, two of which have the offset in L1C. ``detect`` decides so for
each file; ``remove`` and ``none`` decide for all of them.

Example: python data_prep/main.py terramesh --src terramesh --out data/terramesh --chip 32 --baseline-offset detect
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from data_prep import refine
from data_prep import terramesh_tars as tars
from data_prep.common import Plan, Skip, slug
from data_prep.rasters import Raster, carried_offset, date_of, decode, without_offset
from data_prep.store import Store
from data_prep.terramesh_modalities import GSD, LABELS, SPECS, landcover
from dinov2.data.sample import Sample
from dinov2.sensors import SENSORS

SUFFIXES = (".tif",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source."""
    refine.add_arguments(parser)
    parser.add_argument(
        "--baseline-offset",
        choices=["detect", "remove", "none"],
        required=True,
        help="whether Sentinel-2 files carry +1000: look at each file's lowest value, all do, none does",
    )
    parser.add_argument("--exclude", help="scenes to leave out, file names without .tif, with commas")


@dataclass(frozen=True)
class Scenes:
    """GeoTIFF scenes: what is read of each, and how."""

    store: Store
    folders: tuple[str, ...]
    offset: str  # the choice of --baseline-offset
    filters: refine.Filters

    def __call__(self, name: str) -> Sample | Skip:
        """One scene, all modalities."""
        rasters = {f: decode(self.store.read(f"{f}/{name}"), self.store.path(f"{f}/{name}")) for f in self.folders}
        first = rasters[self.folders[0]]
        images, specs, times, removed = {}, {}, {}, {}
        for folder, raster in rasters.items():
            self._check(f"{folder}/{name}", raster, first)
            if folder == "LULC":
                continue
            spec, stored = SPECS[folder], raster.pixels
            if folder.startswith("S2"):
                removed[folder] = carried_offset(stored, self.offset)
                stored = without_offset(stored, removed[folder], SENSORS[spec.sensor].nodata)
            # Sentinel-2 files carry no date, the land cover made from them does
            dated = "LULC" if folder.startswith("S2") and "LULC" in rasters else folder
            date = date_of(rasters[dated].tags, self.store.path(f"{dated}/{name}"))
            images[spec.key], specs[spec.key], times[spec.key] = stored.astype(spec.dtype), spec, [date] if date else []
        if reason := self.filters.reason(date=min((d for dates in times.values() for d in dates), default=None)):
            return Skip(reason)
        labels = {}
        if "LULC" in rasters:
            labels["landcover"] = landcover(rasters["LULC"].pixels[0], self.store.path(f"LULC/{name}"))
        cell = name.removesuffix(".tif")
        meta = {"scene": cell, "cell": cell, "removed_offset": removed}
        return Sample(slug(cell), images, specs, times, first.bounds, first.crs, labels, meta)

    def _check(self, name: str, raster: Raster, first: Raster) -> None:
        """ValueError if a file has other bands, or is not on the grid of the first file of its scene."""
        folder, path = name.split("/")[0], self.store.path(name)
        count = len(SPECS[folder].bands) if folder in SPECS else 1
        if len(raster.pixels) != count:
            raise ValueError(f"{path} has {len(raster.pixels)} bands, {count} are expected")
        here, there = raster.bounds or (0,) * 4, first.bounds or (0,) * 4
        if raster.pixels.shape[1:] != first.pixels.shape[1:] or np.abs(np.subtract(here, there)).max() > 0.1 * GSD:
            raise ValueError(f"{path} does not lie on the grid of the other files of its scene")


def without(scenes: list[str], excluded: str | None, src: str) -> list[str]:
    """The file names that are not ``excluded``; ValueError where an excluded scene does not exist."""
    left_out = {f"{name}.tif" for name in excluded.split(",")} if excluded else set()
    if unknown := sorted(left_out - set(scenes)):
        raise ValueError(f"--exclude {unknown[0].removesuffix('.tif')}: {src} has no such scene")
    return [name for name in scenes if name not in left_out]


def plan(args: argparse.Namespace) -> Plan:
    """Every scene that all modalities of the folder have."""
    store, filters = Store.at(args.src), refine.Filters.of(args)
    found = store.folders()
    folders = tuple(f for f in (*SPECS, "LULC") if f in found)
    if shards := tars.shards_of(store, [*folders, *("NDVI" for f in found if f == "NDVI")]):
        return tars.plan(args.baseline_offset, store, filters, shards)
    if not set(folders) & set(SPECS):
        raise ValueError(f"{args.src} has none of the folders {', '.join(SPECS)}")
    names = {f: {name.split("/", 1)[1] for name in store.files(SUFFIXES, f)} for f in folders}
    for folder in folders:
        if lacking := sorted(set.union(*names.values()) - names[folder]):
            raise ValueError(f"{store.path(folder)}/{lacking[0]} is missing: scenes need all of {', '.join(folders)}")
    scenes = without(sorted(names[folders[0]]), args.exclude, args.src)[: filters.limit]
    provenance = {
        "source": "terramesh",
        "folders": folders,
        "scenes": scenes,
        "files": store.fingerprint(f"{folder}/{name}" for folder in folders for name in scenes),
        "baseline_offset": args.baseline_offset,
        **filters.provenance(),
    }
    labels = LABELS if "LULC" in folders else {}
    return Plan(scenes, Scenes(store, folders, args.baseline_offset, filters), labels, provenance)
