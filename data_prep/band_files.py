"""Source ``band_files``: one GeoTIFF per band, a folder per image (BigEarthNet v1 and v2, SSL4EO-S12 v1.0).

    --src/[...]/<image>/[...]_B02.tif      the name's last part, after ``_``, is the band

Bands stay at their resolution. Images that lack one of the bands are refused.

Example: python data_prep/main.py band_files --src bigearthnet/s2 --sensor sentinel2_l2a --out data/bigearthnet_s2
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from data_prep import refine
from data_prep.common import Plan, Refused, slug
from data_prep.inspection import offset_to_remove
from data_prep.rasters import STORED_NODATA, decode, stack, without_offset
from data_prep.spectral_earth import date_in
from data_prep.store import Store
from dinov2.data.sample import ImageSpec, Sample
from dinov2.sensors import SENSORS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source."""
    refine.add_arguments(parser)
    add = parser.add_argument
    add("--sensor", required=True, help="name of a file in configs/sensors")
    add("--bands", help="names with commas; those of the first image by default")
    add("--date", type=refine.iso_date, help="of all images; by default YYYYMMDD in a folder's name")
    add("--baseline-offset", choices=["remove", "none"], help="of Sentinel-2; by date if not given")


def band_of(name: str, sensor: str) -> str | None:
    """The band that a file's name ends in (``B1`` and ``b01`` are B01); None for other files."""
    word = PurePosixPath(name).stem.rsplit("_", 1)[-1].upper()
    words = (word, re.sub(r"^B(\d)(?=\D|$)", r"B0\1", word))
    known = {band.upper(): band for band in SENSORS[sensor].band_names}
    return next((known[w] for w in words if w in known), None)


@dataclass(frozen=True)
class Image:
    """One folder: its bands' files, and what its name tells."""

    folder: str
    files: Mapping[str, str]  # band -> file
    date: str | None
    removed: float  # taken off the stored numbers


@dataclass(frozen=True)
class Images:
    """Reads images of one sensor."""

    store: Store
    sensor: str
    bands: tuple[str, ...]
    offsets: bool  # whether any image has one

    def __call__(self, image: Image) -> Sample:
        """One image."""
        if lacking := [band for band in self.bands if band not in image.files]:
            raise Refused(f"{self.store.path(image.folder)} has no file of band {lacking[0]}")
        rasters = {band: decode(self.store.read(image.files[band]), image.files[band]) for band in self.bands}
        sensor, first = SENSORS[self.sensor], rasters[self.bands[0]]
        groups: dict[float, list[str]] = {}
        for band, raster in rasters.items():
            groups.setdefault(raster.gsd_m or sensor.band(band).gsd_m, []).append(band)
        images, specs = {}, {}
        for gsd, bands in groups.items():
            stored = stack([rasters[band] for band in bands], self.store.path(image.folder))
            nodata = sensor.nodata if rasters[bands[0]].nodata is None else rasters[bands[0]].nodata
            if self.offsets:
                stored, nodata = without_offset(stored, image.removed, nodata), STORED_NODATA
            dtype = str(stored.dtype)
            spec = ImageSpec(sensor.name, gsd, tuple(bands), dtype, sensor.unit, sensor.scale, sensor.offset, nodata)
            images[spec.key], specs[spec.key] = stored, spec
        times = {key: [image.date] if image.date else [] for key in images}
        meta = {"folder": image.folder, "removed_offset": image.removed}
        return Sample(slug(image.folder), images, specs, times, first.bounds, first.crs, {}, meta)


def plan(args: argparse.Namespace) -> Plan:
    """Every folder with files of bands."""
    store, filters, sensor = Store.at(args.src), refine.Filters.of(args), SENSORS[args.sensor]
    folders: dict[str, dict[str, str]] = {}
    for name in store.files((".tif", ".tiff")):
        if (band := band_of(name, args.sensor)) and "/" in name:
            folders.setdefault(name.rsplit("/", 1)[0], {})[band] = name
    if not folders:
        raise ValueError(f"{args.src} has no folder with files like x_{sensor.band_names[0]}.tif")
    items = []
    for folder, files in folders.items():
        date = args.date or date_in(folder)
        if filters.passes(date=date):
            removed = offset_to_remove(store.path(folder), sensor, date, args.baseline_offset)
            items.append(Image(folder, files, date, removed))
    items = items[: filters.limit]
    own = next(iter(folders.values()))
    wanted = args.bands.split(",") if args.bands else [band for band in sensor.band_names if band in own]
    bands = sensor.select(wanted).band_names
    names = [name for image in items for name in image.files.values()]
    provenance = {"source": "band_files", "files": store.fingerprint(names), "sensor": args.sensor, "bands": bands}
    provenance |= {"baseline_offset": args.baseline_offset, "date": args.date, **filters.provenance()}
    make = Images(store, args.sensor, bands, any(image.removed for image in items))
    return Plan(items, make, {}, provenance, filtered=filters.refused)
