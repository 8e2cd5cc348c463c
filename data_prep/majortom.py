"""Source ``majortom``: Major-TOM Core (S2L1C, S2L2A, S1RTC, DEM), modalities paired by grid cell.

``--src`` holds a folder per modality (``Core-S2L2A`` or ``S2L2A``), as published or extracted. Of the parquet files
only the wanted bands of the wanted cells are read, so an area of interest comes straight from the network:

python data_prep/main.py majortom --src hf://datasets/Major-TOM --bbox 6 45 9 48 --cloud 10 --limit 500 --chip 264
    --keep-bands sentinel2_l2a=B02,B03,B04,B08 sentinel1_rtc --out data/alps

Bands stay at their resolution (10, 20 and 60 m); Sentinel-1 is linear power; elevation has no date. Filters look at
``metadata.parquet``. Whether the pixels of newer products carry +1000 is not documented: ``--baseline-offset``.

Example: python data_prep/main.py majortom --src majortom --out data/majortom --chip 264
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import refine
from data_prep.common import Plan, Refused, slug
from data_prep.majortom_index import METADATA, Patch, patches
from data_prep.rasters import STORED_NODATA, Raster, carried_offset, decode, stack, without_offset
from data_prep.store import Store
from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.shards.members import MAX_BYTES
from dinov2.sensors import SENSORS

SENSOR_OF = {"S2L1C": "sentinel2_l1c", "S2L2A": "sentinel2_l2a", "S1RTC": "sentinel1_rtc", "DEM": "dem"}
COLUMN_OF = {"VV": "vv", "VH": "vh", "elevation": "DEM"}  # of bands that are not called as in configs/sensors
CLOUDS = "cloud_mask"
LICENCE = "CC-BY-SA-4.0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this source."""
    refine.add_arguments(parser, cloud=True)
    add = parser.add_argument
    add("--modalities", help=f"of {', '.join(SENSOR_OF)}, with commas; all that are there by default")
    add("--paired", action="store_true", help="leave out cells that one of the modalities lacks")
    add("--max-nodata", type=float, help="most nodata as a fraction, 0 to 1")
    add("--baseline-offset", choices=["none", "detect", "remove"], default="none", help="of Sentinel-2: leave numbers "
        "alone (%(default)s), take 1000 off where a cell's lowest number shows it, or off all")  # fmt: skip


@dataclass(frozen=True)
class Cells:
    """Reads cells: an item is the patch of every modality that has one."""

    store: Store
    keep: Mapping[str, tuple[str, ...]] | None  # sensor -> bands
    offset: str  # the choice of --baseline-offset

    def __call__(self, item: Mapping[str, Patch]) -> Sample:
        """One cell, all modalities."""
        images: dict[str, np.ndarray] = {}
        specs: dict[str, ImageSpec] = {}
        times: dict[str, list[str]] = {}
        labels: dict[str, Any] = {}
        places, removed = [], {}
        for modality, patch in item.items():
            rasters = {c: decode(data, f"{patch.part}, {patch.cell}, {c}") for c, data in self._bytes(modality, patch)}
            if CLOUDS in rasters:
                labels[f"{CLOUDS}_{modality.lower()}"] = rasters.pop(CLOUDS).pixels[0]
            if modality.startswith("S2"):
                removed[modality] = carried_offset(lowest(rasters), self.offset)
            for spec, stored in self._images(modality, rasters, removed.get(modality, 0), patch):
                images[spec.key], specs[spec.key] = stored, spec
                times[spec.key] = [patch.date] if patch.date else []
            places += [(raster.crs, raster.bounds, patch.part) for raster in rasters.values()]
        crs, footprint, _ = places[0]
        for other, bounds, part in places:
            if other != crs or (footprint and bounds and np.abs(np.subtract(footprint, bounds)).max() > TOLERANCE):
                raise Refused(f"{part}: the cell {patch.cell} lies at {bounds} in {other}, not at {footprint} in {crs}")
        products = {modality: p.product for modality, p in item.items()}
        meta = {
            "cell": patch.cell,
            "products": products,
            "removed_offset": removed,
            "cloud": max((p.cloud for p in item.values() if p.cloud is not None), default=None),
            "orbit": next((p.orbit for p in item.values() if p.orbit), None),
        }
        return Sample(slug(patch.cell), images, specs, times, footprint, crs, labels, meta)

    def bands(self, modality: str) -> tuple[str, ...]:
        """The bands of a modality that are wanted."""
        sensor = SENSORS[SENSOR_OF[modality]]
        wanted = ("VV", "VH") if modality == "S1RTC" else sensor.band_names
        return wanted if self.keep is None else tuple(b for b in wanted if b in self.keep.get(sensor.name, ()))

    def _bytes(self, modality: str, patch: Patch) -> list[tuple[str, bytes]]:
        """``(column, GeoTIFF)`` of every wanted band that the source has."""
        columns = [COLUMN_OF.get(band, band) for band in self.bands(modality)]
        columns += [CLOUDS] * modality.startswith("S2")
        if patch.row < 0:
            names = [(c, f"{patch.part}/{c}.tif") for c in columns]
            return [(c, self.store.read(name)) for c, name in names if c != CLOUDS or self.store.exists(name)]
        path, file = self.store.path(patch.part), parquet(self.store, patch.part)
        if not patch.row < file.num_row_groups:
            raise ValueError(f"{path} has no row group {patch.row}, which {METADATA} lists: fetch both of one version")
        if (declared := file.metadata.row_group(patch.row).total_byte_size) > MAX_BYTES:
            raise Refused(f"{path}: row group {patch.row} declares {declared} bytes (limit {MAX_BYTES})")
        try:
            group = file.read_row_group(patch.row, columns=["grid_cell", *columns], use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise Refused(f"{path}: row group {patch.row} is damaged: {error}") from error
        if group.num_rows != 1 or group["grid_cell"][0].as_py() != patch.cell:
            raise ValueError(f"{path}: row group {patch.row} is not the cell {patch.cell}: fetch both of one version")
        values = {c: group[c][0].as_py() for c in columns if c in group.column_names}
        return [(c, data) for c, data in values.items() if data is not None]

    def _images(
        self, modality: str, rasters: Mapping[str, Raster], offset: int, patch: Patch
    ) -> list[tuple[ImageSpec, np.ndarray]]:
        """The bands stacked by resolution, finest first."""
        sensor = SENSORS[SENSOR_OF[modality]]
        found = {band: rasters[c] for band in self.bands(modality) if (c := COLUMN_OF.get(band, band)) in rasters}
        if lacking := sorted(set(self.bands(modality)) - set(found)):
            raise Refused(f"{patch.part}, {patch.cell}: the band {lacking[0]} is missing")
        groups: dict[float, list[str]] = {}
        for band, raster in found.items():
            groups.setdefault(raster.gsd_m or sensor.band(band).gsd_m, []).append(band)
        out = []
        for gsd, bands in sorted(groups.items()):
            stored = stack([found[band] for band in bands], f"{patch.part}, {patch.cell}")
            nodata = sensor.nodata if found[bands[0]].nodata is None else found[bands[0]].nodata
            if self.offset != "none" and modality.startswith("S2"):
                stored, nodata = without_offset(stored, offset, nodata), STORED_NODATA
            spec = ImageSpec(sensor.name, gsd, tuple(bands), str(stored.dtype), sensor.unit, sensor.scale, 0.0, nodata)
            out.append((spec, stored))
        return out


TOLERANCE = 60.0  # metres: the coarsest pixel of a cell


def lowest(rasters: Mapping[str, Raster]) -> np.ndarray:
    """The lowest valid number of every band."""
    valid = (raster.pixels[raster.pixels != (raster.nodata or 0)] for raster in rasters.values())
    return np.array([numbers.min() for numbers in valid if numbers.size], np.int64)


@lru_cache(maxsize=8)  # of this process: a file's footer is read once for its 500 cells
def parquet(store: Store, name: str) -> pq.ParquetFile:
    """An open image file; ValueError where it is damaged."""
    try:
        return pq.ParquetFile(store.open(name), pre_buffer=False)
    except pa.ArrowException as error:
        raise ValueError(f"{store.path(name)} is damaged ({error}): fetch it again") from error


def chosen(args: argparse.Namespace, store: Store) -> dict[str, str]:
    """Modality -> its folder below ``--src``."""
    # asked for one by one: hf://datasets/OWNER cannot be listed, the sets in it can
    found = {m: f for m in SENSOR_OF for f in (f"Core-{m}", m) if store.isdir(f)}
    if not found:
        raise ValueError(f"{args.src} has none of the folders {', '.join(f'Core-{m}' for m in SENSOR_OF)}")
    wanted = args.modalities.split(",") if args.modalities else list(found)
    if lacking := [m for m in wanted if m not in found]:
        raise ValueError(
            f"{args.src} has no folder Core-{lacking[0]} or {lacking[0]}; it has {', '.join(found.values())}"
        )
    return {m: found[m] for m in SENSOR_OF if m in wanted}


def is_of(name: str, parts: Collection[str]) -> bool:
    """Whether a file is one of these, or lies in one of these folders."""
    return name in parts or name.rsplit("/", 1)[0] in parts


def plan(args: argparse.Namespace) -> Plan:
    """Every cell that passes the filters, in the order of the first modality's files."""
    store, filters = Store(args.src.rstrip("/")), refine.Filters.of(args)
    make = Cells(store, refine.kept_bands(args), args.baseline_offset)
    folders = {m: f for m, f in chosen(args, store).items() if make.bands(m)}
    cells: dict[str, dict[str, Patch]] = {}
    for modality, folder in folders.items():
        for patch in patches(store, folder):
            if args.cloud is not None and modality.startswith("S2") and patch.cloud is None:
                raise ValueError(f"--cloud: {store.path(folder)} tells no cloud cover; put {METADATA} there")
            wanted = filters.passes(box=patch.box, date=patch.date, cloud=patch.cloud)
            if wanted and args.max_nodata is not None and (patch.nodata or 0) > args.max_nodata:
                filters.refused["more nodata than --max-nodata"] += 1
            elif wanted and cells.setdefault(patch.cell, {}).setdefault(modality, patch) is not patch:
                filters.refused[f"a further {modality} product of a cell"] += 1
    items = [c for c in cells.values() if not args.paired or len(c) == len(folders)]
    if len(items) < len(cells):
        filters.refused["not in all modalities (--paired)"] += len(cells) - len(items)
    items = items[: filters.limit]
    parts = {p.part for item in items for p in item.values()}
    files = [n for f in folders.values() if store.exists(n := f"{f}/{METADATA}")]
    files += [n for f in folders.values() for n in store.files((".tif", ".parquet"), f) if is_of(n, parts)]
    labels = {f"{CLOUDS}_{m.lower()}": {"kind": "mask", "codes": "Major-TOM"} for m in folders if m.startswith("S2")}
    options = {name: getattr(args, name) for name in ("paired", "max_nodata", "baseline_offset")}
    provenance = {"source": "majortom", "modalities": list(folders), "files": store.fingerprint(files)}
    provenance |= options | filters.provenance()
    return Plan(items, make, labels, provenance, LICENCE, filters.refused)
