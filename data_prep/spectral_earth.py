"""Source ``spectral_earth``: SpectralEarth, EnMAP patches of 202 bands, one folder per place.

    --src/<place>/<image>.tif         (--src is the folder ``enmap``)

A sample is one image; images of one place share ``meta.place``. Dates are those in the files' names, if any.

Source: AABNassim/spectral_earth (README), arXiv 2408.08447.

Example: python data_prep/main.py spectral_earth --src spectral_earth/enmap --out data/spectral_earth
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_prep import refine
from data_prep.common import Plan, Refused, Skip, slug
from data_prep.footprints import lonlat
from data_prep.rasters import decode
from data_prep.store import Store
from dinov2.data.sample import ImageSpec, Sample
from dinov2.sensors import SENSORS

BANDS = tuple(f"B{i}" for i in (*range(1, 127), *range(142, 161), *range(168, 225)))  # without water vapour
DATE = re.compile(r"(?<!\d)(20\d{2})(\d{2})(\d{2})(?!\d{2}(?!\d))")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source."""
    refine.add_arguments(parser)
    parser.add_argument("--list", type=Path, help="text file of the images to take; all by default")


@dataclass(frozen=True)
class Images:
    """Reads images."""

    store: Store
    filters: refine.Filters

    def __call__(self, name: str) -> Sample | Skip:
        """One image."""
        raster = decode(self.store.read(name), self.store.path(name))
        if len(raster.pixels) != len(BANDS):
            raise Refused(f"{self.store.path(name)} has {len(raster.pixels)} bands, not {len(BANDS)}")
        date = date_in(name)
        box = lonlat(raster.crs, raster.bounds) if raster.crs and raster.bounds else None
        if reason := self.filters.reason(box=box, date=date):
            return Skip(reason)
        sensor = SENSORS["enmap"]
        nodata = sensor.nodata if raster.nodata is None else raster.nodata
        gsd, dtype = raster.gsd_m or sensor.bands[0].gsd_m, str(raster.pixels.dtype)
        spec = ImageSpec(sensor.name, gsd, BANDS, dtype, sensor.unit, sensor.scale, 0.0, nodata)
        path = PurePosixPath(name)
        key, meta = slug(path.with_suffix("").as_posix()), {"place": path.parent.as_posix(), "file": name}
        times = {spec.key: [date] if date else []}
        return Sample(key, {spec.key: raster.pixels}, {spec.key: spec}, times, raster.bounds, raster.crs, {}, meta)


def date_in(name: str) -> str | None:
    """ISO date of the first ``YYYYMMDD`` in a file's name."""
    match = DATE.search(name.rsplit("/", 1)[-1])
    return "-".join(match.groups()) if match else None


def plan(args: argparse.Namespace) -> Plan:
    """The listed images, or all."""
    store, filters = Store.at(args.src), refine.Filters.of(args)
    names = store.files((".tif",))
    if args.list:
        wanted = args.list.read_text().split()
        if lacking := sorted(set(wanted) - set(names)):
            raise ValueError(f"{store.path(lacking[0])} is missing, which {args.list} lists")
        names = sorted(wanted)
    names = names[: filters.limit]
    provenance = {"source": "spectral_earth", "files": store.fingerprint(names), **filters.provenance()}
    return Plan(names, Images(store, filters), {}, provenance)
