"""Source ``ssl4eo``: SSL4EO-S12 v1.1, four seasons of every place in zipped zarr files.

    --src/{S2L1C,S2L2A,S1GRD,S2RGB}/ssl4eos12_train_seasonal_data_000001.zarr.zip      (--src is the folder of a split)

A sample is one place with all its seasons ``[T, C, H, W]``; ``--dates`` leaves out seasons. Modalities are joined by
the places' numbers; S2RGB, made from S2L2A, is read only where ``--modalities`` names it. Sentinel-2 files carry +1000
in part: ``--baseline-offset detect`` looks at each season's lowest number.

Source: arXiv 2503.00168 (layout, cloud classes).

Example: python data_prep/main.py ssl4eo --src ssl4eo-s12/train --out data/ssl4eo --chip 132
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from rasterio.warp import transform

from data_prep import refine
from data_prep.common import Plan, Skip, slug
from data_prep.footprints import lonlat
from data_prep.rasters import STORED_NODATA, Bounds, carried_offset, without_offset
from data_prep.store import Store
from data_prep.zarrs import ZarrZip, expect
from dinov2.data.sample import ImageSpec, Sample
from dinov2.sensors import SENSORS

GSD = 10
SUFFIXES = (".zarr.zip",)
NAN = float("nan")
SPECS = {
    "S2L1C": ImageSpec("sentinel2_l1c", GSD, SENSORS["sentinel2_l1c"].band_names, "int16", "reflectance", 1e-4, 0.0, 0),
    "S2L2A": ImageSpec("sentinel2_l2a", GSD, SENSORS["sentinel2_l2a"].band_names, "int16", "reflectance", 1e-4, 0.0, 0),
    "S1GRD": ImageSpec("sentinel1_grd", GSD, ("VV", "VH"), "float16", "db", 1.0, 0.0, NAN),
    "S2RGB": ImageSpec("rgb", GSD, ("red", "green", "blue"), "uint8", "dn", 1.0, 0.0, None),
}
CLOUDS = ["land", "water", "snow", "thin cloud", "thick cloud", "cloud shadow", "no data"]
LABELS = {"cloud_mask": {"kind": "mask", "classes": CLOUDS, "ignore": 6}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source."""
    refine.add_arguments(parser)
    add = parser.add_argument
    add("--modalities", help=f"of {', '.join(SPECS)}, with commas; by default all that are there but S2RGB")
    add("--baseline-offset", choices=["none", "detect", "remove"], default="none", help="of Sentinel-2 (%(default)s)")


@lru_cache(maxsize=8)  # of this process: the places of a file come one after the other
def opened(store: Store, name: str) -> ZarrZip:
    """An open file."""
    return ZarrZip(store.open(name), store.path(name))


@dataclass(frozen=True)
class Places:
    """Reads places: an item is a file's name and a number within it."""

    store: Store
    modalities: tuple[str, ...]
    offset: str  # the choice of --baseline-offset
    dates: tuple[str, str] | None

    def __call__(self, item: tuple[str, int]) -> Sample | Skip:
        """One place, all modalities."""
        file, number = item
        images, specs, times, labels, removed = {}, {}, {}, {}, {}
        place = None
        for modality in self.modalities:
            zipped = opened(self.store, f"{modality}/{file}")
            own = str(zipped.array("sample", number))
            if place not in (None, own):
                raise ValueError(f"{zipped.what}: number {number} is the place {own}, in other modalities {place}")
            place, dates = own, zipped.dates("time_", number)
            kept = [i for i, d in enumerate(dates) if self.dates is None or self.dates[0] <= d <= self.dates[1]]
            if not kept:
                continue
            spec, stored = SPECS[modality], zipped.array("bands", number)
            expect(stored.shape, len(spec.bands), zipped.what)
            stored = stored[kept]
            if modality in ("S2L1C", "S2L2A") and self.offset != "none":
                removed[modality] = [carried_offset(season, self.offset) for season in stored]
                stored = np.stack([without_offset(s, o, 0) for s, o in zip(stored, removed[modality], strict=True)])
                spec = replace(spec, nodata=STORED_NODATA)
            spec = replace(spec, dtype=str(stored.dtype))
            images[spec.key], specs[spec.key], times[spec.key] = stored, spec, [dates[i] for i in kept]
            if modality in ("S2L1C", "S2L2A") and zipped.has("cloud_mask"):
                labels["cloud_mask"] = zipped.array("cloud_mask", number)[kept]
        if not images:
            return Skip("outside of --dates")
        footprint, crs = position(zipped, number, stored.shape[-1])
        meta = {"place": place, "removed_offset": removed}
        return Sample(slug(f"place_{place}"), images, specs, times, footprint, crs, labels, meta)


def position(zipped: ZarrZip, number: int, pixels: int) -> tuple[Bounds, str]:
    """Footprint around the centre that a file tells, and its reference system."""
    crs = f"EPSG:{int(zipped.array('crs', number))}"
    lon, lat = (float(zipped.array(name, number)) for name in ("center_lon", "center_lat"))
    (x,), (y,) = transform("EPSG:4326", crs, [lon], [lat])
    half = pixels * GSD / 2
    return (x - half, y - half, x + half, y + half), crs


def files(store: Store, wanted: str | None) -> Mapping[str, list[str]]:
    """Modality -> names of its files."""
    found = {m: [n.split("/", 1)[1] for n in store.files(SUFFIXES, m)] for m in SPECS if m in store.folders()}
    names = wanted.split(",") if wanted else [m for m in found if m != "S2RGB"]
    if lacking := [m for m in names if m not in found]:
        raise ValueError(f"{store.root} has no folder {lacking[0]}; it has {', '.join(found) or 'no modality'}")
    if not names or not found[names[0]]:
        raise ValueError(f"{store.root} has no folder of {', '.join(SPECS)} with .zarr.zip files")
    return {m: found[m] for m in SPECS if m in names}


def plan(args: argparse.Namespace) -> Plan:
    """Every place of every file that passes the filters."""
    store, filters = Store.at(args.src), refine.Filters.of(args)
    found = files(store, args.modalities)
    first = next(iter(found))
    for modality, names in found.items():
        if lacking := sorted(set(found[first]) ^ set(names)):
            raise ValueError(f"{lacking[0]} is not in both {store.path(first)} and {store.path(modality)}")
    items: list[tuple[str, int]] = []
    for file in found[first]:
        zipped = opened(store, f"{first}/{file}")
        count, pixels = zipped.meta("bands")["shape"][0], zipped.meta("bands")["shape"][-1]
        for number in range(count):
            if filters.bbox:
                bounds, crs = position(zipped, number, pixels)
                if not filters.passes(box=lonlat(crs, bounds)):
                    continue
            items.append((file, number))
        if filters.limit and len(items) >= filters.limit:
            break
    items = items[: filters.limit]
    names = [f"{modality}/{file}" for modality in found for file in sorted({file for file, _ in items})]
    provenance = {"source": "ssl4eo", "files": store.fingerprint(names), "modalities": list(found)}
    provenance |= {"baseline_offset": args.baseline_offset, **filters.provenance()}
    make = Places(store, tuple(found), args.baseline_offset, filters.dates)
    return Plan(items, make, LABELS, provenance, filtered=filters.refused)
