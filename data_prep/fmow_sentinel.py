"""Source ``fmow_sentinel``: fMoW-Sentinel, 13-band Sentinel-2 chips of fMoW's places at many dates.

    --src/{train,val,test_gt}.csv                                columns category, location_id, image_id, timestamp
    --src/<split>/<category>/<category>_<location>/<category>_<location>_<image>.tif

Chips are small and of varying size. Their positions are those of the files, or the column ``polygon`` where files have
none.

Source: sustainlab-group/SatMAE (README, util/datasets.py), arXiv 2207.08051.

Example: python data_prep/main.py fmow_sentinel --src fmow-sentinel --out data/fmow_sentinel --splits train
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import shapely

from data_prep import refine
from data_prep.common import Plan, Refused, slug
from data_prep.footprints import Box
from data_prep.rasters import Raster, decode
from data_prep.store import Store
from dinov2.data.sample import ImageSpec, Sample
from dinov2.sensors import SENSORS

SPLITS = ("train", "val", "test_gt")
SENSOR = SENSORS["sentinel2_l1c"]
COLUMNS = ("category", "location_id", "image_id", "timestamp")
CATEGORIES = tuple(
    """airport airport_hangar airport_terminal amusement_park aquaculture archaeological_site barn border_checkpoint
    burial_site car_dealership construction_site crop_field dam debris_or_rubble educational_institution
    electric_substation factory_or_powerplant fire_station flooded_road fountain gas_station golf_course
    ground_transportation_station helipad hospital impoverished_settlement interchange lake_or_pond lighthouse
    military_facility multi-unit_residential nuclear_powerplant office_building oil_or_gas_facility park
    parking_lot_or_garage place_of_worship police_station port prison race_track railway_bridge recreational_facility
    road_bridge runway shipyard shopping_mall single-unit_residential smokestack solar_farm space_facility stadium
    storage_tank surface_mine swimming_pool toll_booth tower tunnel_opening waste_disposal water_treatment_facility
    wind_farm zoo""".split()
)
LABELS = {"category": {"kind": "class", "classes": list(CATEGORIES), "ignore": -1}}


@dataclass(frozen=True, slots=True)
class Chip:
    """A row of the lists: one place at one date."""

    split: str
    category: str
    location: str
    image: str
    date: str
    box: Box | None

    @property
    def file(self) -> str:
        """Name of its GeoTIFF (the column ``image_path`` of the lists is not to be relied on)."""
        place = f"{self.category}_{self.location}"
        return f"{self.split}/{self.category}/{place}/{place}_{self.image}.tif"


def polygon_box(text: str) -> Box:
    """The box around a WKT polygon in degrees; ValueError where it is none."""
    try:
        west, south, east, north = shapely.from_wkt(text).bounds
    except shapely.GEOSException as error:
        raise ValueError(f"{text[:40]!r} is no WKT polygon: {error}") from error
    return west, south, east, north


def chips(store: Store, splits: list[str]) -> Iterator[Chip]:
    """All rows of the lists of these splits."""
    for split in splits:
        if not store.exists(f"{split}.csv"):
            raise ValueError(f"{store.path(split)}.csv is missing: fetch the lists, or name other --splits")
        rows = csv.DictReader(io.StringIO(store.read(f"{split}.csv").decode()))
        names = rows.fieldnames or ()
        if lacking := [name for name in COLUMNS if name not in names]:
            raise ValueError(f"{store.path(split)}.csv has no column {lacking[0]}; it has {', '.join(names)}")
        for row in rows:
            box = polygon_box(row["polygon"]) if row.get("polygon") else None
            yield Chip(split, row["category"], row["location_id"], row["image_id"], row["timestamp"][:10], box)


def image_of(raster: Raster, what: str) -> tuple[ImageSpec, np.ndarray]:
    """The 13 bands of a chip; Refused where it has others."""
    if len(raster.pixels) != len(SENSOR.bands):
        raise Refused(f"{what} has {len(raster.pixels)} bands, not the 13 of Sentinel-2 L1C")
    stored = raster.pixels.astype(np.float32) if raster.pixels.dtype == np.float64 else raster.pixels
    spec = ImageSpec(SENSOR.name, 10, SENSOR.band_names, str(stored.dtype), SENSOR.unit, SENSOR.scale, 0.0, 0)
    return spec, stored


def category_number(name: str, what: str) -> int:
    """Place of a category in fMoW's list; -1 for ``false_detection``, ValueError for an unknown one."""
    if name not in (*CATEGORIES, "false_detection"):
        raise ValueError(f"{what}: {name!r} is no category of fMoW")
    return CATEGORIES.index(name) if name in CATEGORIES else -1


@dataclass(frozen=True)
class Chips:
    """Reads chips."""

    store: Store

    def __call__(self, chip: Chip) -> Sample:
        """One chip."""
        raster = decode(self.store.read(chip.file), self.store.path(chip.file))
        spec, stored = image_of(raster, self.store.path(chip.file))
        footprint, crs = (raster.bounds, raster.crs) if raster.crs else (chip.box, "EPSG:4326" if chip.box else None)
        place = f"{chip.category}_{chip.location}"
        labels = {"category": category_number(chip.category, chip.file)}
        meta = {"place": place, "split": chip.split}
        key = slug(f"{chip.split}_{place}_{chip.image}")
        return Sample(key, {spec.key: stored}, {spec.key: spec}, {spec.key: [chip.date]}, footprint, crs, labels, meta)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source."""
    refine.add_arguments(parser)
    parser.add_argument("--splits", default="train", help=f"of {', '.join(SPLITS)}, with commas (%(default)s)")


def plan(args: argparse.Namespace) -> Plan:
    """Every chip of the lists that passes the filters."""
    store, filters = Store.at(args.src), refine.Filters.of(args)
    items = [c for c in chips(store, args.splits.split(",")) if filters.passes(box=c.box, date=c.date)][: filters.limit]
    provenance = {"source": "fmow_sentinel", "files": store.fingerprint(c.file for c in items), **filters.provenance()}
    return Plan(items, Chips(store), LABELS, provenance, filtered=filters.refused)
